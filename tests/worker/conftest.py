"""Both runtimes, for the suites that every runtime must pass."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import fake_runtime
from support.calls import EPOCH, SECRET, Client, create_request, service_of
from support.fake_runtime import FakeRuntime
from support.sites import Site, docker_site, policy

from boxlite_server import ids
from boxlite_server._gen import worker_pb2 as pb
from boxlite_server.worker.runtime import BoxRef
from boxlite_server.worker.service.servicer import make_server


@pytest.fixture(scope="session", params=["docker", "fake"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    if request.param == "fake":
        allowed = request.getfixturevalue("allowed_directory")
        fake = FakeRuntime(policy=policy(allowed))
        yield Site(fake, fake_runtime.IMAGE, fake_runtime.BARE_IMAGE, allowed, fake_runtime.PULLABLE_IMAGE)
        fake.close()
        return
    yield from docker_site(request)


@pytest.fixture(scope="session")
def allowed_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("allowed")


@pytest.fixture
def pullable(request: pytest.FixtureRequest, site: Site) -> str:
    """An image that the site's registry has. Only a real engine needs a real registry."""
    return site.pullable or request.getfixturevalue("registry_image")


@pytest.fixture(scope="module")
def docker_alone(request: pytest.FixtureRequest) -> Iterator[Site]:
    """A site on Docker Engine, for what only Docker Engine has."""
    yield from docker_site(request)


@pytest.fixture(scope="module")
def fake_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site on the fake runtime, for what does not depend on an engine."""
    fake = FakeRuntime()
    yield Site(fake, fake_runtime.IMAGE, fake_runtime.BARE_IMAGE, tmp_path_factory.mktemp("nothing"))
    fake.close()


@pytest.fixture(scope="module")
def box(site: Site) -> Iterator[BoxRef]:
    """A running box that the tests of a module share."""
    ref = site.running_box()
    yield ref
    site.runtime.remove(ref, force=True)


@pytest.fixture(scope="module")
def client(fake_site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    server = make_server(service_of(fake_site, tmp_path_factory.mktemp("spool")), SECRET, EPOCH)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    client = Client(f"127.0.0.1:{port}")
    yield client
    client.channel.close()
    server.stop(0).wait()


@pytest.fixture
def served_box(fake_site: Site, client: Client) -> Iterator[pb.BoxRef]:
    """A running box."""
    ref = pb.BoxRef(box_id=ids.new_id(), generation=1)
    client.CreateBox(create_request(fake_site, ref))
    client.StartBox(ref)
    yield ref
    client.RemoveBox(pb.RemoveBoxRequest(box=ref, force=True))
