"""The cases, in the order of the table."""

from __future__ import annotations

from ..case import Case
from . import boxes, commands, files, fleet

CASES: list[Case] = [*commands.CASES, *files.CASES, *boxes.CASES, *fleet.CASES]
