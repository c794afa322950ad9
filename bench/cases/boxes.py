"""Boxes: their start, alone and many at once, and what an idle box costs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from support.held import held_by

from ..case import Bench, Case
from ..harness import Attempts, Figure, Result, Skipped, compare, timed
from ..sides import IMAGE, MEMORY_MIB, RefusedError, removal

AT_ONCE = 20
CREATIONS = 100
PAUSE = 0.2  # seconds between two creations of the second mode
WARM_BOXES = 2
IDLE_BOXES = 20
REMOVALS = 8  # at once


def cold(bench: Bench) -> Iterator[Result]:
    def ours() -> object:
        box = bench.server.create()
        bench.server.start(box)
        return _removal(bench, box)

    title = "create and start, cold, against the SDK with equal options"
    yield compare("cold-start", title, ours, lambda: removal(bench.sdk.start()), bench.rounds(60))


def cold_at_once(bench: Bench) -> Iterator[Result]:
    with ThreadPoolExecutor(AT_ONCE) as pool:

        def create(_: int) -> str:
            box = bench.server.create()
            bench.server.start(box)
            return box

        def ours() -> object:
            boxes = list(pool.map(create, range(AT_ONCE)))
            return lambda: _remove(bench, boxes)

        def theirs() -> object:
            containers = list(pool.map(lambda _: bench.sdk.start(), range(AT_ONCE)))
            return lambda: list(pool.map(lambda container: removal(container)(), containers))

        title = f"{AT_ONCE} concurrent cold starts, until all run"
        yield compare("concurrent-start", title, ours, theirs, bench.rounds(4))


def warm(bench: Bench) -> Iterator[Result]:
    title = "create, start and first command from a warm box, against `docker run --rm`"
    if not bench.server.has("GET", "/v1/admin/warm"):
        yield Skipped("warm-start", title, "this server has no warm boxes")
        return
    pool = {"image": IMAGE, "memory_mib": MEMORY_MIB, "boxes": WARM_BOXES}
    bench.server.request("PUT", "/v1/admin/warm", {"pools": [pool]})

    def wait() -> None:
        while any(pool["ready"] < pool["boxes"] for pool in _pools(bench)):
            time.sleep(0.1)

    def ours() -> object:
        box = _first_command(bench)

        def rest() -> None:
            bench.server.remove(box)
            wait()

        return rest

    def theirs() -> None:
        bench.sdk.client.containers.run(IMAGE, ["true"], remove=True, mem_limit=MEMORY_MIB << 20)

    try:
        wait()
        yield compare("warm-start", title, ours, theirs, bench.rounds(10))
    finally:
        bench.server.request("PUT", "/v1/admin/warm", {"pools": []})


def _pools(bench: Bench) -> list[dict[str, Any]]:
    return list(json.loads(bench.server.request("GET", "/v1/admin/warm"))["pools"])


# ---- 100 creations, in the three modes of ComputeSDK's benchmark ----


def sequence(bench: Bench) -> Iterator[Result]:
    yield from _creations(bench, "sequence", "in sequence", lambda number: 0.0, at_once=1)


def staggered(bench: Bench) -> Iterator[Result]:
    yield from _creations(bench, "staggered", f"one each {PAUSE * 1000:.0f} ms", lambda number: number * PAUSE)


def burst(bench: Bench) -> Iterator[Result]:
    yield from _creations(bench, "burst", "at once", lambda number: 0.0)


def _creations(
    bench: Bench, name: str, words: str, begins: Callable[[int], float], at_once: int = CREATIONS
) -> Iterator[Result]:
    count = bench.rounds(CREATIONS)
    against = [timed(lambda: _first_command_of_sdk(bench)) for _ in range(max(count // 10, 2))]
    begun = time.monotonic()

    def create(number: int) -> float | None:
        time.sleep(max(begun + begins(number) - time.monotonic(), 0))
        with suppress(RefusedError):
            return timed(lambda: _removal(bench, _first_command(bench)) if at_once == 1 else _first_command(bench))
        return None

    with ThreadPoolExecutor(at_once) as pool:
        times = [took for took in pool.map(create, range(count)) if took is not None]
    title = f"{count} creations {words}: create, start and first command, against one of the SDK alone"
    yield Attempts(name, title, count, times, against)
    _remove(bench, bench.server.boxes())  # also those of which a part was refused


def _removal(bench: Bench, box: str) -> Callable[[], None]:
    return lambda: bench.server.remove(box)


def _first_command(bench: Bench) -> str:
    """A new box in which a command has run."""
    box = bench.server.create()
    bench.server.start(box)
    bench.server.execute(box, "true")
    return box


def _first_command_of_sdk(bench: Bench) -> object:
    container = bench.sdk.start()
    assert container.exec_run("true")[0] == 0
    return removal(container)


# ---- idle boxes ----


def idle(bench: Bench) -> Iterator[Result]:
    count = bench.rounds(IDLE_BOXES)
    worker = bench.server.cluster.workers[0].pid
    with ThreadPoolExecutor(4) as pool:

        def started(_: int) -> str:
            return _first_command(bench)

        boxes = list(pool.map(started, range(4)))  # what is loaded at first use is no box's
        time.sleep(2)
        before = held_by(worker).memory
        boxes += pool.map(started, range(count))
    time.sleep(2)
    grown = (held_by(worker).memory - before) / 1024
    yield Figure("idle", f"memory of the worker for each of {count} idle boxes", grown / count, "MiB")
    yield _supervisor(bench)
    _remove(bench, boxes)


def _supervisor(bench: Bench) -> Result:
    title = "memory of a box's supervisor"
    for container in bench.sdk.client.containers.list(filters={"label": "boxlite.box"}):
        pid = container.attrs["State"]["Pid"]
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"/dev/boxlite/"):
            return Figure("supervisor", title, held_by(pid).memory / 1024, "MiB")
    return Skipped("supervisor", title, "boxes have no supervisor")


def _remove(bench: Bench, boxes: list[str]) -> None:
    with ThreadPoolExecutor(REMOVALS) as pool:
        list(pool.map(bench.server.remove, boxes))


IDLE = Case("idle", idle)
CASES = [
    Case("cold-start", cold),
    Case("concurrent-start", cold_at_once),
    Case("warm-start", warm),
    Case("sequence", sequence),
    Case("staggered", staggered),
    Case("burst", burst),
]
