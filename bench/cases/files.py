"""Files: small ones and large ones, in and out, and many large ones with the memory that they take."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from support import memory, transfer

from ..case import Bench, Case
from ..harness import Figure, Result, compare, timed

MIB = 1 << 20
IN_A_ROW = 10  # small files of each side in a round
LARGE_MIB = 64
HUGE_MIB, STREAMS, EACH_MIB = 1024, 100, 10  # of the case that is measured on demand


def _archive(size: int) -> bytes:
    """A tar archive of one file that cannot be compressed."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("file")
        info.size = size
        tar.addfile(info, io.BytesIO(os.urandom(size)))
    return buffer.getvalue()


def _transfers(bench: Bench, name: str, size: int, words: str, rounds: int, in_a_row: int = 1) -> Iterator[Result]:
    """A file of that size up and down, one after the other."""
    box, container, archive = bench.server.create(), bench.sdk.start(), _archive(size)
    bench.server.start(box)

    def up() -> None:
        bench.server.upload(box, "/root/file", archive)

    def down() -> None:
        assert bench.server.download(box, "/root/file") > size

    def put() -> None:
        assert container.put_archive("/root", archive)

    def get() -> None:
        assert sum(map(len, container.get_archive("/root/file")[0])) > size

    try:
        yield compare(f"{name}-up", f"{words} up, against `put_archive`", up, put, rounds, in_a_row)
        yield compare(f"{name}-down", f"{words} down, against `get_archive`", down, get, rounds, in_a_row)
    finally:
        bench.server.remove(box)
        container.remove(force=True)


def small(bench: Bench) -> Iterator[Result]:
    yield from _transfers(bench, "small", 1024, "a file of 1 KiB", bench.rounds(20), IN_A_ROW)


def large(bench: Bench) -> Iterator[Result]:
    yield from _transfers(bench, "large", LARGE_MIB * MIB, f"{LARGE_MIB} MiB", bench.rounds(9))


def huge(bench: Bench) -> Iterator[Result]:
    """One very large file and many large ones at once: rates, and the memory that they take. What comes back must be
    equal."""
    port, cluster = bench.server.cluster.port, bench.server.cluster
    boxes = [bench.server.create() for _ in range(4)]
    transfer.upload(port, boxes[0], "/root/warm", 1)  # what is loaded at first use is no growth
    transfer.download(port, boxes[0], "/root/warm")
    sent: list[str] = []

    def there() -> None:
        sent.append(transfer.upload(port, boxes[0], "/root/huge", HUGE_MIB))

    def back() -> None:
        assert transfer.download(port, boxes[0], "/root/huge") == sent[0], "it came back changed"

    def both(number: int) -> None:
        box, path = boxes[number % len(boxes)], f"/root/{number}"
        up = transfer.upload(port, box, path, EACH_MIB, seed=number)
        assert up == transfer.download(port, box, path), "it came back changed"

    def many() -> None:
        with ThreadPoolExecutor(STREAMS) as pool:
            list(pool.map(both, range(STREAMS)))

    def measured(name: str, title: str, mib: int, action: Callable[[], None]) -> Iterator[Result]:
        assert cluster.coordinator is not None
        with memory.growth(cluster.coordinator.pid) as coordinator, memory.growth(cluster.workers[0].pid) as worker:
            took = timed(action)
        yield Figure(name, title, mib / took, "MiB/s")
        yield Figure(f"{name}-coordinator", f"{title}: memory of the coordinator", coordinator.peak / MIB, "MiB")
        yield Figure(f"{name}-worker", f"{title}: memory of the worker", worker.peak / MIB, "MiB")

    yield from measured("huge-up", f"{HUGE_MIB} MiB up", HUGE_MIB, there)
    yield from measured("huge-down", f"{HUGE_MIB} MiB down", HUGE_MIB, back)
    mib = 2 * STREAMS * EACH_MIB
    yield from measured("huge-many", f"{STREAMS} times {EACH_MIB} MiB up and down at once", mib, many)
    for box in boxes:
        bench.server.remove(box)


CASES = [Case("small-files", small), Case("large-files", large), Case("huge-files", huge, on_demand=True)]
