"""The control plane against everything that can go wrong, in virtual time. A failure prints the steps that
lead to it, as few as there can be: `tell` them again to see it again."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulation.cluster import Cluster, simulate
from simulation.story import Step, Story

RUNS = os.environ.get("BOXLITE_SIMULATION_RUNS")  # with so many, no two times are alike
pytestmark = [
    # A process that is killed leaves coroutines that it has not begun to run.
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    pytest.mark.timeout(0 if RUNS else 600),
]

_BOXES = (0, 1, 2, 3)
_WORKERS = (0, 1, 2)
_BROKEN = (0.0, 15.0, None)  # the connection is reset, found to be lost, or never
_SECONDS = (0.02, 3.0, 18.0, 40.0, 100.0)  # a call, a heartbeat, a lost connection, an unreachable worker, more

# What is done, how often, and to what.
_OPERATIONS: dict[str, tuple[int, tuple[Any, ...]]] = {
    "wait": (30, ((0.008, 0.015, 0.03, 1.0, 6.0, 20.0, 70.0),)),
    "create": (10, ((None, None, 0, 1), (1, 1, 2), (256, 512), (False, False, True))),
    "keep_warm": (2, ((0, 1, 2), (256, 512))),
    "start": (10, (_BOXES,)),
    "stop": (8, (_BOXES,)),
    "execute": (4, (_BOXES, ("true", "sleep"))),
    "remove": (6, (_BOXES, (False, True))),
    "snapshot": (3, (_BOXES,)),
    "restore": (6, (_BOXES, (0, 1))),
    "clone": (3, (_BOXES,)),
    "retry": (4, ()),
    "": (30, ()),  # one of the run's troubles
}
_TROUBLES: dict[str, tuple[Any, ...]] = {
    "lose_request": (_WORKERS, _BROKEN),
    "lose_reply": (_WORKERS, _BROKEN),
    "repeat": (_WORKERS, (0.001, 0.02, 1.0, 30.0)),
    "delay": (_WORKERS, (0.05, 2.0, 20.0, 70.0), _BROKEN),
    "kill_worker": (_WORKERS, _SECONDS),
    "freeze": (_WORKERS, _SECONDS),
    "cut": (_WORKERS, _SECONDS),
    "slow_down": (_WORKERS, (0.0, 0.03, 3.0)),
    "restart_engine": (_WORKERS,),
    "lose_container": (_BOXES,),
    "drain": (_WORKERS, (3.0, 100.0)),
    "kill_coordinator": ((0, 1), (0.0, 0.02, 0.5, 5.0, 60.0)),
}
_CHOICES = st.integers(0, 59)

# Each run has a few kinds of trouble, and so more of each.
_troubles = st.lists(st.sampled_from(list(_TROUBLES)), max_size=4, unique=True)
_names = st.sampled_from([name for name, (weight, _) in _OPERATIONS.items() for _ in range(weight)])
_draws = st.lists(st.lists(st.tuples(_names, _CHOICES, _CHOICES, _CHOICES, _CHOICES), max_size=12), max_size=8)


def _steps(draws: list[list[tuple[str, int, int, int, int]]], troubles: list[str]) -> Iterator[Step]:
    for name, *numbers in itertools.chain(*draws):
        if name:
            choices = _OPERATIONS[name][1]
        elif troubles:
            name = troubles[sum(numbers) % len(troubles)]
            choices = _TROUBLES[name]
        else:
            continue
        yield name, *(values[number % len(values)] for number, values in zip(numbers, choices, strict=False))


# The run begins with some boxes to operate on.
_CREATED: list[Step] = [("create", None, 1, 512), ("wait", 0.1)]
_RUNNING: list[Step] = [("create", None, 1, 256), ("wait", 0.1), ("start", 0), ("wait", 0.1)]
_KEPT: list[Step] = [*_RUNNING, ("snapshot", 0), ("wait", 0.1), ("stop", 0), ("wait", 0.1)]
_WARM: list[Step] = [("keep_warm", 2, 256), ("wait", 11.0)]
_CLAIMED: list[Step] = [*_WARM, ("create", None, 1, 256, True), ("wait", 0.1)]
_beginnings = st.lists(st.sampled_from([_CREATED, _RUNNING, _KEPT, _WARM, _CLAIMED]), max_size=3)


@settings(
    max_examples=int(RUNS or 1200),
    derandomize=RUNS is None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
)
@given(st.sampled_from((1, 2, 2, 3)), st.sampled_from((1, 1, 2)), _troubles, _beginnings, _draws)
def test_nothing_is_lost_and_nothing_doubled(
    workers: int,
    coordinators: int,
    troubles: list[str],
    beginning: list[list[Step]],
    draws: list[list[tuple[str, int, int, int, int]]],
) -> None:
    tell(workers, coordinators, [*itertools.chain(*beginning), *_steps(draws, troubles)])


# What has gone wrong once.
_FORMER: dict[str, tuple[int, int, list[Step]]] = {
    "a box that was stopped while its restoration was left is not stopped": (
        1,
        1,
        [
            ("create", None, 1, 512),
            ("wait", 0.1),
            ("start", 0),
            ("snapshot", 0),
            ("stop", 0),
            ("wait", 0.1),
            ("restore", 2, 1),
            ("lose_request", 1, 0.0),
            ("wait", 6.0),
            ("stop", 2),
        ],
    ),
    "a removal that fails has given its room away": (
        1,
        1,
        [
            ("create", None, 1, 512),
            ("wait", 0.1),
            ("create", None, 1, 512),
            ("wait", 0.1),
            ("remove", 0, False),
            ("lose_request", 0, 0.0),
            ("wait", 0.008),
            ("create", None, 1, 256),
        ],
    ),
    "a start that a former process refuses stops the box": (
        1,
        1,
        [
            ("create", None, 1, 512),
            ("wait", 0.1),
            ("start", 0),
            ("wait", 0.024),
            ("kill_worker", 0, 0.02),
            ("wait", 0.016),
            ("start", 0),
        ],
    ),
    "a late start undoes a stop": (
        1,
        1,
        [
            *_CREATED,
            ("repeat", 0, 30.0),
            ("start", 0),
            ("wait", 0.1),
            ("stop", 0),
            ("wait", 1.0),
            ("create", None, 1, 512),
            ("create", None, 1, 512),
            ("wait", 0.1),
            ("start", 0),
            ("start", 1),
            ("wait", 50.0),
        ],
    ),
    "a late stop undoes a start": (
        3,
        1,
        [*_CREATED, ("wait", 20.0), ("repeat", 0, 30.0), ("stop", 0), ("wait", 0.03), ("execute", 0, "true")],
    ),
    "a box that comes back takes room that is not there": (
        2,
        1,
        [
            ("create", None, 1, 256),
            ("wait", 0.008),
            ("create", 0, 1, 256),
            ("create", None, 2, 512),
            ("repeat", 0, 30.0),
            ("wait", 0.03),
            ("lose_container", 0),
            ("create", None, 1, 256),
            ("wait", 1.0),
            ("create", None, 1, 256),
            ("create", None, 1, 512),
            ("wait", 70.0),
        ],
    ),
    "a repeated creation revives a removed box": (
        1,
        1,
        [("repeat", 0, 30.0), ("create", None, 1, 256), ("wait", 0.1), ("remove", 0, False), ("wait", 40.0)],
    ),
    "so does one that comes to another life of the worker": (
        1,
        1,
        [
            ("repeat", 0, 30.0),
            ("create", None, 1, 256),
            ("wait", 0.1),
            ("remove", 0, False),
            ("wait", 1.0),
            ("kill_worker", 0, 3.0),
            ("wait", 40.0),
        ],
    ),
    "a refused clone stays listed until its worker answers again": (
        1,
        1,
        [
            *_CREATED,
            ("lose_container", 0),
            ("wait", 0.008),
            ("clone", 0),
            ("wait", 0.016),
            ("lose_request", 0, 0.0),
            ("wait", 0.008),
        ],
    ),
    "a restoration whose answer is lost is taken for not done while its worker is unreachable": (
        1,
        1,
        [*_KEPT, ("restore", 0, 0), ("lose_reply", 0, 0.0), ("wait", 0.008)],
    ),
}


@pytest.mark.parametrize("name", _FORMER)
def test_never_again(name: str) -> None:
    tell(*_FORMER[name])


def tell(workers: int, coordinators: int, steps: Sequence[Step]) -> None:
    async def story(cluster: Cluster) -> None:
        await Story(cluster).tell(steps)

    try:
        simulate(story, workers=workers, coordinators=coordinators)
    except AssertionError as exc:
        raise AssertionError(f"{exc}\nafter tell({workers}, {coordinators}, {list(steps)})") from None
