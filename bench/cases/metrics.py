"""What a scrape costs while boxes run and commands come steadily, and whether its numbers agree with what was done."""

from __future__ import annotations

import json
import statistics
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from support.scrape import Scrape, of_coordinator

from ..case import Bench, Case
from ..harness import Figure, Result, percentile

BOXES = 100
COMMANDS_PER_SECOND = 50
SCRAPES = 60
PAUSE = 0.25  # seconds between two scrapes
AT_ONCE = 8


def _until_told(bench: Bench, boxes: list[str], told: list[bool]) -> int:
    """Run commands at a fixed pace until `told` holds something; how many were run."""
    begun, number = time.monotonic(), 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        pending = []
        while not told:
            box = boxes[number % len(boxes)]
            pending.append(pool.submit(bench.server.request, "POST", f"/v1/boxes/{box}/run", {"command": "true"}))
            number += 1
            time.sleep(max(begun + number / COMMANDS_PER_SECOND - time.monotonic(), 0))
        assert all(json.loads(run.result())["exit_code"] == 0 for run in pending)
    return number


def _timed(read: Callable[[], object]) -> float:
    begun = time.perf_counter()
    read()
    return (time.perf_counter() - begun) * 1000


def scrapes(bench: Bench) -> Iterator[Result]:
    count = bench.rounds(BOXES)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        boxes = list(pool.map(lambda _: bench.server.create(), range(count)))
        list(pool.map(bench.server.start, boxes))
    health = f"http://127.0.0.1:{bench.server.cluster.workers[0].health_port}/metrics"
    sides: dict[str, Callable[[], object]] = {
        "the coordinator": lambda: bench.server.request("GET", "/metrics"),
        "a worker": lambda: urllib.request.urlopen(health).read(),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    before, told = of_coordinator(bench.server.cluster), list[bool]()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(_until_told, bench, boxes, told)
        try:
            for _ in range(bench.rounds(SCRAPES)):
                time.sleep(PAUSE)
                for name, read in sides.items():
                    times[name].append(_timed(read))
        finally:
            told.append(True)
        commands = running.result()
    _compare(before, of_coordinator(bench.server.cluster), boxes=count, commands=commands)
    title = f"a scrape of {{}} with {count} boxes and {COMMANDS_PER_SECOND} commands/s, {{}}"
    for name, found in times.items():
        yield Figure("scrape", title.format(name, "median"), statistics.median(found), "ms")
        yield Figure("scrape-p95", title.format(name, "p95"), percentile(found, 95), "ms")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(bench.server.remove, boxes))


def _compare(before: Scrape, after: Scrape, *, boxes: int, commands: int) -> None:
    assert after.value("boxlite_boxes", state="running") == boxes
    for name, labels in (
        ("boxlite_commands_total", {}),
        ("boxlite_requests_total", {"operation": "runCommand", "status": "200"}),
        ("boxlite_rpc_client_calls_total", {"method": "RunCommand", "code": "ok"}),
    ):
        counted = after.value(name, **labels) - before.value(name, **labels)
        assert counted == commands, f"{name} counts {counted} of {commands} commands"


CASES = [Case("scrape", scrapes, on_demand=True)]
