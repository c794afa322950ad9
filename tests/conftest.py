"""What all tests share: engines of their own, small images, and clusters of real processes."""

from __future__ import annotations

import faulthandler
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import pytest
from support import boxes, wheel
from support.cluster import Cluster
from support.inside import engine_outside
from support.postgresql import Server, installed, private_server
from support.reader import Reader
from support.registry import private_registry, push

from boxlite_server import signals
from boxlite_server.local import busybox, machine
from boxlite_server.local import dockerd as engine

IMAGE = "boxlite-test:latest"
BARE_IMAGE = "boxlite-test-bare:latest"

NewCluster = Callable[..., Cluster]

END_SECONDS = 60.0  # for what a test that took too long takes down

_open_clusters: list[Cluster] = []
_stderr = 2


@contextmanager
def _dockerd() -> Iterator[engine.Dockerd]:
    """An engine for the tests alone, with the images they use; the machine's own engine is not touched."""
    directory = Path(tempfile.mkdtemp(prefix="boxlite-"))  # short, for the sockets in it
    try:
        with engine.private_dockerd(directory) as dockerd:
            _import_images(dockerd.docker_host)
            yield dockerd
    finally:
        shutil.rmtree(directory)


@contextmanager
def _engine() -> Iterator[str]:
    with _dockerd() as dockerd:
        yield dockerd.docker_host


def _import_images(docker_host: str) -> None:
    busybox.import_image(docker_host, IMAGE)
    busybox.import_image(docker_host, BARE_IMAGE, cmd=())
    if not engine.has_image(docker_host, "alpine:latest"):
        engine.tag_image(docker_host, IMAGE, "alpine:latest")


@pytest.fixture(scope="session")
def docker_host() -> Iterator[str]:
    """DOCKER_HOST of an engine: a private one; as a normal user, the one that DOCKER_HOST names."""
    if outside := engine_outside():
        yield outside
        return
    named = os.environ.get("DOCKER_HOST")
    if os.geteuid() != 0 and named and engine.answers(named):
        _import_images(named)
        yield named
        return
    with _engine() as docker_host:
        yield docker_host


@pytest.fixture(scope="session")
def second_docker_host() -> Iterator[str]:
    """DOCKER_HOST of a second private engine: a second machine, as far as a cluster can tell."""
    if os.geteuid() != 0:
        pytest.skip("a second engine takes root")
    with _engine() as docker_host:
        yield docker_host


@pytest.fixture(scope="module")
def mortal_engine() -> Iterator[engine.Dockerd]:
    """An engine that the tests of a module may kill and start again."""
    if os.geteuid() != 0:
        pytest.skip("an engine of one's own takes root")
    with _dockerd() as dockerd:
        yield dockerd


@pytest.fixture(scope="session")
def test_image(docker_host: str) -> str:
    """An image of busybox with the command `sh` and a user `box`; a private engine's alpine:latest too."""
    return IMAGE


@pytest.fixture(scope="session")
def bare_image(docker_host: str) -> str:
    """The same without any command."""
    return BARE_IMAGE


@pytest.fixture(scope="module")
def api(docker_host: str) -> Iterator[docker.APIClient]:
    """A client of the engine that bypasses the workers."""
    client = docker.APIClient(base_url=docker_host, version="auto")
    yield client
    client.close()


@pytest.fixture(scope="module")
def new_image(api: docker.APIClient, test_image: str) -> Iterator[Callable[..., str]]:
    """Makes images of the test image, with another configuration; they are removed after the module's tests."""
    base = api.create_container(test_image)["Id"]
    made: list[str] = []

    def new(**config: object) -> str:
        made.append(f"boxlite-test-made-{len(made)}:latest")
        api.commit(base, *made[-1].split(":"), conf=config)
        return made[-1]

    yield new
    api.remove_container(base)
    for name in made:
        api.remove_image(name, force=True)


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The `host:port` of a registry of our own; it takes root, or docker-registry installed."""
    if os.geteuid() != 0 and machine.which("docker-registry") is None:
        pytest.skip("a registry takes root, or an installed docker-registry")
    with private_registry(tmp_path_factory.mktemp("registry")) as address:
        yield address


@pytest.fixture(scope="session")
def registry_image(docker_host: str, registry: str) -> str:
    """The name of an image that only the registry has."""
    return push(docker_host, BARE_IMAGE, registry, "boxlite/extra:v1")


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    """A running PostgreSQL of our own. Whoever stops it starts it again."""
    if os.geteuid() != 0 and not installed():
        pytest.skip("a PostgreSQL takes root, or an installed one")
    with private_server() as server:
        yield server


@pytest.fixture(scope="session")
def built_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    return wheel.build(wheel.ROOT, tmp_path_factory.mktemp("wheel"))


@contextmanager
def _clusters(docker_host: str) -> Iterator[NewCluster]:
    made: list[Cluster] = []

    def new(*, api_key: str | None = None, database: str | None = None) -> Cluster:
        directory = Path(tempfile.mkdtemp(prefix="boxlite-"))
        cluster = Cluster(directory, docker_host, api_key=api_key, database=database)
        made.append(cluster)
        _open_clusters.append(cluster)
        return cluster

    failures = []
    try:
        yield new
    finally:
        for cluster in made:
            _open_clusters.remove(cluster)
            try:
                cluster.close()
            except AssertionError as error:
                failures.append(str(error))
            shutil.rmtree(cluster.directory)
    assert not failures, "\n".join(failures)


@pytest.fixture
def new_cluster(docker_host: str) -> Iterator[NewCluster]:
    """Makes clusters with nothing started; at the end of the test each of their processes must end well."""
    with _clusters(docker_host) as new:
        yield new


@pytest.fixture(scope="module")
def new_shared_cluster(docker_host: str) -> Iterator[NewCluster]:
    """The same, for clusters that the tests of a module share."""
    with _clusters(docker_host) as new:
        yield new


@pytest.fixture(scope="session")
def cluster(docker_host: str) -> Iterator[Cluster]:
    """A coordinator and one worker that all tests share: leave nothing behind, and end none of its processes."""
    with _clusters(docker_host) as new:
        shared = new()
        shared.start_coordinator()
        shared.start_worker()
        yield shared


@pytest.fixture
def new_box(cluster: Cluster, test_image: str) -> Iterator[Callable[..., str]]:
    """Makes boxes in the shared cluster, by the fields of a CreateBoxRequest; they are removed after the test."""
    made: list[str] = []

    def new(**fields: object) -> str:
        made.append(boxes.create(cluster, **fields))
        return made[-1]

    yield new
    for box in made:
        cluster.http("DELETE", f"/v1/boxes/{box}?force=true")


@pytest.fixture
def running_box(cluster: Cluster, new_box: Callable[..., str]) -> str:
    """A running box in the shared cluster."""
    box = new_box()
    boxes.start(cluster, box)
    return box


@pytest.fixture
def reader(docker_host: str) -> Iterator[Reader]:
    """A machine where nothing runs yet, and in the working directory a checkout."""
    if os.geteuid() != 0:
        pytest.skip("a machine of one's own takes root")
    directory = Path(tempfile.mkdtemp(prefix="boxlite-"))  # short, for the sockets in it
    try:
        with Reader(directory, docker_host).at_work() as reader:
            yield reader
    finally:
        shutil.rmtree(directory)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the processes logged where a test failed."""
    report = yield
    if report.failed:
        for cluster in _open_clusters:
            report.sections.append((f"cluster {cluster.url}", cluster.tails()))
    return report


@pytest.hookimpl(optionalhook=True)
def pytest_timeout_set_timer(settings: Any) -> None:
    """Where a test that took too long cannot be interrupted, end the process. What it started ends with it."""
    faulthandler.dump_traceback_later(settings.timeout + END_SECONDS, exit=True, file=_stderr)


@pytest.hookimpl(optionalhook=True)
def pytest_timeout_cancel_timer() -> None:
    """The test ended in time."""
    faulthandler.cancel_dump_traceback_later()


def pytest_sessionstart() -> None:
    """A terminated run ends its engines and clusters, as an interrupted one does."""
    global _stderr
    _stderr = os.dup(2)  # what it is now, before tests capture their output
    signals.keep_from_children()
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Asynchronous tests run on asyncio."""
    return "asyncio"
