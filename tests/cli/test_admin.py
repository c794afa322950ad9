"""The operator's commands against a coordinator whose workers are only rows."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

import pytest
from support.cluster import Cluster, call
from support.keys import KEY

from boxlite_server.cli import admin, main
from boxlite_server.client.api import ApiClient
from boxlite_server.errors import UpstreamUnavailableError


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("admin"), docker_host="unix:///nowhere", api_key=KEY)
    cluster.start_coordinator()
    yield cluster
    cluster.close()


@pytest.fixture
def one(cluster: Cluster) -> str:
    """The id of a worker named `one`."""
    registration = {
        "id": "W0rk3r000001",
        "name": "one",
        "url": "http://127.0.0.1:1",
        "secret": "s" * 16,
        "epoch": "Ep0ch0000001",
        "capacity": {"cpus": 4, "cpu_limit": 64, "memory_mib": 8192, "max_boxes": 9},
        "boxes": [],
    }
    assert cluster.http("POST", "/v1/admin/workers", registration)[0] == 200
    assert cluster.http("PATCH", "/v1/admin/workers/W0rk3r000001/status", {"status": "active"})[0] == 200
    return "W0rk3r000001"


def status(cluster: Cluster) -> str:
    return str(cluster.http("GET", "/v1/admin/workers/W0rk3r000001")[2]["status"])


def run(cluster: Cluster, *command: str) -> int:
    return main.main([*command, "--coordinator", cluster.url, "--api-key", KEY])


def test_workers_are_listed_with_what_is_reserved(
    cluster: Cluster, one: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(cluster, "workers") == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.split() == "NAME ID STATUS BOXES CPUS MEMORY (MIB) HEARTBEAT".split()
    assert line.split()[:6] == ["one", one, "active", "0/9", "0/64", "0/8192"]
    assert run(cluster, "workers", "--format", "json") == 0
    assert [worker["name"] for worker in json.loads(capsys.readouterr().out)] == ["one"]


@pytest.mark.parametrize("by", ["name", "id"])
def test_drain_and_undrain(cluster: Cluster, one: str, by: str, capsys: pytest.CaptureFixture[str]) -> None:
    worker = "one" if by == "name" else one
    assert run(cluster, "drain", worker, "--wait", "--timeout", "60") == 0
    assert capsys.readouterr().out == "one takes no new boxes; no boxes hold room there\n"
    assert status(cluster) == "draining"
    assert run(cluster, "undrain", worker) == 0
    assert capsys.readouterr().out == "one takes new boxes\n"
    assert status(cluster) == "active"


def test_a_worker_that_says_goodbye_is_shown_with_the_reason(
    cluster: Cluster, one: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(cluster, "drain", "one")
    beat = {"epoch": "Ep0ch0000001", "leaving": True}
    assert cluster.http("POST", f"/v1/admin/workers/{one}/heartbeat", beat)[0] == 200
    capsys.readouterr()
    assert run(cluster, "workers") == 0
    shown = capsys.readouterr()
    assert "unreachable, draining" in shown.out
    assert shown.err.startswith("worker one was shut down at ")


def test_what_goes_wrong_is_told(cluster: Cluster, one: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cluster, "drain", "nosuch") == 1
    assert "worker not found: nosuch" in capsys.readouterr().err
    assert main.main(["workers", "--coordinator", cluster.url, "--api-key", "wrong"]) == 1
    assert main.main(["workers", "--coordinator", "http://127.0.0.1:1"]) == 1
    assert "set --coordinator or BOXLITE_COORDINATOR_URL" in capsys.readouterr().err
    with pytest.raises(SystemExit) as wrong:
        run(cluster, "drain", "one", "--timeout", "5")
    assert wrong.value.code == 2


class Api(ApiClient):
    """Answers with one worker after the other."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        super().__init__("http://127.0.0.1:1")
        self.answers = list(answers)

    def request(self, method: str, path: str, body: Any = None) -> bytes:
        if path.endswith("/workers"):
            return json.dumps({"workers": [self.answers[0]]}).encode()
        answer = self.answers.pop(0)
        if not answer:
            raise UpstreamUnavailableError("cannot reach it")
        return json.dumps(answer).encode()


def worker(boxes: int, **fields: Any) -> dict[str, Any]:
    return {"id": "w1", "name": "one", "draining": True, "reason": None, "reserved": {"boxes": boxes}, **fields}


def drain(*answers: dict[str, Any], timeout: float | None = None) -> int:
    return admin.drain(Api(*answers), argparse.Namespace(worker="one", wait=True, timeout=timeout), lambda _: None)


def test_waiting_tells_what_changes(capsys: pytest.CaptureFixture[str]) -> None:
    lost = worker(1, reason="worker one has not been heard of")
    assert drain(worker(2), worker(2), worker(1), lost, lost, worker(1), worker(0)) == 0
    assert capsys.readouterr().out.splitlines() == [
        "one takes no new boxes; 2 boxes hold room there",
        "one: 1 box holds room there",
        "one: 1 box holds room there; worker one has not been heard of",
        "one: 1 box holds room there",
        "one: no boxes hold room there",
    ]


def test_workers_say_where_orphans_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    row = worker(0, status="active", capacity={"max_boxes": None, "cpu_limit": None, "memory_mib": 9})
    row |= {"reserved": {"boxes": 0, "cpus": 0, "memory_mib": 0}, "last_heartbeat": "2026-01-01T00:00:00Z"}
    for refused, said in ((0, ""), (1, "worker one has an orphan"), (3, "worker one has 3 orphans")):
        row["orphans"] = {"total": 3, "refused": refused}
        assert admin.workers(Api(row), argparse.Namespace(format="table")) == 0
        told = capsys.readouterr().err
        assert told.startswith(said)
        assert bool(told) == bool(said)


def test_waiting_outlives_a_restart_of_the_coordinator(capsys: pytest.CaptureFixture[str]) -> None:
    assert drain(worker(1), worker(1), {}, {}, worker(0)) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["one: cannot reach it", "one: no boxes hold room there"]


def test_waiting_ends_when_the_time_is_up_or_the_worker_is_taken_back() -> None:
    with pytest.raises(admin.TimedOutError, match="one is not empty after 0 s: 2 boxes hold room there"):
        drain(worker(2), timeout=0)
    with pytest.raises(admin.InvalidStateError, match="taken back"):
        drain(worker(2), worker(2, draining=False))


def test_answers_that_say_come_again_say_when(cluster: Cluster, one: str) -> None:
    beat = {"epoch": "Ep0ch0000001", "leaving": True}
    assert cluster.http("POST", f"/v1/admin/workers/{one}/heartbeat", beat)[0] == 200
    code, headers, body = cluster.http("POST", "/v1/boxes", {"image": "alpine"})
    assert (code, body["error"]["message"]) == (503, "no worker can take the box: 1 unreachable")
    assert int(headers["retry-after"]) > 0
    code, headers, _ = call(cluster.port, "GET", "/v1/health/ready")
    assert (code, int(headers["retry-after"]) > 0) == (503, True)
    assert "retry-after" not in call(cluster.port, "GET", "/v1/health")[1]
