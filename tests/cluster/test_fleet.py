"""Several workers behind one address: placement, restarts, losses."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import Any

import grpc
import pytest
from support.cluster import Cluster, wait_until

from boxlite_server import rpc
from boxlite_server._gen import worker_pb2 as pb
from boxlite_server._gen import worker_pb2_grpc
from boxlite_server.local import dockerd


def create(cluster: Cluster, image: str, **fields: Any) -> dict[str, Any]:
    status, _, box = cluster.http("POST", "/v1/boxes", {"image": image, "memory_mib": 128, **fields})
    assert status == 201, box
    return box


def remove_all(cluster: Cluster) -> None:
    for box in cluster.http("GET", "/v1/boxes")[2]["boxes"]:
        assert cluster.http("DELETE", f"/v1/boxes/{box['box_id']}?force=true")[0] == 204
    assert cluster.containers() == []


def workers(cluster: Cluster) -> dict[str, dict[str, Any]]:
    return {worker["name"]: worker for worker in cluster.http("GET", "/v1/admin/workers")[2]["workers"]}


def host_of(cluster: Cluster, box: dict[str, Any]) -> str:
    return cluster.http("GET", f"/v1/admin/workers/by-box/{box['box_id']}")[2]["name"]


def status_of(cluster: Cluster, box: dict[str, Any]) -> str:
    return cluster.http("GET", f"/v1/boxes/{box['box_id']}")[2]["status"]


@pytest.fixture
def pair(new_cluster, second_docker_host: str) -> Cluster:
    """Two workers on two engines."""
    cluster = new_cluster()
    cluster.start_coordinator()
    cluster.start_worker(name="one")
    cluster.start_worker(name="two", docker_host=second_docker_host)
    return cluster


def test_twenty_equal_boxes_spread_ten_to_ten(pair: Cluster, test_image: str) -> None:
    boxes = [create(pair, test_image) for _ in range(20)]
    hosts = [host_of(pair, box) for box in boxes]
    assert (hosts.count("one"), hosts.count("two")) == (10, 10)
    assert {name: worker["reserved"]["boxes"] for name, worker in workers(pair).items()} == {"one": 10, "two": 10}
    for worker in pair.workers:
        found = dockerd.containers(worker.docker_host, f"boxlite.worker={workers(pair)[worker.name]['id']}")
        assert len(found) == 10
    remove_all(pair)
    for worker in pair.workers:
        assert dockerd.containers(worker.docker_host, f"boxlite.worker={workers(pair)[worker.name]['id']}") == []


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_restarted_worker_keeps_id_name_and_boxes(new_cluster, test_image: str, end: str) -> None:
    cluster = new_cluster()
    cluster.start_coordinator()
    worker = cluster.start_worker()
    before = workers(cluster)
    box = create(cluster, test_image, name="kept")
    assert cluster.http("POST", "/v1/boxes/kept/start")[0] == 200
    getattr(worker, end)()
    worker.start()
    after = workers(cluster)
    assert list(after) == list(before)
    assert {name: w["id"] for name, w in after.items()} == {name: w["id"] for name, w in before.items()}
    assert status_of(cluster, box) == "running"
    status, _, execution = cluster.http("POST", "/v1/boxes/kept/exec", {"command": "true"})
    assert status == 201, execution
    remove_all(cluster)


def test_a_restarted_coordinator_knows_everything(new_cluster, test_image: str) -> None:
    cluster = new_cluster()
    coordinator = cluster.start_coordinator()
    cluster.start_worker(name="one")
    box = create(cluster, test_image, name="kept", labels={"a": "b"})
    cluster.http("POST", "/v1/boxes/kept/start")
    coordinator.kill()
    coordinator.start()
    known = cluster.http("GET", "/v1/boxes/kept")[2]
    assert (known["box_id"], known["labels"], known["status"]) == (box["box_id"], {"a": "b"}, "running")
    assert cluster.http("POST", "/v1/boxes/kept/exec", {"command": "true"})[0] == 201
    remove_all(cluster)


def test_a_lost_worker_costs_only_its_own_boxes(pair: Cluster, test_image: str) -> None:
    boxes = {host_of(pair, box): box for box in (create(pair, test_image) for _ in range(2))}
    pair.workers[0].kill()
    assert status_of(pair, boxes["one"]) == "configured"
    status, _, body = pair.http("POST", f"/v1/boxes/{boxes['one']['box_id']}/start")
    assert (status, body["error"]["code"]) == (503, "upstream_unavailable")
    assert "one" in body["error"]["message"]
    # A call did not reach the worker: nobody knows any more how its boxes are, and no call is tried.
    lost = pair.http("GET", f"/v1/boxes/{boxes['one']['box_id']}")[2]
    assert (lost["status"], lost["error_message"]) == ("unknown", body["error"]["message"])
    listed = pair.http("GET", "/v1/boxes?status=unknown")[2]["boxes"]
    assert [box["box_id"] for box in listed] == [boxes["one"]["box_id"]]
    assert pair.http("POST", f"/v1/boxes/{boxes['two']['box_id']}/start")[0] == 200
    assert host_of(pair, create(pair, test_image)) == "two"
    status, _, body = pair.http("DELETE", f"/v1/boxes/{boxes['one']['box_id']}")
    assert (status, body["error"]["code"]) == (503, "upstream_unavailable")
    pair.workers[0].start()
    assert status_of(pair, boxes["one"]) == "configured"
    remove_all(pair)


def test_a_worker_that_does_not_answer_is_passed_by(new_cluster, test_image: str) -> None:
    """The worker accepts connections and never answers; as the emptiest one it is tried once, and not again."""
    cluster = new_cluster()
    cluster.start_coordinator()
    cluster.start_worker(name="well")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        registration = {
            "id": "Dumb00000001",
            "name": "dumb",
            "url": f"http://127.0.0.1:{listener.getsockname()[1]}",
            "secret": "x" * 16,
            "epoch": "Ep0ch0000001",
            "capacity": {"cpus": 64, "memory_mib": 1 << 20},
            "boxes": [],
        }
        assert cluster.http("POST", "/v1/admin/workers", registration)[0] == 200
        assert host_of(cluster, create(cluster, test_image)) == "well"
        assert workers(cluster)["dumb"]["status"] == "unreachable"
        assert host_of(cluster, create(cluster, test_image)) == "well"
        assert cluster.coordinator.log.read_text().count("cannot be created on dumb") == 1
        heartbeat = {"epoch": registration["epoch"], "boxes": []}
        assert cluster.http("POST", "/v1/admin/workers/Dumb00000001/heartbeat", heartbeat)[0] == 200
        assert workers(cluster)["dumb"]["status"] == "active"
    assert workers(cluster)["dumb"]["reserved"]["boxes"] == 0
    remove_all(cluster)


def test_draining_takes_no_new_boxes_and_keeps_the_old(pair: Cluster, test_image: str) -> None:
    first = create(pair, test_image)
    name = host_of(pair, first)
    worker_id = workers(pair)[name]["id"]
    status, _, worker = pair.http("PATCH", f"/v1/admin/workers/{worker_id}/status", {"status": "draining"})
    assert (status, worker["status"]) == (200, "draining")
    assert name not in [host_of(pair, create(pair, test_image)) for _ in range(3)]
    assert pair.http("POST", f"/v1/boxes/{first['box_id']}/start")[0] == 200
    next(worker for worker in pair.workers if worker.name == name).restart()
    assert workers(pair)[name]["status"] == "draining"
    status, _, body = pair.http("DELETE", f"/v1/admin/workers/{worker_id}")
    assert (status, body["error"]["code"]) == (409, "invalid_state")
    remove_all(pair)
    assert pair.http("DELETE", f"/v1/admin/workers/{worker_id}")[0] == 204
    # The worker registers again after its next heartbeat: it was forgotten, not shut down.
    wait_until(lambda: name in workers(pair), "the worker is back")


def test_draining_from_the_command_line_waits_for_the_last_box(pair: Cluster, test_image: str) -> None:
    boxes = [create(pair, test_image) for _ in range(2)]
    mine = next(box for box in boxes if host_of(pair, box) == "one")
    assert pair.http("POST", f"/v1/boxes/{mine['box_id']}/start")[0] == 200
    command = [sys.executable, "-m", "boxlite_server", "drain", "one", "--wait", "--coordinator", pair.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout
        assert waiting.stdout.readline() == "one takes no new boxes; 1 box holds room there\n"
        assert pair.http("POST", f"/v1/boxes/{mine['box_id']}/exec", {"command": "true"})[0] == 201
        assert waiting.poll() is None
        assert pair.http("POST", f"/v1/boxes/{mine['box_id']}/stop")[0] == 200
        assert waiting.stdout.readline() == "one: no boxes hold room there\n"
        assert waiting.wait(60) == 0
    remove_all(pair)


def test_a_full_fleet_says_why(new_cluster, test_image: str) -> None:
    cluster = new_cluster()
    cluster.start_coordinator()
    cluster.start_worker(name="tiny", max_boxes=1)
    create(cluster, test_image)
    status, _, body = cluster.http("POST", "/v1/boxes", {"image": test_image})
    assert (status, body["error"]["code"]) == (503, "upstream_unavailable")
    assert body["error"]["message"] == "no worker can take the box: 1 has no place (allows 1 boxes)"
    remove_all(cluster)
    status, headers, body = cluster.http("POST", "/v1/boxes", {"image": test_image, "cpus": 255})
    assert (status, body["error"]["code"]) == (503, "upstream_unavailable")
    assert "1 is too small (needs 255 cpus, has" in body["error"]["message"]
    assert int(headers["retry-after"]) > 0


def test_an_end_without_being_asked_is_noticed(cluster: Cluster, test_image: str) -> None:
    box = create(cluster, test_image, cmd=["sh", "-c", "exit 5"])
    assert cluster.http("POST", f"/v1/boxes/{box['box_id']}/start")[0] == 200
    wait_until(lambda: status_of(cluster, box) == "stopped", "the box is seen to have stopped")
    assert cluster.http("GET", f"/v1/boxes/{box['box_id']}")[2]["exit_code"] == 5
    remove_all(cluster)


def test_a_container_removed_behind_our_back_can_still_be_removed(cluster: Cluster, test_image: str) -> None:
    box = create(cluster, test_image)
    for container in cluster.containers():
        dockerd.request(cluster.docker_host, "DELETE", f"/containers/{container}?force=1")

    def is_gone() -> bool:  # the engine may show a container that it removes as dead before
        found = cluster.http("GET", f"/v1/boxes/{box['box_id']}")[2]
        return found["status"] == "failed" and "gone" in found["error_message"]

    wait_until(is_gone, "the box is seen to be gone")
    assert cluster.http("POST", f"/v1/boxes/{box['box_id']}/start")[0] in (404, 409)
    assert cluster.http("DELETE", f"/v1/boxes/{box['box_id']}")[0] == 204


def test_a_name_is_taken_once(cluster: Cluster, test_image: str) -> None:
    create(cluster, test_image, name="twin")
    status, _, body = cluster.http("POST", "/v1/boxes", {"image": test_image, "name": "twin"})
    assert (status, body["error"]["code"]) == (409, "already_exists")
    status, _, other = cluster.http("POST", "/v1/acme/boxes", {"image": test_image, "name": "twin"})
    assert status == 201
    assert cluster.http("GET", "/v1/acme/boxes/twin")[2]["box_id"] == other["box_id"]
    assert [box["box_id"] for box in cluster.http("GET", "/v1/acme/boxes")[2]["boxes"]] == [other["box_id"]]
    assert cluster.http("GET", f"/v1/boxes/{other['box_id']}")[0] == 404
    assert cluster.http("DELETE", "/v1/acme/boxes/twin")[0] == 204
    remove_all(cluster)


def test_a_worker_obeys_nobody_but_its_coordinator(cluster: Cluster) -> None:
    target = f"127.0.0.1:{cluster.workers[0].port}"
    with grpc.insecure_channel(target) as channel:
        stub = worker_pb2_grpc.WorkerServiceStub(channel)
        for metadata in ((), rpc.with_secret("guess")):
            with pytest.raises(grpc.RpcError) as refused:
                stub.ListBoxes(pb.Empty(), metadata=metadata, timeout=60)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_two_workers_do_not_share_a_home_or_a_name(new_cluster, test_image: str) -> None:
    cluster = new_cluster()
    cluster.start_coordinator()
    first = cluster.start_worker(name="one")
    with pytest.raises(AssertionError, match="home"):
        cluster.start_worker(home=first.home)
    with pytest.raises(AssertionError, match="name"):
        cluster.start_worker(name="one")
    assert list(workers(cluster)) == ["one"]


def test_two_workers_on_one_engine_touch_only_their_own(new_cluster, test_image: str) -> None:
    cluster = new_cluster()
    cluster.start_coordinator()
    cluster.start_worker(name="one")
    cluster.start_worker(name="two")
    boxes = {host_of(cluster, box): box for box in (create(cluster, test_image) for _ in range(2))}
    assert sorted(boxes) == ["one", "two"]
    assert cluster.http("DELETE", f"/v1/boxes/{boxes['one']['box_id']}")[0] == 204
    assert status_of(cluster, boxes["two"]) == "configured"
    assert len(cluster.containers()) == 1
    remove_all(cluster)


def test_labels_and_pages(cluster: Cluster, test_image: str) -> None:
    made = [create(cluster, test_image, labels={"n": str(n)})["box_id"] for n in range(3)]
    seen, token = [], ""
    while True:
        page = cluster.http("GET", f"/v1/boxes?page_size=2{token}")[2]
        seen += [box["box_id"] for box in page["boxes"]]
        if not page["next_page_token"]:
            break
        token = f"&page_token={page['next_page_token']}"
    assert seen == made
    assert [box["box_id"] for box in cluster.http("GET", "/v1/boxes?label=n%3D1")[2]["boxes"]] == [made[1]]
    remove_all(cluster)
