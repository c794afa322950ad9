"""What was found, and what mends it."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Level(StrEnum):
    OK = "ok"
    SKIPPED = "skipped"  # it could not be examined, and the text says why
    WARNING = "warning"  # a worker runs, and something is weaker or missing
    PROBLEM = "problem"  # no worker runs, it refuses boxes, or strangers get in


class Finding(NamedTuple):
    """What was found of one `subject`, such as "disk"; `remedy` is empty where nothing has to be done."""

    level: Level
    subject: str
    text: str
    remedy: str = ""


def ok(subject: str, text: str) -> Finding:
    return Finding(Level.OK, subject, text)


def skipped(subject: str, text: str) -> Finding:
    return Finding(Level.SKIPPED, subject, text)


def warning(subject: str, text: str, remedy: str) -> Finding:
    return Finding(Level.WARNING, subject, text, remedy)


def problem(subject: str, text: str, remedy: str) -> Finding:
    return Finding(Level.PROBLEM, subject, text, remedy)
