"""A clock that stands still until the test moves it."""

from __future__ import annotations

NOON = 1_800_014_400.0  # 2027-01-15, 12:00:00 UTC, in Unix seconds


class Clock:
    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
