"""A registry of images on this machine, so that pulls are real where no other registry can be reached."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import docker

from boxlite_server.local import dockerd, machine
from support.child import BOUND
from support.cluster import REGISTRY, wait_until

_CONFIG = {"version": "0.1", "storage": {"filesystem": {}}, "http": {}}


@contextmanager
def private_registry(directory: Path) -> Iterator[str]:
    """The `host:port` of a registry with all that it keeps in `directory`; engines trust it, being on loopback.

    Installs docker-registry by apt where it is missing; EngineError where that cannot be.
    """
    if machine.which("docker-registry") is None:
        machine.apt_install("docker-registry")
    address = REGISTRY
    config = directory / "registry.yml"
    settings = {
        **_CONFIG,
        "storage": {"filesystem": {"rootdirectory": str(directory / "registry")}},
        "http": {"addr": address},
    }
    config.write_text(json.dumps(settings))  # JSON is YAML
    with (directory / "registry.log").open("wb") as log:
        process = subprocess.Popen(
            [*BOUND, str(machine.which("docker-registry")), "serve", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: _listens(address), f"the registry at {address} listens")
        yield address
    finally:
        process.terminate()
        process.wait(30)


def push(docker_host: str, image: str, address: str, name: str) -> str:
    """Put an image of an engine into the registry as `name:tag`; its reference there. The engine forgets it."""
    reference = f"{address}/{name}"
    repository, _, tag = reference.rpartition(":")
    api = docker.APIClient(base_url=docker_host, version="auto")
    try:
        api.tag(image, repository, tag)
        for line in api.push(repository, tag, stream=True, decode=True):
            assert "error" not in line, line
        api.remove_image(reference)
    finally:
        api.close()
    return reference


def _listens(address: str) -> bool:
    try:
        dockerd.request(f"tcp://{address}", "GET", "/v2/", timeout=5)
    except dockerd.EngineError:
        return False
    return True
