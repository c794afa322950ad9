"""Calls that are made later, unless they are cancelled."""

from __future__ import annotations

import queue
import threading

from support.clock import Clock

from boxlite_server.worker.executions.alarms import Alarms


def test_alarms_ring_when_they_are_due_unless_they_are_cancelled() -> None:
    clock, rung = Clock(), queue.Queue[str]()
    alarms = Alarms(clock, threading.Condition())
    for name, delay in (("late", 9.0), ("cancelled", 1.0), ("early", 2.0)):
        alarms.set(delay, lambda name=name: rung.put(name), name)
    alarms.set(3.0, lambda: rung.put("without a name"))
    alarms.cancel("cancelled")
    alarms.cancel("unknown")
    clock.now += 2
    alarms.ring_due()
    assert rung.get(timeout=60) == "early"
    clock.now += 1
    alarms.ring_due()
    assert rung.get(timeout=60) == "without a name"
    alarms.cancel("early")
    clock.now += 7
    alarms.ring_due()
    assert rung.get(timeout=60) == "late"
    assert rung.empty()


def test_the_time_limits_of_commands_that_have_ended_take_no_room() -> None:
    alarms = Alarms(Clock(), threading.Condition())
    alarms.set(1e6, lambda: None, "runs on")
    for number in range(1000):
        alarms.set(1e6, lambda: None, str(number))
        alarms.cancel(str(number))
    assert len(alarms._heap) <= 3
