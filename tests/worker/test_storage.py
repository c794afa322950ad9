"""What every `BoxRuntime` promises about images, volumes, mounts, ports and capabilities."""

from __future__ import annotations

import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.sites import Site

from boxlite_server import ids
from boxlite_server.errors import (
    ImageError,
    InvalidArgumentError,
    InvalidStateError,
    UnsupportedError,
)
from boxlite_server.worker.runtime import BoxRef, BoxStatus, Image, Mount, PortMapping, PullProgress


def names(site: Site) -> list[str]:
    return [image.reference for image in site.runtime.images.list()]


@pytest.fixture
def volume(site: Site) -> str:
    """The id of a volume; the test removes it."""
    volume_id = ids.new_id()
    site.runtime.volumes.create(volume_id)
    return volume_id


# ---- images ----


def test_images_are_listed_in_full(site: Site) -> None:
    image = next(i for i in site.runtime.images.list() if i.reference == f"docker.io/library/{site.image}")
    assert image.image_id.startswith("sha256:")
    assert len(image.image_id) == len("sha256:") + 64
    assert image.size_bytes > 0
    assert time.time() - 86400 < image.cached_at_ms / 1000 <= time.time() + 1


def test_a_pull_ends_with_the_image(site: Site, pullable: str) -> None:
    assert pullable not in names(site)
    *progress, image = site.runtime.images.pull(pullable)
    assert all(isinstance(step, PullProgress) for step in progress)
    assert isinstance(image, Image)
    assert image.reference == pullable
    assert names(site).count(pullable) == 1
    site.runtime.images.remove(pullable)
    assert pullable not in names(site)
    site.runtime.images.remove(pullable)


def test_a_create_pulls_what_is_missing(site: Site, pullable: str) -> None:
    box = site.new_box(image=pullable)
    assert pullable in names(site)
    with pytest.raises(InvalidStateError, match="in use"):
        site.runtime.images.remove(pullable)
    site.runtime.remove(box, force=True)
    site.runtime.images.remove(pullable)


def test_pulls_that_fail(site: Site) -> None:
    for reference in ("127.0.0.1:9/no/such:image", "Not A Reference::"):
        with pytest.raises(ImageError):
            list(site.runtime.images.pull(reference))


# ---- volumes ----


def test_a_volume_is_made_once_and_removed_once(site: Site, volume: str) -> None:
    made = next(v for v in site.runtime.volumes.list() if v.volume_id == volume)
    assert site.runtime.volumes.create(volume) == made
    assert [v.volume_id for v in site.runtime.volumes.list()].count(volume) == 1
    site.runtime.volumes.remove(volume)
    assert volume not in [v.volume_id for v in site.runtime.volumes.list()]
    site.runtime.volumes.remove(volume)


def test_a_volume_in_use_stays(site: Site, volume: str) -> None:
    box = site.new_box(mounts=(Mount("/data", volume_id=volume),))
    with pytest.raises(InvalidStateError, match="in use"):
        site.runtime.volumes.remove(volume)
    site.runtime.remove(box, force=True)
    assert volume in [v.volume_id for v in site.runtime.volumes.list()]
    site.runtime.volumes.remove(volume)


def test_a_volume_that_is_not_there_is_not_made_on_the_way(site: Site) -> None:
    box = BoxRef(ids.new_id(), 1)
    missing = ids.new_id()
    with pytest.raises(InvalidStateError, match=missing):
        site.runtime.create(box, site.spec(mounts=(Mount("/data", volume_id=missing),)))
    assert missing not in [v.volume_id for v in site.runtime.volumes.list()]


# ---- paths of the host ----


@pytest.fixture
def inside(site: Site) -> Iterator[Path]:
    """A directory of the test's own, below the allowed one."""
    directory = Path(tempfile.mkdtemp(dir=site.allowed))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def bind(path: Path) -> tuple[Mount, ...]:
    return (Mount("/data", host_path=str(path)),)


def test_an_allowed_directory_is_mounted(site: Site, inside: Path) -> None:
    for path in (site.allowed, inside):
        box = site.running_box(mounts=bind(path))
        assert site.runtime.inspect(box).status is BoxStatus.RUNNING
        site.runtime.remove(box, force=True)
    assert inside.is_dir()


def test_other_directories_are_refused(site: Site, inside: Path, tmp_path: Path) -> None:
    escape = inside / "escape"
    escape.symlink_to(tmp_path)
    neighbour = site.allowed.with_name(site.allowed.name + "-too")
    neighbour.mkdir(exist_ok=True)
    for path in (tmp_path, Path("/"), site.allowed / "..", escape, neighbour, site.allowed / "missing"):
        with pytest.raises(InvalidArgumentError, match="--allow-host-path"):
            site.new_box(mounts=bind(path))


def test_a_directory_that_became_a_link_is_refused_at_start(site: Site, inside: Path, tmp_path: Path) -> None:
    box = site.new_box(mounts=bind(inside))
    inside.rmdir()
    inside.symlink_to(tmp_path)
    with pytest.raises(InvalidArgumentError, match="--allow-host-path"):
        site.runtime.start(box)
    inside.unlink()
    inside.mkdir()
    assert site.runtime.start(box).status is BoxStatus.RUNNING
    site.runtime.remove(box, force=True)


def test_a_path_that_another_box_can_replace_is_refused_while_that_runs(site: Site, inside: Path) -> None:
    below = inside / "below"
    below.mkdir()
    writer, reader = (
        site.running_box(mounts=(Mount("/data", host_path=str(inside), read_only=read_only),))
        for read_only in (False, True)
    )
    box = site.new_box(mounts=bind(below))
    with pytest.raises(InvalidStateError, match="another running box can write"):
        site.runtime.start(box)
    same = site.running_box(mounts=bind(inside))
    site.runtime.remove(same, force=True)
    site.runtime.stop(writer, 0)
    assert site.runtime.start(box).status is BoxStatus.RUNNING
    for other in (writer, reader, box):
        site.runtime.remove(other, force=True)


# ---- ports ----


def test_any_free_port_is_published_while_the_box_runs(site: Site) -> None:
    wanted = (PortMapping(80), PortMapping(53, protocol="udp"))
    box = site.new_box(network_enabled=True, ports=wanted)
    assert site.runtime.inspect(box).ports == ()
    opened = site.runtime.start(box).ports
    assert {(p.guest_port, p.protocol, p.host_ip) for p in opened} == {
        (80, "tcp", "127.0.0.1"),
        (53, "udp", "127.0.0.1"),
    }
    assert all(port.host_port for port in opened)
    assert set(site.runtime.inspect(box).ports) == set(opened)
    with socket.create_connection(("127.0.0.1", next(p.host_port for p in opened if p.protocol == "tcp")), 60):
        pass
    assert site.runtime.stop(box, 0).ports == ()
    site.runtime.remove(box, force=True)


def test_a_port_that_is_taken_fails_the_start_alone(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        box = site.new_box(network_enabled=True, ports=(PortMapping(80, port),))
        with pytest.raises(InvalidStateError, match=f"127.0.0.1:{port} is taken"):
            site.runtime.start(box)
    state = site.runtime.start(box)
    assert (state.status, state.ports) == (BoxStatus.RUNNING, (PortMapping(80, port),))
    other = site.new_box(network_enabled=True, ports=(PortMapping(80, port),))
    with pytest.raises(InvalidStateError, match=f"127.0.0.1:{port} is taken"):
        site.runtime.start(other)
    site.runtime.remove(box, force=True)
    assert site.runtime.start(other).status is BoxStatus.RUNNING
    site.runtime.remove(other, force=True)


# ---- capabilities ----


def test_usual_and_allowed_capabilities_are_given(site: Site) -> None:
    box = site.running_box(cap_add=("CHOWN", "SYS_PTRACE"), cap_drop=("ALL",))
    site.runtime.remove(box, force=True)


@pytest.mark.parametrize("field", ["cap_add", "cap_drop"])
def test_unknown_capabilities_are_refused(site: Site, field: str) -> None:
    with pytest.raises(UnsupportedError, match="NO_SUCH_THING"):
        site.new_box(**{field: ("NO_SUCH_THING",)})


@pytest.mark.parametrize("name", ["SYS_ADMIN", "ALL"])
def test_other_capabilities_are_refused(site: Site, name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"--allow-cap {name}"):
        site.new_box(cap_add=(name,))
