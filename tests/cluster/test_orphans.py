"""Nothing of a removed box stays on its worker's engine, however the removal was broken off: containers and images."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

import docker
import pytest
from support.cluster import Cluster, wait_until

from boxlite_server import ids
from boxlite_server.local import dockerd

GRACE = 2.0  # seconds
SOON = 25.0  # seconds, for what happens within a few looks of the coordinator, on a busy machine


@pytest.fixture(scope="module")
def cluster(new_shared_cluster: Callable[..., Cluster]) -> Cluster:
    cluster = new_shared_cluster()
    cluster.start_coordinator("--orphan-grace", str(GRACE))
    cluster.start_worker(name="one")
    return cluster


@pytest.fixture(autouse=True)
def nothing_is_left(cluster: Cluster) -> Iterator[None]:
    yield
    wait_until(lambda: held(cluster) == [], "nothing is left on the engine", SOON)


def held(cluster: Cluster) -> list[str]:
    """The containers and images of the cluster's worker that are on its engine."""
    label = f"boxlite.worker={worker(cluster)['id']}"
    query = urlencode({"all": 1, "filters": json.dumps({"label": [label]})})
    images = json.loads(dockerd.request(cluster.docker_host, "GET", f"/images/json?{query}"))
    return cluster.containers() + [image["Id"] for image in images]


def worker(cluster: Cluster) -> dict[str, Any]:
    (found,) = cluster.http("GET", "/v1/admin/workers")[2]["workers"]
    return dict(found)


def box_with_snapshots(cluster: Cluster, count: int) -> str:
    """The id of a box that was restored from each of its snapshots."""
    status, _, answer = cluster.http("POST", "/v1/boxes", {"image": "boxlite-test:latest", "memory_mib": 128})
    assert status == 201, answer
    box_id = str(answer["box_id"])
    for number in range(count):
        assert cluster.http("POST", f"/v1/boxes/{box_id}/snapshots", {"name": f"s{number}"})[0] == 201
        assert cluster.http("POST", f"/v1/boxes/{box_id}/snapshots/s{number}/restore")[0] in (200, 204)
    return box_id


def test_a_box_that_was_removed_while_its_worker_was_away_goes_with_all_its_snapshots(cluster: Cluster) -> None:
    box_id = box_with_snapshots(cluster, 4)
    cluster.workers[0].kill()
    wait_until(lambda: cluster.http("DELETE", f"/v1/boxes/{box_id}?force=true")[0] in (200, 204), "it is forgotten")
    cluster.workers[0].start()
    began = time.monotonic()
    wait_until(lambda: held(cluster) == [], "nothing is left of the box", GRACE + SOON)
    assert time.monotonic() - began < GRACE + SOON
    wait_until(lambda: worker(cluster)["orphans"] == {"total": 0, "refused": 0}, "the coordinator knows", SOON)


def test_a_snapshot_that_came_about_after_all_goes_although_its_box_lives_on(cluster: Cluster) -> None:
    """The engine finished what a killed worker had begun; meanwhile the box was restored, and is of a later
    generation."""
    box_id = box_with_snapshots(cluster, 2)
    client = docker.APIClient(base_url=cluster.docker_host, version="auto")
    (container,) = client.containers(all=True, filters={"label": f"boxlite.box={box_id}"})
    late = ids.new_id()
    labels = {key: value for key, value in container["Labels"].items() if key != "boxlite.generation"}
    client.commit(container["Id"], "boxlite/snapshot", late, conf={"Labels": {**labels, "boxlite.snapshot": late}})
    cluster.workers[0].kill()
    cluster.workers[0].start()
    wait_until(lambda: client.images(f"boxlite/snapshot:{late}") == [], "the snapshot is gone", SOON)
    client.close()
    names = [row["name"] for row in cluster.http("GET", f"/v1/boxes/{box_id}/snapshots")[2]["snapshots"]]
    assert names == ["s0", "s1"]
    assert cluster.http("POST", f"/v1/boxes/{box_id}/start")[0] == 200
    assert cluster.http("DELETE", f"/v1/boxes/{box_id}?force=true")[0] == 204


def test_a_snapshot_of_a_box_that_is_gone_goes_whatever_generation_the_box_was_of(cluster: Cluster) -> None:
    box_id = box_with_snapshots(cluster, 2)
    client = docker.APIClient(base_url=cluster.docker_host, version="auto")
    (container,) = client.containers(all=True, filters={"label": f"boxlite.box={box_id}"})
    labels = {key: value for key, value in container["Labels"].items() if key != "boxlite.generation"}
    assert cluster.http("DELETE", f"/v1/boxes/{box_id}?force=true")[0] == 204
    other, late = client.create_container("boxlite-test:latest")["Id"], ids.new_id()
    client.commit(other, "boxlite/snapshot", late, conf={"Labels": {**labels, "boxlite.snapshot": late}})
    client.remove_container(other)
    answer = cluster.http("POST", "/v1/admin/reconcile", {"dry_run": False})[2]
    assert [(a["box_id"], a["kind"], a["done"], a["error"]) for a in answer["actions"]] == [
        (box_id, "remove_orphan", True, None)
    ]
    assert client.images(f"boxlite/snapshot:{late}") == []
    client.close()
