"""The cases, in the order of the table."""

from __future__ import annotations

from ..case import Case
from . import attackers, boxes, commands, files, fleet, metrics

# Idle boxes come first: later cases leave the worker memory to fill.
CASES: list[Case] = [
    boxes.IDLE,
    *commands.CASES,
    *files.CASES,
    *boxes.CASES,
    *fleet.CASES,
    *metrics.CASES,
    *attackers.CASES,
]
