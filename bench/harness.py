"""Measuring two sides in turn, and what is said of the result."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Does a thing once. Where it returns a function, that does the rest, which is not measured.
Action = Callable[[], object]

WARM_UP = 2  # rounds that do not count
RESAMPLES = 2000  # of the bootstrap


def percentile(values: Sequence[float], percent: float) -> float:
    """The percentile of the values, between two of them by linear interpolation."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


@dataclass(frozen=True)
class Comparison:
    """How long each side took, in seconds, round by round; `in_a_row` times in each round."""

    name: str
    title: str
    ours: list[float]
    theirs: list[float]
    in_a_row: int = 1

    @property
    def ratio(self) -> float:
        """Our median against that of the other side."""
        return statistics.median(self.ours) / statistics.median(self.theirs)

    @property
    def p95_ratio(self) -> float:
        """Our 95th percentile against the other side's median."""
        return percentile(self.ours, 95) / statistics.median(self.theirs)

    @property
    def interval(self) -> tuple[float, float]:
        """Where the ratio lies with 95 % confidence: rounds are drawn again and again, both sides of a round
        together, since they ran under the same load."""
        rng, ratios = random.Random(1), list[float]()
        rounds = [slice(start, start + self.in_a_row) for start in range(0, len(self.ours), self.in_a_row)]
        for _ in range(RESAMPLES):
            drawn = rng.choices(rounds, k=len(rounds))
            ours, theirs = ([took for part in drawn for took in times[part]] for times in (self.ours, self.theirs))
            ratios.append(statistics.median(ours) / statistics.median(theirs))
        return percentile(ratios, 2.5), percentile(ratios, 97.5)


@dataclass(frozen=True)
class Attempts:
    """How long the attempts took that succeeded, in seconds. `against`: the same on the other side."""

    name: str
    title: str
    attempts: int
    times: list[float]
    against: list[float]


@dataclass(frozen=True)
class Figure:
    """A number that has no other side."""

    name: str
    title: str
    value: float
    unit: str


@dataclass(frozen=True)
class Skipped:
    """A case that was not measured."""

    name: str
    title: str
    reason: str


Result = Comparison | Attempts | Figure | Skipped


def compare(name: str, title: str, ours: Action, theirs: Action, rounds: int, in_a_row: int = 1) -> Comparison:
    """Measure both sides in turn, `in_a_row` times each; each begins every second round, so that neither profits from
    the other. Once in a row, a short action finds the machine as the other side left it, and in a row as itself did."""
    times: dict[Action, list[float]] = {ours: [], theirs: []}
    for number in range(-WARM_UP, rounds):
        for side in (ours, theirs) if number % 2 else (theirs, ours):
            gc.collect()
            took = [timed(side) for _ in range(in_a_row)]
            if number >= 0:
                times[side] += took
    return Comparison(name, title, times[ours], times[theirs], in_a_row)


def timed(action: Action) -> float:
    """The seconds that an action took, without what it leaves to be done."""
    begun = time.perf_counter()
    rest = action()
    took = time.perf_counter() - begun
    if callable(rest):
        rest()
    return took
