"""A cluster of the last version is replaced by today's, first the coordinator, then the worker, while boxes run and
commands are in the middle of their work."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import previous
from support.attach import attached
from support.boxes import create, execute, start, state, status_of
from support.cluster import Cluster, wait_until
from support.postgresql import Server

pytestmark = pytest.mark.timeout(300)

LAST = "c455f75"
OLDER = "bff3112"  # before the audit, so that a schema in between is skipped

# It writes until it is told to end, to both streams.
WRITER = "i=0; while test ! -e /go; do i=$((i+1)); echo $i; echo $i >&2; sleep 0.02; done; echo end $i; exit 7"
# It asks, and says what it was answered.
READER = "echo ready; while read line; do echo got $line; done; echo bye; exit 3"


@pytest.fixture(params=[(LAST, False), (LAST, True), (OLDER, False)], ids=["last", "last-postgresql", "older"])
def cluster(request: pytest.FixtureRequest, new_cluster: Callable[..., Cluster], tmp_path: Path) -> Iterator[Cluster]:
    """A coordinator and a worker of a version from before."""
    commit, is_shared = request.param
    before = previous.running(previous.checkout(commit, tmp_path))
    server: Server | None = request.getfixturevalue("postgresql") if is_shared else None
    cluster = new_cluster(database=server.new_database() if server else None)
    cluster.start_coordinator(within=before)
    cluster.start_worker(within=before)
    yield cluster


def is_whole(stdout: bytes, stderr: bytes) -> bool:
    """Whether the writer has left nothing out, and said nothing twice."""
    *lines, end = stdout.decode().splitlines()
    counted = [str(number) for number in range(1, len(lines) + 1)]
    return len(lines) > 0 and lines == stderr.decode().splitlines() == counted and end == f"end {len(lines)}"


def kept(cluster: Cluster, box: str, execution: str) -> tuple[bytes, bytes]:
    """The output of an execution from its first byte on, by server-sent events."""
    status, _, body = cluster.http("GET", f"/v1/boxes/{box}/executions/{execution}/output")
    assert status == 200
    streams = {"stdout": b"", "stderr": b""}
    for block in body.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields.get("event") in streams:
            streams[fields["event"]] += b64decode(json.loads(fields["data"])["data"])
    return streams["stdout"], streams["stderr"]


def ran(cluster: Cluster, box: str, script: str) -> str:
    status, _, done = cluster.http("POST", f"/v1/boxes/{box}/run", {"command": "sh", "args": ["-c", script]})
    assert (status, done["exit_code"]) == (200, 0), done
    return str(done["stdout"])


def test_commands_go_on_and_their_output_is_whole(cluster: Cluster) -> None:
    coordinator, worker = cluster.coordinator, cluster.workers[0]
    assert coordinator
    box = create(cluster)
    start(cluster, box)
    writer, reader = execute(cluster, box, WRITER), execute(cluster, box, READER)
    path = f"{box}/executions/{reader}/attach"
    with attached(cluster, path) as client:
        client.until(b"ready\n")
        client.send(b"before\n")
        client.until(b"got before\n")

        coordinator.restart(within=())
        client.to_the_cut()
    assert state(cluster, box, writer)["status"] == "running"
    assert ran(cluster, box, "echo between") == "between\n"  # today's coordinator, and a worker from before
    received = client.received
    with attached(cluster, f"{path}?received={received}") as client:
        client.send(b"between\n")
        client.until(b"got between\n")

        worker.restart(within=())
        client.to_the_cut()
    received += client.received
    wait_until(lambda: cluster.http("GET", "/v1/health/ready")[0] == 200, "today's worker is there")
    assert status_of(cluster, box) == "running"
    ran(cluster, box, "touch /go")
    with attached(cluster, f"{path}?received={received}") as client:
        client.send(b"after\n")
        client.until(b"got after\n")
        client.say(type="stdin_eof")
        assert client.to_the_end() == 3
    wait_until(lambda: state(cluster, box, writer)["status"] != "running", "the writer has ended")
    assert state(cluster, box, writer)["exit_code"] == 7
    assert is_whole(*kept(cluster, box, writer))
    assert kept(cluster, box, reader) == (b"ready\ngot before\ngot between\ngot after\nbye\n", b"")


def test_what_the_last_version_kept_is_there(cluster: Cluster) -> None:
    coordinator, worker = cluster.coordinator, cluster.workers[0]
    assert coordinator
    volume = cluster.http("POST", "/v1/volumes", {"name": "kept"})[2]
    box = create(cluster, name="kept", labels={"a": "b"}, volumes=[{"managed_volume": "kept", "guest_path": "/data"}])
    ran(cluster, box, "echo one > /file; echo two > /data/file")
    assert cluster.http("POST", f"/v1/boxes/{box}/stop")[0] == 200
    assert cluster.http("POST", f"/v1/boxes/{box}/snapshots", {"name": "before"})[0] in (200, 201)
    again = {"Idempotency-Key": "of the last version"}
    first = cluster.http("POST", "/v1/boxes", {"image": "alpine:latest"}, headers=again)[2]
    before = cluster.http("GET", "/v1/boxes/kept")[2]

    coordinator.restart(within=())
    worker.restart(within=())
    wait_until(lambda: cluster.http("GET", "/v1/health/ready")[0] == 200, "today's worker is there")

    after = cluster.http("GET", "/v1/boxes/kept")[2]
    assert {key: after[key] for key in before if key != "updated_at"} == {
        key: value for key, value in before.items() if key != "updated_at"
    }
    assert cluster.http("POST", "/v1/boxes", {"image": "alpine:latest"}, headers=again)[2] == first
    assert ran(cluster, box, "cat /file /data/file; echo three > /file") == "one\ntwo\n"
    assert cluster.http("POST", f"/v1/boxes/{box}/stop")[0] == 200
    assert cluster.http("POST", f"/v1/boxes/{box}/snapshots/before/restore")[0] == 204
    assert ran(cluster, box, "cat /file") == "one\n"
    for each in (box, first["box_id"]):
        assert cluster.http("DELETE", f"/v1/boxes/{each}?force=true")[0] == 204
    assert cluster.http("DELETE", f"/v1/volumes/{volume['id']}")[0] == 204
    assert cluster.containers() == []
