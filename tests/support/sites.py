"""A worker's runtime to test, and what the tests do with its boxes and processes."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from boxlite_server import ids
from boxlite_server.worker.commands import Process
from boxlite_server.worker.docker.exec import ExecProcess
from boxlite_server.worker.docker.runtime import DockerRuntime
from boxlite_server.worker.holder import Holder
from boxlite_server.worker.host_access import Policy
from boxlite_server.worker.runtime import BoxRef, BoxRuntime, BoxSpec, Owner
from boxlite_server.worker.supervisor.links import Links
from boxlite_server.worker.supervisor.process import SupervisedProcess
from boxlite_server.worker.supervisor.program import program
from support.cluster import REGISTRY

ALL_RUNTIMES = ("supervised", "docker", "fake")


@dataclass
class Site:
    """A runtime, and what the tests must know to use it."""

    runtime: BoxRuntime
    image: str
    bare_image: str
    allowed: Path  # a directory that boxes may mount from
    pullable: str = ""  # an image that the registry has, and nobody has pulled
    owner: Owner = field(default_factory=lambda: Owner("", ""))  # of what the runtime has on a real engine

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


def policy(allowed: Path) -> Policy:
    return Policy(
        (allowed,),
        frozenset({"SYS_PTRACE"}),
        publish_ports=(range(1024, 65536),),
        registries=("public", REGISTRY),
    )


def docker_site(request: pytest.FixtureRequest, *, supervised: bool = False) -> Iterator[Site]:
    """A site on Docker Engine. `supervised`: commands are run by supervisors, and not by the engine's exec."""
    docker_host = request.getfixturevalue("docker_host")
    owner = Owner(ids.new_id(), ids.new_id())
    allowed = request.getfixturevalue("allowed_directory")
    home = request.getfixturevalue("tmp_path_factory").mktemp("home")
    links = None
    if supervised:
        supervisor = program()
        assert supervisor is not None, "the supervisor is not built; `make build` does that"
        links = Links(home / "boxes", supervisor)
    docker = DockerRuntime(
        lambda: owner,
        docker_host,
        policy(allowed),
        Holder(home),
        records=home / "system-files",
        prepared=home / "prepared",
        links=links,
    )
    image, bare_image = request.getfixturevalue("test_image"), request.getfixturevalue("bare_image")
    yield Site(docker, image, bare_image, allowed, owner=owner)
    for state in docker.list_boxes():
        docker.remove(state.box, force=True)
    assert docker.list_boxes() == []
    assert docker.volumes.list() == []
    docker.close()


Collect = Callable[[Process], tuple[bytes, bytes, int]]


def collect(process: Process) -> tuple[bytes, bytes, int]:
    """Read all output and the exit code, and close the process."""
    output = {1: b"", 2: b""}
    while (piece := process.read()) is not None:
        output[piece[0]] += piece[1]
    code = process.wait()
    process.close()
    return output[1], output[2], code


def abandon(process: Process) -> None:
    """Drop the connection to the process as the death of this worker would, without closing it properly."""
    if isinstance(process, SupervisedProcess):
        process._is_closed = True
        process._command.news.set()
    elif isinstance(process, ExecProcess):
        mine, other = socket.socketpair()
        with mine, other:
            os.dup2(mine.fileno(), process._stream.fileno())
    else:
        process.close()


def in_thread(target: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread


@contextmanager
def hearing(runtime: DockerRuntime) -> Iterator[DockerRuntime]:
    """A runtime that hears the engine's events in the `with` block, as a worker's does. None of its boxes is left."""
    stopping, heard = threading.Event(), threading.Event()
    threading.Thread(target=runtime.watch, args=(heard.set, stopping), daemon=True).start()
    assert heard.wait(30)
    yield runtime
    for state in runtime.list_boxes():
        runtime.remove(state.box, force=True)
    stopping.set()
    runtime.close()
