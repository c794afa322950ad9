"""Names of images that are none: they must not become paths of the engine's API."""

from __future__ import annotations

import pytest
from support.sites import Site

from boxlite_server.errors import BoxliteError, ImageError, InvalidArgumentError, UnsupportedError
from boxlite_server.worker.host_access import Policy
from boxlite_server.worker.runtime import BoxRef, PortMapping

PATHS = [
    "../containers/{box}",
    "..%2fcontainers%2f{box}",
    "x/../../containers/{box}",
    "../images/json?a=",
    "a?b",
    "a#b",
    "",
]


@pytest.mark.parametrize("path", PATHS)
def test_an_image_is_no_path(docker_alone: Site, box: BoxRef, path: str) -> None:
    (container,) = docker_alone.runtime._engine.api.containers(  # type: ignore[attr-defined]
        all=True, filters={"label": f"boxlite.box={box.box_id}"}
    )
    name = path.format(box=container["Id"])
    images = docker_alone.runtime.images
    with pytest.raises(ImageError, match="is no image name"):
        images.get(name)  # type: ignore[attr-defined]
    with pytest.raises(ImageError, match="is no image name"):
        list(images.pull(name))
    with pytest.raises(InvalidArgumentError, match="is no image name"):
        images.remove(name)


def test_the_disk_of_a_box_is_no_image(docker_alone: Site) -> None:
    box = docker_alone.new_box()
    docker_alone.runtime.disks.snapshot(box, "Snapshot0001")
    (image,) = docker_alone.runtime._engine.api.images(  # type: ignore[attr-defined]
        filters={"label": f"boxlite.box={box.box_id}"}
    )
    for name in (*image["RepoTags"], image["Id"]):
        with pytest.raises(ImageError, match="not for boxes"):
            docker_alone.new_box(image=name)
    docker_alone.runtime.disks.remove_snapshot(box, "Snapshot0001")
    docker_alone.runtime.remove(box, force=True)


@pytest.mark.parametrize(
    ("port", "flag"),
    [
        (PortMapping(80, host_ip="0.0.0.0"), "--publish-address 0.0.0.0"),
        (PortMapping(80, host_ip="::"), "--publish-address ::"),
        (PortMapping(80, host_ip="::1"), "--publish-address ::1"),
        (PortMapping(80, host_ip="127.0.0.2"), "--publish-address 127.0.0.2"),
        (PortMapping(80, 80), "--publish-ports"),
        (PortMapping(80, 8999), "--publish-ports"),
    ],
)
def test_boxes_publish_only_where_the_operator_lets_them(fake_site: Site, port: PortMapping, flag: str) -> None:
    spec = fake_site.spec(network_enabled=True, ports=(PortMapping(81), port))
    with pytest.raises(UnsupportedError, match=flag):
        Policy(publish_ports=(range(9000, 9010),)).admit(spec)
    Policy(publish_addresses=("127.0.0.1", port.host_ip), publish_ports=(range(80, 81), range(8000, 9000))).admit(spec)


def test_a_name_that_is_none_is_told_as_one(docker_alone: Site) -> None:
    with pytest.raises(BoxliteError, match="is no image name"):
        docker_alone.new_box(image="UPPER CASE")
