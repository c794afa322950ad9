"""Images whose registry gets credentials of the host are private, and a pull says whether it has brought anything."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.cluster import REGISTRY
from support.sites import policy

from boxlite_server import ids
from boxlite_server.errors import PrivateImageError
from boxlite_server.worker.docker.runtime import DockerRuntime
from boxlite_server.worker.runtime import BoxRef, BoxSpec, Image, Owner


@pytest.fixture
def runtime(
    docker_host: str, allowed_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DockerRuntime]:
    """A worker's runtime on a host that has credentials for the registry of the tests."""
    auth = base64.b64encode(b"me:secret").decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {REGISTRY: {"auth": auth}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    owner = Owner(ids.new_id(), ids.new_id())
    runtime = DockerRuntime(lambda: owner, docker_host, policy(allowed_directory))
    yield runtime
    for state in runtime.list_boxes():
        runtime.remove(state.box, force=True)
    runtime.close()


def pulled(runtime: DockerRuntime, name: str) -> Image:
    *_, image = runtime.images.pull(name)
    assert isinstance(image, Image)
    return image


def test_an_image_that_was_pulled_with_credentials_is_private(
    runtime: DockerRuntime, registry_image: str, test_image: str
) -> None:
    first, again = pulled(runtime, registry_image), pulled(runtime, registry_image)
    assert (first.is_private, first.was_pulled, again.was_pulled) == (True, True, False)
    listed = {image.reference: image.is_private for image in runtime.images.list()}
    assert listed[registry_image] is True
    assert listed[f"docker.io/library/{test_image}"] is False
    runtime.images.remove(registry_image)


def test_a_create_says_that_it_has_pulled_a_private_image(runtime: DockerRuntime, registry_image: str) -> None:
    spec = BoxSpec(image=registry_image, cpus=1, memory_mib=64)
    first = runtime.create(BoxRef(ids.new_id(), 1), spec)
    assert (first.was_pulled, first.is_private) == (True, True)
    second = runtime.create(BoxRef(ids.new_id(), 1), replace(spec, memory_mib=65))
    assert second.was_pulled is False
    for state in (first, second):
        runtime.remove(state.box, force=True)
    runtime.images.remove(registry_image)


def test_credentials_are_not_used_before_the_caller_was_asked(
    runtime: DockerRuntime, registry_image: str, test_image: str
) -> None:
    spec = BoxSpec(image=registry_image, cpus=1, memory_mib=64)
    with pytest.raises(PrivateImageError):
        next(runtime.images.pull(registry_image, ask_first=True))
    with pytest.raises(PrivateImageError):
        runtime.create(BoxRef(ids.new_id(), 1), spec, ask_first=True)
    assert registry_image not in {image.reference for image in runtime.images.list()}
    assert not runtime.list_boxes()
    pulled(runtime, registry_image)
    for there in (spec, replace(spec, image=test_image)):
        state = runtime.create(BoxRef(ids.new_id(), 1), there, ask_first=True)
        assert state.was_pulled is False
        runtime.remove(state.box, force=True)
    runtime.images.remove(registry_image)
