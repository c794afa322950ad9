"""Images, volumes, mounts and ports over HTTP, on real workers."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.cluster import Cluster, wait_until


@pytest.fixture(scope="module")
def allowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that worker one lets boxes mount from."""
    return tmp_path_factory.mktemp("allowed")


@pytest.fixture(scope="module")
def pair(new_shared_cluster: Any, docker_host: str, second_docker_host: str, allowed: Path) -> Cluster:
    """Two workers on two engines; the operator of one lets boxes have something of the host."""
    cluster: Cluster = new_shared_cluster()
    cluster.start_coordinator()
    cluster.start_worker("--allow-host-path", str(allowed), "--allow-cap", "cap_sys_ptrace", name="one")
    cluster.start_worker(name="two", docker_host=second_docker_host)
    return cluster


def request(cluster: Cluster, expected: int, method: str, path: str, body: Any = None) -> Any:
    status, _, answer = cluster.http(method, f"/v1{path}", body)
    assert status == expected, answer
    return answer


def refused(cluster: Cluster, method: str, path: str, body: Any = None) -> tuple[int, str, str]:
    """Status, code and message."""
    status, _, answer = cluster.http(method, f"/v1{path}", body)
    assert status >= 400, answer
    return status, answer["error"]["code"], answer["error"]["message"]


@contextmanager
def box(cluster: Cluster, image: str, **fields: Any) -> Iterator[dict[str, Any]]:
    made = request(cluster, 201, "POST", "/boxes", {"image": image, "memory_mib": 128, **fields})
    yield made
    request(cluster, 204, "DELETE", f"/boxes/{made['box_id']}?force=true")


@contextmanager
def volume(cluster: Cluster, **fields: Any) -> Iterator[dict[str, Any]]:
    made = request(cluster, 201, "POST", "/volumes", fields)
    yield made
    request(cluster, 204, "DELETE", f"/volumes/{made['id']}?force=true")


def run(cluster: Cluster, made: dict[str, Any], script: str) -> int:
    """The exit code of a command in a box."""
    path = f"/boxes/{made['box_id']}"
    body = {"command": "sh", "args": ["-c", script]}
    execution = request(cluster, 201, "POST", f"{path}/exec", body)["execution_id"]
    found: dict[str, Any] = {}

    def ended() -> bool:
        found.update(request(cluster, 200, "GET", f"{path}/executions/{execution}"))
        return found["status"] != "running"

    wait_until(ended, f"{script} has ended")
    return int(found["exit_code"])


# ---- volumes ----


def test_the_life_of_a_volume(pair: Cluster) -> None:
    with volume(pair, name="data") as made:
        assert made["name"] == "data"
        assert len(made["id"]) == 12
        assert (made["state"], made["size_bytes"]) == ("ready", None)
        assert made["created_at"].endswith("Z")
        for key in ("data", made["id"]):
            assert request(pair, 200, "GET", f"/volumes/{key}") == made
        assert made in request(pair, 200, "GET", "/volumes")["volumes"]
        assert request(pair, 200, "GET", "/other/volumes")["volumes"] == []
        assert refused(pair, "GET", "/other/volumes/data")[:2] == (404, "not_found")
        assert refused(pair, "POST", "/volumes", {"name": "data"})[:2] == (409, "already_exists")
        other = request(pair, 201, "POST", "/other/volumes", {"name": "data"})
        request(pair, 204, "DELETE", f"/other/volumes/{other['id']}")
    with volume(pair) as unnamed:
        assert unnamed["name"] == unnamed["id"]
    assert refused(pair, "DELETE", "/volumes/data")[:2] == (404, "not_found")
    request(pair, 204, "DELETE", "/volumes/data?force=true")
    assert volumes_of(pair) == []


def volumes_of(cluster: Cluster) -> list[str]:
    """The cluster's volumes on either engine."""
    return [found for worker in cluster.workers for found in cluster.volumes(worker.docker_host)]


def test_boxes_go_where_their_volume_is_and_find_what_was_written(pair: Cluster, test_image: str) -> None:
    mounts = [{"managed_volume": "shared", "guest_path": "/data"}]
    with volume(pair, name="shared"):
        with box(pair, test_image, volumes=mounts) as first:
            assert run(pair, first, "echo kept > /data/file") == 0
            home = first["worker"]
            # The other worker is the less loaded one now.
            with box(pair, test_image, volumes=[mounts[0] | {"read_only": True}]) as second:
                assert second["worker"] == home
                assert run(pair, second, "grep kept /data/file") == 0
                assert run(pair, second, "echo x > /data/file") != 0
            status, code, message = refused(pair, "DELETE", "/volumes/shared?force=true")
            assert (status, code) == (409, "invalid_state")
            assert first["box_id"] in message
        with box(pair, test_image, volumes=mounts) as third:
            assert run(pair, third, "grep kept /data/file") == 0


def test_a_volume_is_placed_for_good(pair: Cluster, test_image: str) -> None:
    workers = {worker["name"]: worker["id"] for worker in request(pair, 200, "GET", "/admin/workers")["workers"]}
    with volume(pair, name="pinned"):
        with box(pair, test_image, volumes=[{"managed_volume": "pinned", "guest_path": "/d"}]) as made:
            home = made["worker"]
        request(pair, 200, "PATCH", f"/admin/workers/{workers[home]}/status", {"status": "draining"})
        mount = {"managed_volume": "pinned", "guest_path": "/d"}
        status, code, message = refused(pair, "POST", "/boxes", {"image": test_image, "volumes": [mount]})
        assert (status, code) == (503, "upstream_unavailable")
        assert message.endswith(": 1 does not have its volumes, 1 draining")
        # Elsewhere there is room for a volume; a box of both is nowhere.
        with volume(pair, name="far"):
            body = {"image": test_image, "volumes": [mount, {"managed_volume": "far", "guest_path": "/f"}]}
            status, code, message = refused(pair, "POST", "/boxes", body)
            assert (status, code) == (400, "invalid_argument")
            assert "different workers" in message
        status, code, message = refused(pair, "DELETE", f"/admin/workers/{workers[home]}")
        assert (status, "0 boxes and 1 volume;" in message) == (409, True)
        request(pair, 200, "PATCH", f"/admin/workers/{workers[home]}/status", {"status": "active"})


def test_removing_a_box_keeps_its_volume_in_every_way(pair: Cluster, test_image: str) -> None:
    mounts = [{"managed_volume": "kept", "guest_path": "/data"}]
    with volume(pair, name="kept"):
        with box(pair, test_image, volumes=mounts) as made:
            assert run(pair, made, "echo 1 > /data/file") == 0
        gone = request(pair, 201, "POST", "/boxes", {"image": test_image, "volumes": mounts, "auto_remove": True})
        request(pair, 200, "POST", f"/boxes/{gone['box_id']}/start")
        request(pair, 200, "POST", f"/boxes/{gone['box_id']}/stop", {"timeout_seconds": 0})
        with box(pair, test_image, volumes=mounts) as made:
            assert run(pair, made, "grep 1 /data/file") == 0


def test_copies_of_a_box_have_what_it_has_of_the_host(pair: Cluster, test_image: str) -> None:
    with volume(pair, name="common") as made:
        mount = {"managed_volume": "common", "guest_path": "/data"}
        wanted = {"capabilities": {"drop": ["ALL"]}}
        fields = {"volumes": [mount], "ports": [{"guest_port": 80}], "advanced": wanted}
        script = "test -f /data/file && grep -q '^CapEff:.0*$' /proc/self/status"
        with box(pair, test_image, **fields) as source:
            path = f"/boxes/{source['box_id']}"
            assert run(pair, source, "echo kept > /data/file") == 0
            clone = request(pair, 201, "POST", f"{path}/clone", {})
            assert run(pair, clone, script) == 0
            assert clone["box_id"] in refused(pair, "DELETE", f"/volumes/{made['id']}")[2]
            request(pair, 204, "DELETE", f"/boxes/{clone['box_id']}?force=true")
            request(pair, 200, "POST", f"{path}/stop", {"timeout_seconds": 0})
            request(pair, 201, "POST", f"{path}/snapshots", {"name": "s"})
            request(pair, 204, "POST", f"{path}/snapshots/s/restore")
            (port,) = request(pair, 200, "POST", f"{path}/start")["ports"]
            assert port["host_port"]
            assert run(pair, source, script) == 0
            _, _, archive = pair.http("POST", f"/v1{path}/export", {})
            # An archive has no mounts: what they hold is not the box's.
            octets = {"Content-Type": "application/octet-stream"}
            status, _, copy = pair.http("POST", "/v1/boxes/import", archive, headers=octets)
            assert status == 201, copy
            assert run(pair, copy, "test ! -e /data/file && grep -q '^CapEff:.0*$' /proc/self/status") == 0
            request(pair, 204, "DELETE", f"/boxes/{copy['box_id']}?force=true")


# ---- paths of the host, capabilities ----


def test_host_paths_go_to_a_worker_that_allows_them(pair: Cluster, test_image: str, allowed: Path) -> None:
    (allowed / "file").write_text("hello")
    mounts = [{"host_path": str(allowed), "guest_path": "/data", "read_only": True}]
    for _ in range(2):
        with box(pair, test_image, volumes=mounts) as made:
            assert made["worker"] == "one"
            assert run(pair, made, "grep hello /data/file") == 0
            assert run(pair, made, "touch /data/other") != 0


def test_other_host_paths_are_refused(pair: Cluster, test_image: str, allowed: Path, tmp_path: Path) -> None:
    (allowed / "link").symlink_to(tmp_path)
    for path in ("/", "/etc", str(tmp_path), f"{allowed}/..", f"{allowed}/link"):
        body = {"image": test_image, "volumes": [{"host_path": path, "guest_path": "/data"}]}
        status, code, message = refused(pair, "POST", "/boxes", body)
        assert (status, code) == (400, "invalid_argument")
        assert "--allow-host-path" in message
    assert request(pair, 200, "GET", "/boxes")["boxes"] == []
    (allowed / "link").unlink()


def test_capabilities(pair: Cluster, test_image: str) -> None:
    assert request(pair, 200, "GET", "/config")["capabilities"]["linux_capabilities_enabled"] is True
    wanted = {"capabilities": {"add": ["sys_ptrace", "CAP_CHOWN"], "drop": ["all"]}}
    with box(pair, test_image, advanced=wanted) as made:
        assert made["worker"] == "one"
        assert run(pair, made, "grep -q '^CapEff:.0000000000080001$' /proc/self/status") == 0
    body = {"image": test_image, "advanced": {"capabilities": {"add": ["SYS_ADMIN"]}}}
    status, code, message = refused(pair, "POST", "/boxes", body)
    assert (status, code) == (400, "unsupported")
    assert "--allow-cap SYS_ADMIN" in message


# ---- ports ----


def test_a_port_of_a_box(pair: Cluster, test_image: str) -> None:
    command = ["sh", "-c", "nc -l -p 80 -e echo served; read forever"]
    with box(pair, test_image, ports=[{"guest_port": 80}], cmd=command) as made:
        at_rest = {"guest_port": 80, "host_port": 0, "protocol": "tcp", "host_ip": "127.0.0.1", "address": None}
        assert made["ports"] == [at_rest]
        (port,) = request(pair, 200, "POST", f"/boxes/{made['box_id']}/start")["ports"]
        assert port == at_rest | {"host_port": port["host_port"], "address": f"127.0.0.1:{port['host_port']}"}
        assert request(pair, 200, "GET", f"/boxes/{made['box_id']}")["ports"] == [port]
        said = b""
        while not said:  # the engine's proxy listens before the service in the box does
            with socket.create_connection(("127.0.0.1", port["host_port"]), 60) as connection:
                said = connection.recv(100)
        assert said == b"served\n"
        stopped = request(pair, 200, "POST", f"/boxes/{made['box_id']}/stop", {"timeout_seconds": 0})
        assert stopped["ports"] == [at_rest]


def test_a_port_that_is_taken(pair: Cluster, test_image: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        made = request(
            pair, 201, "POST", "/boxes", {"image": test_image, "ports": [{"guest_port": 80, "host_port": port}]}
        )
        status, code, message = refused(pair, "POST", f"/boxes/{made['box_id']}/start")
        assert (status, code) == (409, "invalid_state")
        assert f"127.0.0.1:{port} is taken" in message
        shown = request(pair, 200, "GET", f"/boxes/{made['box_id']}")
        assert f"127.0.0.1:{port} is taken" in shown["error_message"]
    started = request(pair, 200, "POST", f"/boxes/{made['box_id']}/start")
    assert (started["status"], started["error_message"]) == ("running", None)
    assert started["ports"][0]["host_port"] == port
    request(pair, 204, "DELETE", f"/boxes/{made['box_id']}?force=true")


# ---- images ----


def test_an_image_is_pulled_listed_and_removed(pair: Cluster, registry_image: str) -> None:
    pulled = request(pair, 200, "POST", "/images/pull", {"reference": registry_image})
    repository, _, tag = registry_image.rpartition(":")
    assert (pulled["reference"], pulled["repository"], pulled["tag"]) == (registry_image, repository, tag)
    assert pulled["size_bytes"] > 0
    assert pulled in request(pair, 200, "GET", "/images")["images"]
    for name in (registry_image, repository, pulled["id"], pulled["id"][:19], registry_image.replace("/", "%2F")):
        detail = request(pair, 200, "GET", f"/images/{name}")
        assert detail["name"] == repository or name.startswith("sha256:")
        assert detail["id"] == pulled["id"]
        request(pair, 204, "HEAD", f"/images/{name}")
    detail = request(pair, 200, "GET", f"/images/{repository}")
    assert detail["versions"] == [
        {"digest": pulled["id"], "source_ref": registry_image, "recorded_at": pulled["cached_at"]}
    ]
    with box(pair, registry_image):
        status, code, message = refused(pair, "DELETE", f"/images/{repository}")
        assert (status, code) == (409, "invalid_state")
        assert "in use" in message
    request(pair, 204, "DELETE", f"/images/{repository}")
    assert refused(pair, "GET", f"/images/{registry_image}")[:2] == (404, "not_found")
    assert pair.http("HEAD", f"/v1/images/{registry_image}")[0] == 404
    assert refused(pair, "DELETE", f"/images/{repository}")[:2] == (404, "not_found")


def test_a_pull_that_fails_says_why(pair: Cluster, registry: str) -> None:
    status, code, message = refused(pair, "POST", "/images/pull", {"reference": f"{registry}/no/such:image"})
    assert (status, code) == (422, "image_pull_failed")
    assert "not found" in message
    assert "manifest" in message


def test_a_pull_tells_its_progress_in_lines(pair: Cluster, registry: str, registry_image: str) -> None:
    lines = {"Accept": "application/x-ndjson"}
    path = "/v1/images/pull"
    status, headers, body = pair.http("POST", path, {"reference": registry_image}, headers=lines)
    assert (status, headers["content-type"]) == (200, "application/x-ndjson")
    *steps, last = (json.loads(line) for line in body.splitlines())
    assert all(set(step) == {"current_bytes", "total_bytes"} for step in steps)
    assert last["image"]["reference"] == registry_image
    request(pair, 204, "DELETE", f"/images/{registry_image}")
    status, headers, body = pair.http("POST", path, {"reference": f"{registry}/no/such:image"}, headers=lines)
    error = body["error"] if status != 200 else json.loads(body.splitlines()[-1])["error"]
    assert error["code"] == "image_pull_failed"
    status, _, body = pair.http("POST", path, {"reference": "Not A Reference::"}, headers=lines)
    assert (status, body["error"]["code"]) == (422, "image_pull_failed")


def test_images_of_both_workers_are_one_list_in_pages(pair: Cluster, test_image: str) -> None:
    every = request(pair, 200, "GET", "/images")["images"]
    names = [image["reference"] for image in every]
    assert names == sorted(names)
    # Both engines have it; the same digest is one entry.
    digests = {image["id"] for image in every if image["reference"] == f"docker.io/library/{test_image}"}
    assert len(digests) == names.count(f"docker.io/library/{test_image}")
    paged, token = [], ""
    while token is not None:
        page = request(pair, 200, "GET", f"/images?pageSize=1{token and '&pageToken=' + token}")
        assert len(page["images"]) == 1
        paged += page["images"]
        token = page["next_page_token"]
    assert paged == every
    usage = request(pair, 200, "GET", "/images/usage")
    assert usage["count"] == len({image["id"] for image in every})
    assert usage["known_bytes"] > 0


def test_a_worker_that_is_down_is_left_out(pair: Cluster, test_image: str) -> None:
    name = f"docker.io/library/{test_image}"
    pair.workers[1].stop()
    try:
        assert name in [image["reference"] for image in request(pair, 200, "GET", "/images")["images"]]
        request(pair, 204, "HEAD", f"/images/{test_image}")
        status, code, message = refused(pair, "GET", "/images/nosuch")
        assert (status, code) == (503, "upstream_unavailable")
        assert "two" in message
    finally:
        pair.workers[1].start()
    assert refused(pair, "GET", "/images/nosuch")[:2] == (404, "not_found")


# ---- network ----


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "inbound", {"mode": "enabled", "allow_net": []}),
        ("PUT", "outbound", {"mode": "disabled"}),
        ("POST", "tunnel?port=8080", None),
        ("DELETE", "tunnel?port=8080", None),
    ],
)
def test_a_running_box_keeps_its_network(pair: Cluster, test_image: str, method: str, path: str, body: Any) -> None:
    with box(pair, test_image) as made:
        found = refused(pair, method, f"/boxes/{made['box_id']}/network/{path}", body)
        assert found[:2] == (400, "unsupported")
