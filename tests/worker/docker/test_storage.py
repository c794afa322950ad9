"""Images, volumes, mounts, ports and capabilities as only Docker Engine can show them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import docker
import pytest
from support.sites import Site, collect

from boxlite_server import ids
from boxlite_server.errors import ImageError, InvalidStateError
from boxlite_server.worker.commands import ExecSpec
from boxlite_server.worker.docker import engine
from boxlite_server.worker.docker.runtime import DockerRuntime
from boxlite_server.worker.docker.storage.images import _Pull
from boxlite_server.worker.runtime import BoxRef, Image, Mount, Owner, PortMapping, PullProgress


@pytest.fixture
def volume(site: Site) -> Iterator[str]:
    volume_id = ids.new_id()
    site.runtime.volumes.create(volume_id)
    yield volume_id
    site.runtime.volumes.remove(volume_id)


def sh(site: Site, box: BoxRef, script: str) -> tuple[bytes, int]:
    out, err, code = collect(site.runtime.spawn(box, ExecSpec(("sh", "-c", script))))
    return out + err, code


def test_a_volume_outlives_its_boxes_and_is_shared(site: Site, volume: str) -> None:
    mount = Mount("/data", volume_id=volume)
    first = site.running_box(mounts=(mount,))
    assert sh(site, first, "echo kept > /data/file") == (b"", 0)
    second = site.running_box(mounts=(Mount("/elsewhere", volume_id=volume, read_only=True),))
    assert sh(site, second, "cat /elsewhere/file") == (b"kept\n", 0)
    refused, code = sh(site, second, "echo x > /elsewhere/file")
    assert b"Read-only" in refused
    assert code != 0
    for box in (first, second):
        site.runtime.remove(box, force=True)
    third = site.running_box(mounts=(mount,))
    assert sh(site, third, "cat /data/file") == (b"kept\n", 0)
    site.runtime.remove(third, force=True)


def test_volumes_of_others_are_neither_seen_nor_touched(site: Site, docker_host: str, volume: str) -> None:
    stranger = DockerRuntime(lambda: Owner("other", "worker"), docker_host)
    assert stranger.volumes.list() == []
    stranger.volumes.remove(volume)
    with pytest.raises(InvalidStateError, match="another worker"):
        stranger.volumes.create(volume)
    with pytest.raises(InvalidStateError, match="not on this worker"):
        stranger.create(BoxRef(ids.new_id(), 1), site.spec(mounts=(Mount("/data", volume_id=volume),)))
    stranger.close()
    assert volume in [found.volume_id for found in site.runtime.volumes.list()]


def test_a_path_of_the_host_is_the_same_files(site: Site) -> None:
    (site.allowed / "from-host").write_text("hello")
    mounts = (Mount("/data", host_path=str(site.allowed)), Mount("/ro", host_path=str(site.allowed), read_only=True))
    box = site.running_box(mounts=mounts)
    assert sh(site, box, "cat /data/from-host; echo back > /data/from-box") == (b"hello", 0)
    assert (site.allowed / "from-box").read_text() == "back\n"
    assert sh(site, box, "echo x > /ro/from-box")[1] != 0
    site.runtime.remove(box, force=True)
    assert (site.allowed / "from-box").exists()


def test_a_published_port_reaches_the_service(site: Site) -> None:
    box = site.running_box(
        network_enabled=True, ports=(PortMapping(80),), cmd=("sh", "-c", "nc -l -p 80 -e echo served; read forever")
    )
    (port,) = site.runtime.inspect(box).ports
    assert port.host_ip == "127.0.0.1"
    # The engine's proxy accepts before the service in the box does; then it hangs up without a word.
    said = b""
    while not said:
        with socket.create_connection((port.host_ip, port.host_port), 60) as connection:
            said = connection.recv(100)
    assert said == b"served\n"
    site.runtime.remove(box, force=True)


def test_capabilities_are_what_the_kernel_says(site: Site) -> None:
    usual = site.running_box()
    some = site.running_box(cap_add=("CHOWN", "SYS_PTRACE"), cap_drop=("ALL",))
    less = site.running_box(cap_drop=("CHOWN",))
    masks = [int(sh(site, box, "grep CapEff /proc/self/status")[0].split()[1], 16) for box in (usual, some, less)]
    assert masks[1] == 1 << 0 | 1 << 19  # CAP_CHOWN, CAP_SYS_PTRACE
    assert masks[2] == masks[0] & ~1  # CAP_CHOWN
    for box in (usual, some, less):
        site.runtime.remove(box, force=True)


def test_images_of_our_own_making_are_not_listed(site: Site, api: docker.APIClient) -> None:
    box = site.new_box()
    changes = ['LABEL boxlite.snapshot="x"']
    api.commit(f"boxlite-{box.box_id}-1", "boxlite-hidden", "v1", changes=changes)
    try:
        listed = [image.reference for image in site.runtime.images.list()]
        assert "docker.io/library/boxlite-hidden:v1" not in listed
        assert f"docker.io/library/{site.image}" in listed
    finally:
        site.runtime.remove(box, force=True)
        api.remove_image("boxlite-hidden:v1")


def test_of_two_names_the_one_in_use_stays(site: Site, api: docker.APIClient) -> None:
    api.tag(site.image, "boxlite-second-name", "v1")
    box = site.new_box(image="boxlite-second-name:v1")
    with pytest.raises(InvalidStateError, match="in use"):
        site.runtime.images.remove("boxlite-second-name:v1")
    site.runtime.remove(box, force=True)
    box = site.new_box()
    site.runtime.images.remove("boxlite-second-name:v1")
    assert "docker.io/library/boxlite-second-name:v1" not in [i.reference for i in site.runtime.images.list()]
    site.runtime.remove(box, force=True)


def test_a_pull_without_a_tag_fetches_the_latest_alone(
    site: Site, api: docker.APIClient, registry: str, registry_image: str
) -> None:
    repository = registry_image.rpartition(":")[0]
    with pytest.raises(ImageError, match=r"manifest.*latest|not found"):
        list(site.runtime.images.pull(repository))
    assert registry_image not in [image.reference for image in site.runtime.images.list()]


def test_a_pull_by_digest(site: Site, registry_image: str) -> None:
    *_, image = site.runtime.images.pull(registry_image)
    assert isinstance(image, Image)
    (digest,) = image.digests
    site.runtime.images.remove(registry_image)
    pinned = f"{registry_image.rpartition(':')[0]}@{digest}"
    *_, again = site.runtime.images.pull(pinned)
    assert isinstance(again, Image)
    assert (again.reference, again.image_id) == (pinned, image.image_id)
    site.runtime.images.remove(pinned)
    assert pinned not in [image.reference for image in site.runtime.images.list()]


def test_the_engine_says_why_a_pull_failed(site: Site, registry: str) -> None:
    with pytest.raises(ImageError, match="not found"):
        list(site.runtime.images.pull(f"{registry}/no/such:image"))


def test_progress_is_the_sum_of_the_layers() -> None:
    pull = _Pull()
    for line in (
        {"status": "Pulling from library/x", "id": "latest"},
        {"status": "Already exists", "id": "a"},
        {"status": "Downloading", "id": "b", "progressDetail": {"current": 10, "total": 100}},
        {"status": "Downloading", "id": "c", "progressDetail": {"current": 5, "total": 50}},
        {"status": "Extracting", "id": "b", "progressDetail": {"current": 1, "total": 7}},
        {"status": "Download complete", "id": "b"},
    ):
        pull.note(line)
    assert pull.progress() == PullProgress(105, 150)


def test_progress_is_told_while_a_pull_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    class Api:
        def pull(self, reference: str, tag: str, stream: bool, decode: bool) -> Iterator[dict[str, object]]:
            yield {"status": "Downloading", "id": "b", "progressDetail": {"current": 10, "total": 100}}
            assert release.wait(60)

        def inspect_image(self, reference: str) -> dict[str, object]:
            return {"Id": "sha256:1", "RepoTags": [reference], "RepoDigests": [], "Size": 5, "Created": ""}

    monkeypatch.setattr(engine.Engine, "api", Api())
    events = DockerRuntime(lambda: Owner("c", "w"), "unix:///nowhere").images.pull("some:image")
    assert next(events) == PullProgress(10, 100)
    release.set()
    *_, image = events
    assert image == Image("docker.io/library/some:image", "sha256:1", 0, 5)
