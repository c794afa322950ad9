"""Waiting for a box to run, to stop or to go."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from support.boxes import start
from support.cluster import Cluster, call
from support.postgresql import Server

QUICK = 30.0  # seconds; the longest wait is twice as long


class Waiting:
    """A wait for a box that goes on in another thread."""

    def __init__(self, port: int, box: str, until: str, timeout: float = 60) -> None:
        self.answer: Any = None
        self.status = 0
        path = f"/v1/boxes/{box}/wait?until={until}&timeout={timeout}"
        self._thread = threading.Thread(target=self._ask, args=(port, path))
        self._thread.start()

    def _ask(self, port: int, path: str) -> None:
        self.status, _, self.answer = call(port, "GET", path, timeout=100)

    def end(self) -> Any:
        began = time.monotonic()
        self._thread.join()
        assert time.monotonic() - began < QUICK
        assert self.status == 200, self.answer
        return self.answer


def asked(cluster: Cluster, box: str, until: str, timeout: float) -> tuple[bool, str]:
    status, _, answer = cluster.http("GET", f"/v1/boxes/{box}/wait?until={until}&timeout={timeout}")
    assert status == 200, answer
    return answer["reached"], answer["box"]["status"]


def test_a_box_is_awaited_through_its_life(cluster: Cluster, new_box: Callable[..., str]) -> None:
    box = new_box(cmd=["sh", "-c", "sleep 1; exit 3"])
    assert asked(cluster, box, "stopped", 0) == (False, "configured")
    runs, stops, goes = (Waiting(cluster.port, box, until) for until in ("running", "stopped", "removed"))
    start(cluster, box)
    assert runs.end()["box"]["status"] in ("running", "stopped")
    answer = stops.end()
    assert (answer["reached"], answer["box"]["status"], answer["box"]["exit_code"]) == (True, "stopped", 3)
    assert asked(cluster, box, "stopped", 60) == (True, "stopped")
    assert cluster.http("DELETE", f"/v1/boxes/{box}")[0] == 204
    assert goes.end() == {"reached": True}
    assert cluster.http("GET", f"/v1/boxes/{box}/wait?until=removed")[0] == 404


def test_a_box_that_goes_when_it_stops_has_stopped(cluster: Cluster, new_box: Callable[..., str]) -> None:
    box = new_box(cmd=["sleep", "1"], auto_remove=True)
    start(cluster, box)
    stops, runs = Waiting(cluster.port, box, "stopped"), Waiting(cluster.port, box, "running")
    assert stops.end()["reached"]
    assert runs.end()["reached"]


def test_the_time_is_bounded(cluster: Cluster, new_box: Callable[..., str]) -> None:
    box = new_box()
    start(cluster, box)
    began = time.monotonic()
    assert asked(cluster, box, "stopped", 1) == (False, "running")
    assert time.monotonic() - began >= 1
    for query in ("until=stopped&timeout=61", "until=stopped&timeout=-1", "until=never", ""):
        assert cluster.http("GET", f"/v1/boxes/{box}/wait?{query}")[0] == 400


def test_what_happens_through_another_coordinator_is_seen(
    new_cluster: Any, postgresql: Server, test_image: str
) -> None:
    cluster: Cluster = new_cluster(database=postgresql.new_database())
    cluster.start_coordinator()
    cluster.start_worker()
    other = cluster.add_coordinator()
    status, _, box = cluster.http("POST", "/v1/boxes", {"image": test_image, "memory_mib": 128, "start": True})
    assert status == 201, box
    waits = [Waiting(port, box["box_id"], "stopped") for port in (cluster.port, other.port)]
    assert call(other.port, "POST", f"/v1/boxes/{box['box_id']}/stop")[0] == 200
    assert all(wait.end()["reached"] for wait in waits)
