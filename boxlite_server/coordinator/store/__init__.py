"""The coordinator's database: the only place for SQL. A module for each table, one facade for all."""

from __future__ import annotations

from .boxes import Box, Boxes, Page
from .volumes import Volume, Volumes
from .workers import RESERVING, Load, Worker, Workers

__all__ = ["RESERVING", "Box", "Load", "Page", "Store", "Volume", "Worker"]


class Store(Workers, Boxes, Volumes):
    """Everything the coordinator keeps. See `Database` for how it is opened and written."""
