"""Attacks from outside: raw bytes to a port, and whether everybody else is served meanwhile."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.cluster import Cluster, Process, call, wait_until
from support.memory import resident

PATIENCE = 60.0  # seconds for an answer; far more than any takes
_GROWTH = 48 * 2**20  # of a process that was attacked: what its allocator keeps
_POOLED = 16  # descriptors that a process may keep for later

LAST = b"GET /v1/health HTTP/1.1\r\nHost: x\r\nX-Request-Id: the-end\r\nConnection: close\r\n\r\n"

_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")


def connection(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def exchange(port: int, *parts: bytes) -> list[int]:
    """Send these bytes over one connection, and read until the server ends it: the statuses of all answers. One more
    request, which is not counted, has it end where it has refused none."""
    with connection(port) as sock:
        with contextlib.suppress(OSError):  # it was refused in the middle
            for part in (*parts, LAST):
                sock.sendall(part)
        return statuses(until_end(sock))


def statuses(answers: bytes) -> list[int]:
    """The statuses of these answers, but for that to `LAST`."""
    found = [int(status) for status in _STATUS.findall(answers)]
    return found[:-1] if b"\r\nx-request-id: the-end\r\n" in answers.lower() else found


def until_end(sock: socket.socket) -> bytes:
    """What comes before the server closes the connection."""
    got = b""
    with contextlib.suppress(ConnectionError):
        while data := sock.recv(65536):
            got += data
    return got


def descriptors(process: Process) -> int:
    return len(list(Path(f"/proc/{process.pid}/fd").iterdir()))


class Honest:
    """A client that asks all the time: `answers` counts its answers, and `failures` are those that are not 200."""

    def __init__(self, cluster: Cluster) -> None:
        self.answers = 0
        self.failures: list[Any] = []
        self._cluster = cluster
        self._key = cluster.api_key
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Honest:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def is_served(self, times: int = 3) -> None:
        """Wait for some more answers."""
        before = self.answers
        wait_until(lambda: self.answers >= before + times or bool(self.failures), "others are served", PATIENCE)
        assert not self.failures

    def _run(self) -> None:
        headers = {"Authorization": f"Bearer {self._key}"}
        while not self._ended.wait(0.02):
            try:
                status, _, answer = call(self._cluster.port, "GET", "/v1/boxes", headers=headers, timeout=PATIENCE)
            except (OSError, http.client.HTTPException) as exc:
                self.failures.append(exc)
                continue
            self.answers += 1
            if status != 200:
                self.failures.append(answer)


@contextlib.contextmanager
def unharmed(cluster: Cluster, *processes: Process) -> Iterator[Honest]:
    """During the block others are served, and after it the processes hold no more than before."""
    assert cluster.http("GET", "/v1/boxes")[0] == 200
    before = {process: (process.pid, descriptors(process), resident(process.pid)) for process in processes}
    with Honest(cluster) as honest:
        yield honest
        honest.is_served()
    for process, (pid, held, memory) in before.items():
        assert process.running, process.tail()
        assert process.pid == pid
        wait_until(lambda p=process, n=held: descriptors(p) <= n + _POOLED, f"{process.name} has let go", PATIENCE)
        assert "Traceback" not in process.log.read_text(errors="replace"), process.tail()
        wait_until(
            lambda p=process, n=memory: resident(p.pid) <= n + _GROWTH, f"{process.name} is not larger than it was"
        )


def in_threads(count: int, act: Any) -> list[Any]:
    """What `act` returns for each number below `count`, in as many threads."""
    results: list[Any] = [None] * count

    def run(number: int) -> None:
        results[number] = act(number)

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 2 * PATIENCE
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return results
