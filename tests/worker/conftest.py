"""Both runtimes, for the suites that every runtime must pass."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import fake_runtime
import pytest
from fake_runtime import FakeRuntime

from boxlite_server import ids
from boxlite_server.worker.docker_runtime import DockerRuntime
from boxlite_server.worker.policy import Policy
from boxlite_server.worker.runtime import BoxRef, BoxRuntime, BoxSpec, Owner, Process


@dataclass
class Site:
    """A runtime, and what the tests must know to use it."""

    runtime: BoxRuntime
    image: str
    bare_image: str
    allowed: Path  # a directory that boxes may mount from
    pullable: str = ""  # an image that the registry has, and nobody has pulled

    def new_box(self, **fields: object) -> BoxRef:
        """A created box."""
        box = BoxRef(ids.new_id(), 1)
        self.runtime.create(box, self.spec(**fields))
        return box

    def running_box(self, **fields: object) -> BoxRef:
        box = self.new_box(**fields)
        self.runtime.start(box)
        return box

    def spec(self, **fields: object) -> BoxSpec:
        values: dict[str, object] = {"image": self.image, "memory_mib": 64, "network_enabled": False, **fields}
        return BoxSpec(**values)  # type: ignore[arg-type]


@pytest.fixture(scope="session", params=["docker", "fake"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    if request.param == "fake":
        allowed = request.getfixturevalue("allowed_directory")
        fake = FakeRuntime(policy=policy(allowed))
        yield Site(fake, fake_runtime.IMAGE, fake_runtime.BARE_IMAGE, allowed, fake_runtime.PULLABLE_IMAGE)
        fake.close()
        return
    yield from docker_site(request)


def policy(allowed: Path) -> Policy:
    return Policy((allowed,), frozenset({"SYS_PTRACE"}))


@pytest.fixture(scope="session")
def allowed_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("allowed")


@pytest.fixture
def pullable(request: pytest.FixtureRequest, site: Site) -> str:
    """An image that the site's registry has. Only a real engine needs a real registry."""
    return site.pullable or request.getfixturevalue("registry_image")


def docker_site(request: pytest.FixtureRequest) -> Iterator[Site]:
    docker_host = request.getfixturevalue("docker_host")
    owner = Owner(ids.new_id(), ids.new_id())
    allowed = request.getfixturevalue("allowed_directory")
    docker = DockerRuntime(lambda: owner, docker_host, policy(allowed))
    yield Site(docker, request.getfixturevalue("test_image"), request.getfixturevalue("bare_image"), allowed)
    for state in docker.list_boxes():
        docker.remove(state.box, force=True)
    assert docker.list_boxes() == []
    assert docker.volumes.list() == []
    docker.close()


@pytest.fixture(scope="session")
def fake_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The fake alone, for what does not depend on an engine."""
    fake = FakeRuntime()
    yield Site(fake, fake_runtime.IMAGE, fake_runtime.BARE_IMAGE, tmp_path_factory.mktemp("nothing"))
    fake.close()


@pytest.fixture(scope="module")
def box(site: Site) -> Iterator[BoxRef]:
    """A running box that the tests of a module share."""
    ref = site.running_box()
    yield ref
    site.runtime.remove(ref, force=True)


Collect = Callable[[Process], tuple[bytes, bytes, int]]


def collect(process: Process) -> tuple[bytes, bytes, int]:
    """All output and the exit code; lets go of the process."""
    output = {1: b"", 2: b""}
    while (piece := process.read()) is not None:
        output[piece[0]] += piece[1]
    code = process.wait()
    process.close()
    return output[1], output[2], code


def in_thread(target: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread
