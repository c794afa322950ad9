"""A worker that dies or is stopped under its clients, and comes back: boxes and commands go on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.attach import Attached, attached
from support.boxes import create, execute, start, state, status_of
from support.cluster import Cluster, Worker, wait_until


@pytest.fixture(scope="module")
def cluster(new_shared_cluster: Any, test_image: str) -> Cluster:
    """A cluster for this module alone: its worker is ended again and again."""
    cluster: Cluster = new_shared_cluster()
    cluster.start_coordinator()
    cluster.start_worker()
    return cluster


@pytest.fixture
def worker(cluster: Cluster) -> Worker:
    return cluster.workers[0]


ENDS = pytest.mark.parametrize("end", [Worker.kill, Worker.stop], ids=["killed", "stopped"])


def shown(cluster: Cluster) -> dict[str, Any]:
    return dict(cluster.http("GET", "/v1/admin/workers")[2]["workers"][0])


@ENDS
def test_an_attached_command_goes_on(
    cluster: Cluster, worker: Worker, running_box: str, end: Callable[[Worker], None]
) -> None:
    script = "echo one; read x; echo $x; until test -e /go; do sleep 0.05; done; echo three >&2; cat; exit 7"
    execution = execute(cluster, running_box, script)
    path = f"{running_box}/executions/{execution}/attach"
    with attached(cluster, path) as client:
        client.until(b"one\n")
        end(worker)
        client.to_the_cut()
        assert client.exit_code is None
    worker.start()
    with attached(cluster, f"{path}?received=4") as client:
        client.send(b"two\n")
        client.until(b"two\n")
        execute(cluster, running_box, "touch /go")
        client.send(b"last words")
        client.say(type="stdin_eof")
        assert client.to_the_end() == 7
    assert (client.stdout, client.stderr) == (b"two\nlast words", b"three\n")
    assert client.complaints == []
    found = state(cluster, running_box, execution)
    assert (found["status"], found["exit_code"], found["error_message"]) == ("completed", 7, None)


@ENDS
def test_a_shell_that_a_client_feeds_goes_on_with_its_box(
    cluster: Cluster, worker: Worker, end: Callable[[Worker], None]
) -> None:
    box = create(cluster, cmd=["sh"])
    with attached(cluster, f"{box}/attach") as client:
        start(cluster, box)
        client.send(b"x=42; echo begun\n")
        client.until(b"begun\n")
        client.settle()
        end(worker)
        client.to_the_cut()
    worker.start()
    assert status_of(cluster, box) == "running"
    with attached(cluster, f"{box}/attach?received=6") as client:
        client.send(b"echo $x; exit 3\n")
        assert client.to_the_end() == 3
    assert client.stdout == b"42\n"
    assert client.complaints == []
    assert cluster.http("DELETE", f"/v1/boxes/{box}?force=true")[0] == 204


def test_a_command_that_ends_while_the_worker_is_away(cluster: Cluster, worker: Worker, running_box: str) -> None:
    execution = execute(cluster, running_box, "read x; echo got; sleep 0.5; echo said; exit 5")
    path = f"{running_box}/executions/{execution}/attach"
    with attached(cluster, path) as client:
        client.send(b"now\n")
        client.until(b"got\n")
        worker.kill()
        client.to_the_cut()
    wait_until(lambda: not commands(cluster), "the command has ended")
    worker.start()
    with attached(cluster, path) as client:
        assert client.to_the_end() == 5
    assert client.stdout.endswith(b"said\n")


def test_a_reader_of_events_loses_nothing_with_the_worker(cluster: Cluster, worker: Worker, running_box: str) -> None:
    execution = execute(cluster, running_box, "echo said; exit 3")
    path = f"/v1/boxes/{running_box}/executions/{execution}/output"
    before = events(cluster, path)
    assert [name for name, _, _ in before] == ["stdout", "exit"]
    worker.kill()
    worker.start()
    assert events(cluster, path) == before
    assert [name for name, _, _ in events(cluster, path, before[0][1])] == ["exit"]


def events(cluster: Cluster, path: str, last_event_id: str = "0") -> list[tuple[str, str, Any]]:
    """Name, id and data of all server-sent events, to the end of the stream."""
    status, _, body = cluster.http("GET", path, headers={"Last-Event-ID": last_event_id})
    assert status == 200
    blocks = [block.splitlines() for block in body.decode().split("\n\n") if block and not block.startswith(":")]
    fields = [dict(line.split(": ", 1) for line in block) for block in blocks]
    return [(each["event"], each["id"], json.loads(each["data"])) for each in fields]


def commands(cluster: Cluster) -> bool:
    """Whether a command runs in the box, as the engine says."""
    import docker

    api = docker.APIClient(base_url=cluster.docker_host, version="auto")
    try:
        return any(api.inspect_container(found)["ExecIDs"] for found in cluster.containers())
    finally:
        api.close()


def test_a_worker_that_is_stopped_says_goodbye_and_its_readers_are_told(
    cluster: Cluster, worker: Worker, running_box: str
) -> None:
    execution = execute(cluster, running_box, "echo x; sleep 1000")
    with attached(cluster, f"{running_box}/executions/{execution}/attach") as client:
        client.until(b"x\n")
        worker.stop()
        # At once, not after heartbeats that are missing.
        assert shown(cluster)["status"] == "unreachable"
        client.to_the_cut()
        assert "shutting down" in client.complaints[-1]["message"]
    status, _, body = cluster.http("POST", f"/v1/boxes/{running_box}/exec", {"command": "true"})
    assert (status, body["error"]["code"]) == (503, "upstream_unavailable")
    worker.start()
    assert shown(cluster)["status"] == "active"
    assert state(cluster, running_box, execution)["status"] == "running"
    assert cluster.http("DELETE", f"/v1/boxes/{running_box}/executions/{execution}")[0] == 204
    assert end_of(cluster, running_box, execution).exit_code == 137


def end_of(cluster: Cluster, box: str, execution: str) -> Attached:
    with attached(cluster, f"{box}/executions/{execution}/attach") as client:
        client.to_the_end()
    return client


def test_nothing_is_kept_of_what_has_ended(cluster: Cluster, worker: Worker, running_box: str) -> None:
    execution = execute(cluster, running_box, "exit 1")
    end_of(cluster, running_box, execution)
    running = execute(cluster, running_box, "sleep 1000")
    holder = next(pid for pid in held_by(worker.home))
    worker.kill()
    worker.start()
    assert held_by(worker.home) == [holder], "the same one goes on"
    assert end_of(cluster, running_box, execution).exit_code == 1
    cluster.http("DELETE", f"/v1/boxes/{running_box}/executions/{running}")
    assert end_of(cluster, running_box, running).exit_code == 137
    worker.stop()
    wait_until(lambda: not held_by(worker.home), "with nothing to hold the holder ends soon")
    worker.start()


def held_by(home: Path) -> list[int]:
    """The processes that keep connections for the worker with that home."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if any(word.endswith(b"holder.py") for word in words) and str(home).encode() in words:
                found.append(int(process.name))
    return found
