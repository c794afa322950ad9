"""The coordinator's database: the only place for SQL. A module for each table, one facade for all."""

from __future__ import annotations

from .answers import Answer, Answers
from .boxes import Box, Boxes, Page
from .counters import CounterRows, Counters
from .deadlines import Deadlines
from .snapshots import Snapshot, Snapshots
from .volumes import Volume, Volumes
from .workers import RESERVING, Load, Worker, Workers

__all__ = ["RESERVING", "Answer", "Box", "Counters", "Load", "Page", "Snapshot", "Store", "Tables", "Volume", "Worker"]


class Tables(Workers, Boxes, Volumes, Deadlines, Answers, CounterRows, Snapshots):
    """All reads and writes, of a store or of one transaction."""


class Store(Tables):
    """Everything the coordinator keeps. See `Database` for how it is opened and written."""
