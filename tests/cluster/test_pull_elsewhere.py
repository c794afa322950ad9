"""An engine that cannot have an image: another one gets it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import boxes
from support.cluster import Cluster
from support.registry import push

from boxlite_server import ids
from boxlite_server.local import dockerd
from boxlite_server.local.namespace import Namespace

NOWHERE = "127.0.0.1:9"  # where no registry is


class Troubled:
    """An engine that has troubles when a test says so, with a disk of its own."""

    def __init__(self, directory: Path, own: Namespace, registry: str) -> None:
        self._own = own
        self._disk = directory / "data"
        self._disk.mkdir()
        own.must("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(self._disk))
        self._rule = ["OUTPUT", "-p", "tcp", "--dport", registry.rpartition(":")[2], "-j", "RETURN"]
        self.engine = dockerd.Dockerd(directory, own)

    @property
    def docker_host(self) -> str:
        return self.engine.docker_host

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        """The engine does not reach the registry."""
        self._own.must("iptables", "--wait", "-t", "nat", "-I", *self._rule)
        yield
        self._own.must("iptables", "--wait", "-t", "nat", "-D", *self._rule)

    @contextmanager
    def full(self) -> Iterator[None]:
        """The engine's disk is full."""
        filler = str(self._disk / "filler")
        assert self._own.run("dd", "if=/dev/zero", f"of={filler}", "bs=64k").returncode == 1
        yield
        self._own.must("rm", filler)


@pytest.fixture(scope="module")
def troubled(registry: str) -> Iterator[Troubled]:
    directory = Path(tempfile.mkdtemp(prefix="boxlite-"))  # short, for the sockets in it
    try:
        with dockerd.private_namespace(directory) as own:
            troubled = Troubled(directory, own, registry)
            try:
                troubled.engine.start()
                yield troubled
            finally:
                troubled.engine.stop()
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def pair(new_shared_cluster: Any, troubled: Troubled) -> Cluster:
    """Two workers; boxes go first to the one whose engine has troubles."""
    cluster: Cluster = new_shared_cluster()
    cluster.start_coordinator()
    cluster.start_worker("--allow-registry", NOWHERE, name="a-troubled", docker_host=troubled.docker_host)
    cluster.start_worker("--allow-registry", NOWHERE, name="b-well")
    return cluster


@pytest.fixture(params=["cut_off", "full"])
def trouble(request: pytest.FixtureRequest, troubled: Troubled) -> Iterator[str]:
    with getattr(troubled, request.param)():
        yield request.param


@pytest.fixture
def image(docker_host: str, registry: str, bare_image: str) -> str:
    """An image that only the registry has, and that no worker has failed to pull yet."""
    return push(docker_host, bare_image, registry, f"boxlite/{ids.new_id().lower()}:v1")


@pytest.mark.usefixtures("trouble")
def test_a_box_is_made_where_its_image_can_be_had(pair: Cluster, image: str) -> None:
    box = boxes.create(pair, image=image)
    status, _, found = pair.http("GET", f"/v1/boxes/{box}")
    assert (status, found["worker"], found["status"]) == (200, "b-well", "configured")
    assert f"box {box} cannot be created on a-troubled" in pair.coordinator.log.read_text()
    boxes.start(pair, box)
    assert pair.http("DELETE", f"/v1/boxes/{box}?force=true")[0] == 204
    assert pair.http("DELETE", f"/v1/images/{image}")[0] == 204


@pytest.mark.usefixtures("trouble")
def test_an_image_is_pulled_where_it_can_be_had(pair: Cluster, image: str) -> None:
    status, _, pulled = pair.http("POST", "/v1/images/pull", {"reference": image})
    assert (status, pulled["reference"]) == (200, image)
    assert f"{image} cannot be pulled on a-troubled" in pair.coordinator.log.read_text()
    assert pair.http("DELETE", f"/v1/images/{image}")[0] == 204


@pytest.mark.parametrize("path", ["/v1/boxes", "/v1/images/pull"])
def test_when_no_engine_reaches_the_registry_each_worker_is_told(pair: Cluster, path: str) -> None:
    image = f"{NOWHERE}/no/such:image"
    status, _, answer = pair.http("POST", path, {"image": image, "reference": image})
    message = answer["error"]["message"]
    assert (status, answer["error"]["code"]) == (422, "image_pull_failed")
    assert "2 failed" in message
    for name in ("a-troubled", "b-well"):
        assert f"{name}: image '{image}' cannot be pulled: " in message


@pytest.mark.usefixtures("trouble")
def test_what_the_registry_does_not_have_is_told_by_the_worker_that_reaches_it(pair: Cluster, registry: str) -> None:
    status, _, answer = pair.http("POST", "/v1/boxes", {"image": f"{registry}/no/such:image"})
    assert (status, answer["error"]["code"]) == (422, "image_pull_failed")
    assert "manifest unknown" in answer["error"]["message"]
