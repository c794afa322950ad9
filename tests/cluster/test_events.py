"""The events of a whole cluster: what happens to boxes is told as it happens, once, whatever is restarted meanwhile."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from support.boxes import create, start
from support.cluster import Cluster, call, wait_until
from support.command import boxlite, output
from support.events import Event, followed
from support.postgresql import Server

NewCluster = Callable[..., Cluster]


def about(events: list[Event], box: str) -> list[str]:
    """What is told of a box, without the name of the group."""
    return [event["kind"].removeprefix("box.") for event in events if event["box_id"] == box]


def stop(cluster: Cluster, box: str) -> None:
    assert cluster.http("POST", f"/v1/boxes/{box}/stop", {"timeout_seconds": 0})[0] == 200


def remove(cluster: Cluster, box: str) -> None:
    assert cluster.http("DELETE", f"/v1/boxes/{box}?force=true")[0] == 204


LIFE = ["placed", "created", "starting", "started", "stopping", "stopped", "removing", "removed"]


def test_the_life_of_a_box_is_told_as_it_goes(cluster: Cluster) -> None:
    with followed(cluster.port) as told:
        box = create(cluster, name="web")
        told.until("box.created", 5)
        start(cluster, box)
        told.until("box.started", 5)
        stop(cluster, box)
        told.until("box.stopped", 5)
        remove(cluster, box)
        events = told.until("box.removed", 5)
    assert about(events, box) == LIFE
    assert {event["name"] for event in events} == {"web"}
    statuses = ["configured"] * 3 + ["running", "stopping", "stopped", "stopping", None]
    assert [event["status"] for event in events] == statuses
    stopped = next(event for event in events if event["kind"] == "box.stopped")
    assert stopped["details"] in [{"exit_code": code, "error_message": None} for code in (137, 143)]
    assert [event["id"] for event in events] == sorted({event["id"] for event in events})


def test_a_box_that_ends_by_itself_or_runs_out_of_memory_is_told(cluster: Cluster) -> None:
    with followed(cluster.port, kind=["box.stopped", "box.out_of_memory"]) as told:
        box = create(cluster, cmd=["sh", "-c", "exit 7"], start=True)
        [event] = told.until("box.stopped")
        assert (event["box_id"], event["details"]["exit_code"]) == (box, 7)
        hungry = create(cluster, cmd=["sh", "-c", "tail /dev/zero"], memory_mib=128, start=True)
        events = told.until(lambda events: len(events) == 3)
        assert about(events, hungry) == ["out_of_memory", "stopped"]
        assert "memory limit" in events[-1]["details"]["error_message"]
    remove(cluster, box)
    remove(cluster, hungry)


def test_a_box_that_no_worker_takes_is_told(cluster: Cluster) -> None:
    with followed(cluster.port) as told:
        body = {"image": "alpine:latest", "name": "huge", "memory_mib": 1_000_000}
        assert cluster.http("POST", "/v1/boxes", body)[0] == 503
        [event] = told.until("box.not_placed")
    assert (event["box_id"], event["name"]) == (None, "huge")
    assert "no worker can take the box" in event["details"]["error_message"]


def test_a_reader_asks_for_a_box_and_for_kinds(cluster: Cluster) -> None:
    with (
        followed(cluster.port, box="mine") as by_name,
        followed(cluster.port, "/v1/default/events", kind="volume") as volumes,
        followed(cluster.port, "/v1/acme/events") as of_others,
    ):
        mine, other = create(cluster, name="mine"), create(cluster, name="another")
        volume = cluster.http("POST", "/v1/volumes", {"name": "data"})[2]["id"]
        assert cluster.http("DELETE", f"/v1/volumes/{volume}")[0] == 204
        for box in (other, mine):
            remove(cluster, box)
        assert {event["box_id"] for event in by_name.until("box.removed")} == {mine}
        assert [e["kind"] for e in volumes.until("volume.removed")] == ["volume.created", "volume.removed"]
        assert volumes.events[0]["details"] == {"volume_id": volume}
        assert of_others.events == []
    with followed(cluster.port, after="0", box=mine, follow="false") as everything:
        assert about(everything.to_the_end(), mine) == ["placed", "created", "removing", "removed"]
    assert cluster.http("GET", "/v1/events?kind=box.exploded")[0] == 400
    for wrong in ("x", "-1", str(2**63)):
        assert cluster.http("GET", "/v1/events", headers={"Last-Event-ID": wrong})[0] == 400


def test_no_secret_and_no_environment_is_told(cluster: Cluster) -> None:
    remove(cluster, create(cluster, env={"TOKEN": "hunter2"}, labels={"a": "b"}))
    status, _, body = cluster.http("GET", "/v1/admin/coordinator/events?last_event_id=0&follow=false")
    assert status == 200
    assert b"hunter2" not in body
    assert b"TOKEN" not in body


def test_nothing_is_lost_or_told_twice_when_the_coordinator_is_restarted(cluster: Cluster) -> None:
    assert cluster.coordinator is not None
    seen: list[Event] = []
    box, position = create(cluster), ""
    for stage in (start, stop, remove):
        with followed(cluster.port, after=position or "0", box=box) as told:
            stage(cluster, box)
            told.until(f"box.{ {start: 'started', stop: 'stopped', remove: 'removed'}[stage] }")
            cluster.coordinator.restart()
            wait_until(lambda: told.ended, "the coordinator has ended the stream")
            seen += told.events
            position = told.position
        wait_until(lambda: worker_is_back(cluster), "the worker is back")
    assert about(seen, box) == LIFE
    assert len({event["id"] for event in seen}) == len(seen)


def worker_is_back(cluster: Cluster) -> bool:
    return all(each["status"] == "active" for each in cluster.http("GET", "/v1/admin/workers")[2]["workers"])


def test_a_worker_is_told_to_operators(cluster: Cluster) -> None:
    [process] = cluster.workers
    box = create(cluster, start=True, cmd=["sleep", "1000"])
    with followed(cluster.port, "/v1/admin/coordinator/events") as told, followed(cluster.port) as tenants:
        [row] = cluster.http("GET", "/v1/admin/workers")[2]["workers"]
        for status in ("draining", "active"):
            assert cluster.http("PATCH", f"/v1/admin/workers/{row['id']}/status", {"status": status})[0] == 200
        process.restart()
        workers = [event for event in told.until("worker.back") if event["kind"].startswith("worker.")]
        assert [event["kind"].removeprefix("worker.") for event in workers][:3] == ["draining", "active", "lost"]
        assert {event["name"] for event in workers} == {row["name"]}
        assert workers[2]["details"] == {"worker_id": row["id"], "error_message": "it was shut down"}
        kinds = [event["kind"] for event in tenants.until("box.reachable")]
        assert kinds[:2] == ["box.unreachable", "box.reachable"]
    remove(cluster, box)


def test_the_command_prints_what_happens(cluster: Cluster) -> None:
    box = create(cluster, name="printed")
    command = [sys.executable, "-m", "boxlite_server.client", "--url", cluster.url, "events", "--since", "10m"]
    with subprocess.Popen([*command, "--filter", f"box={box}"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert f"box.placed printed ({box}) image=" in process.stdout.readline()
        assert "box.created" in process.stdout.readline()
        assert cluster.coordinator is not None
        cluster.coordinator.restart()
        remove(cluster, box)
        assert "box.removing" in process.stdout.readline()
        assert "box.removed" in process.stdout.readline()
        process.kill()
    lines = output(
        boxlite(cluster, "events", "--no-follow", "--since", "1h", "--filter", "kind=box.removed")
    ).splitlines()
    assert f"box.removed printed ({box})" in lines[-1]


def test_a_stream_ends_with_its_key(new_shared_cluster: NewCluster, test_image: str) -> None:
    cluster = new_shared_cluster()
    key = cluster.new_key("--prefix", "acme")
    cluster.start_coordinator()
    with followed(cluster.port, headers={"Authorization": f"Bearer {key}"}) as told:
        cluster.run("keys", "revoke", key.split("_")[1], "--database", cluster.database)
        wait_until(lambda: told.ended, "the stream ends with its key", 20)


@pytest.fixture(scope="module")
def pair(new_shared_cluster: NewCluster, postgresql: Server, test_image: str) -> Iterator[Cluster]:
    """Two coordinators on one PostgreSQL; the worker knows the first one."""
    cluster = new_shared_cluster(database=postgresql.new_database())
    cluster.start_coordinator()
    cluster.add_coordinator()
    cluster.start_worker()
    yield cluster


def test_what_one_coordinator_does_another_tells(pair: Cluster) -> None:
    here, there = pair.port, pair.others[0].port
    with followed(there) as told, followed(here) as at_home:
        box = create(pair)
        told.until("box.created", 10)
        start(pair, box)
        told.until("box.started", 10)
        assert call(there, "POST", f"/v1/boxes/{box}/stop", {"timeout_seconds": 0})[0] == 200
        at_home.until("box.stopped", 10)
        remove(pair, box)
        assert about(told.until("box.removed", 10), box) == LIFE
        assert at_home.until("box.removed", 10) == told.events


def test_a_reader_goes_on_at_the_other_coordinator(pair: Cluster) -> None:
    with followed(pair.port) as first:
        boxes = [create(pair) for _ in range(3)]
        first.until(lambda events: len(events) >= 4)
        part = list(first.events)
    with followed(pair.others[0].port, after=str(part[-1]["id"])) as second:
        for box in boxes:
            remove(pair, box)
        second.until(lambda events: [event["kind"] for event in events].count("box.removed") == 3)
        whole = part + second.events
    with followed(pair.port, after=str(part[0]["id"] - 1), follow="false") as everything:
        assert everything.to_the_end() == whole
    for box in boxes:
        assert about(whole, box) == ["placed", "created", "removing", "removed"]
