"""A registry that one of two engines cannot reach: the other one gets the image."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import boxes
from support.cluster import Cluster

from boxlite_server.local import dockerd


@pytest.fixture(scope="module")
def cut_off(registry: str) -> Iterator[str]:
    """DOCKER_HOST of an engine that does not reach the registry."""
    directory = Path(tempfile.mkdtemp(prefix="boxlite-"))  # short, for the sockets in it
    port = registry.rpartition(":")[2]
    try:
        with dockerd.private_namespace(directory) as own:
            own.must("iptables", "-t", "nat", "-I", "OUTPUT", "-p", "tcp", "--dport", port, "-j", "RETURN")
            engine = dockerd.Dockerd(directory, own)
            try:
                engine.start()
                yield engine.docker_host
            finally:
                engine.stop()
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def pair(new_shared_cluster: Any, cut_off: str) -> Cluster:
    """Two workers; the one that boxes go to first does not reach the registry."""
    cluster: Cluster = new_shared_cluster()
    cluster.start_coordinator()
    cluster.start_worker(name="a-cut-off", docker_host=cut_off)
    cluster.start_worker(name="b-near")
    return cluster


def test_a_box_is_made_where_its_image_can_be_had(pair: Cluster, registry_image: str) -> None:
    box = boxes.create(pair, image=registry_image)
    status, _, found = pair.http("GET", f"/v1/boxes/{box}")
    assert (status, found["worker"], found["status"]) == (200, "b-near", "configured")
    boxes.start(pair, box)
    assert pair.http("DELETE", f"/v1/boxes/{box}?force=true")[0] == 204
    assert pair.http("DELETE", f"/v1/images/{registry_image}")[0] == 204


def test_an_image_is_pulled_where_it_can_be_had(pair: Cluster, registry_image: str) -> None:
    status, _, image = pair.http("POST", "/v1/images/pull", {"reference": registry_image})
    assert (status, image["reference"]) == (200, registry_image)
    assert pair.http("DELETE", f"/v1/images/{registry_image}")[0] == 204


@pytest.mark.parametrize("path", ["/v1/boxes", "/v1/images/pull"])
def test_when_no_engine_reaches_the_registry_each_worker_is_told(pair: Cluster, path: str) -> None:
    image = "127.0.0.1:9/no/such:image"
    status, _, answer = pair.http("POST", path, {"image": image, "reference": image})
    message = answer["error"]["message"]
    assert (status, answer["error"]["code"]) == (422, "image_pull_failed")
    assert "2 failed" in message
    for name in ("a-cut-off", "b-near"):
        assert f"{name}: image '{image}' cannot be pulled: " in message


def test_what_the_registry_does_not_have_is_told_by_the_worker_that_reaches_it(pair: Cluster, registry: str) -> None:
    status, _, answer = pair.http("POST", "/v1/boxes", {"image": f"{registry}/no/such:image"})
    assert (status, answer["error"]["code"]) == (422, "image_pull_failed")
    assert "manifest unknown" in answer["error"]["message"]
