"""Commands: one, many at once, many in a row, and a large output."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from docker.models.containers import Container
from support.held import held_by

from ..case import Bench, Case
from ..harness import Action, Comparison, Figure, Result, Skipped, compare, timed

AT_ONCE = 20
IN_A_ROW = 10  # short commands of each side in a round
OUTPUT_MIB = 256


@contextmanager
def _boxes(bench: Bench) -> Iterator[tuple[str, Container]]:
    """A box of each side that runs."""
    box, container = bench.server.create(), bench.sdk.start()
    bench.server.start(box)
    try:
        yield box, container
    finally:
        bench.server.remove(box)
        container.remove(force=True)


def _must(code: int | None) -> None:
    assert code == 0, f"the command ended with {code}"


def one_request(bench: Bench) -> Iterator[Result]:
    title = "`run` of `true`, one request"
    with _boxes(bench) as (box, container):
        path, body = f"/v1/boxes/{box}/run", {"command": "true"}
        if not bench.server.has("POST", path, body):
            yield Skipped("run", title, "this server has no `run`")
            return

        def ours() -> None:
            assert json.loads(bench.server.request("POST", path, body))["exit_code"] == 0

        yield from _short(bench, "run", title, ours, lambda: _must(container.exec_run("true")[0]))


def execute(bench: Bench) -> Iterator[Result]:
    title = "exec of `true`, POST to exit frame over the WebSocket"
    with _boxes(bench) as (box, container):
        yield from _short(
            bench,
            "exec",
            title,
            lambda: bench.server.execute(box, "true"),
            lambda: _must(container.exec_run("true")[0]),
        )


def _short(bench: Bench, name: str, title: str, ours: Action, theirs: Action) -> Iterator[Result]:
    """A short command as an agent has them, several in a row, and alone between two commands of the other side."""
    yield compare(name, title, ours, theirs, bench.rounds(60), IN_A_ROW)
    yield compare(f"{name}-alone", f"{title}, each after one of the SDK", ours, theirs, bench.rounds(50))


def at_once(bench: Bench) -> Iterator[Result]:
    with _boxes(bench) as (box, container), ThreadPoolExecutor(AT_ONCE) as pool:

        def ours() -> None:
            list(pool.map(lambda _: bench.server.execute(box, "true"), range(AT_ONCE)))

        def theirs() -> None:
            for code, _ in pool.map(lambda _: container.exec_run("true"), range(AT_ONCE)):
                _must(code)

        title = f"{AT_ONCE} concurrent commands in one box, until all have ended"
        yield compare("concurrent-exec", title, ours, theirs, bench.rounds(7))


def output(bench: Bench) -> Iterator[Result]:
    size = OUTPUT_MIB << 20
    command = ["head", "-c", str(size), "/dev/zero"]
    with _boxes(bench) as (box, container):

        def ours() -> None:
            assert bench.server.execute(box, *command) == size

        def theirs() -> None:
            assert sum(map(len, container.exec_run(command, stream=True)[1])) == size

        title = f"{OUTPUT_MIB} MiB of output, ours over the WebSocket"
        yield compare("output", title, ours, theirs, bench.rounds(5))


def in_a_row(bench: Bench) -> Iterator[Result]:
    """Whether commands stay as fast, and leave as little behind, as the first of them."""
    count = bench.rounds(1000)
    part = max(count // 10, 1)
    with _boxes(bench) as (box, _):
        for _ in range(5):
            bench.server.execute(box, "true")
        pids = bench.server.pids()
        memory, descriptors, cpu = _memory(pids), _descriptors(pids), sum(map(_cpu_seconds, pids))
        times = [timed(lambda: bench.server.execute(box, "true")) for _ in range(count)]
        cpu = sum(map(_cpu_seconds, pids)) - cpu
        title = f"{count} commands in a row: the last tenth against the first"
        yield Comparison("row", title, times[-part:], times[:part])
        yield Figure("row-memory", f"memory that {count} commands leave", _memory(pids) - memory, "MiB")
        left = _descriptors(pids) - descriptors
        yield Figure("row-descriptors", f"descriptors that {count} commands leave", left, "")
        yield Figure("cpu", "CPU of worker and coordinator for each exec", cpu / count * 1000, "ms")


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory(pids: list[int]) -> float:
    return sum(held_by(pid).memory for pid in pids) / 1024


def _descriptors(pids: list[int]) -> int:
    return sum(held_by(pid).descriptors for pid in pids)


CASES = [
    Case("run", one_request),
    Case("exec", execute),
    Case("concurrent-exec", at_once),
    Case("output", output),
    Case("row", in_a_row),
]
