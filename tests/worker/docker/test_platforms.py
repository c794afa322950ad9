"""Images that are built for another architecture than the host's."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import docker
import pytest
from support.sites import Site

from boxlite_server import ids
from boxlite_server.errors import ExecutionError, LocalImageError
from boxlite_server.worker.kernel import platforms
from boxlite_server.worker.runtime import BoxRef

IMAGE = "boxlite-test-foreign:latest"
MIPS = 8  # the machine of an ELF program that neither Intel nor Arm runs

HEAD = struct.pack("<HHIQQQIHHHHHH", 2, MIPS, 1, 0, 64, 0, 0, 64, 56, 0, 0, 0, 0)
PROGRAM = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + HEAD


def _tar(files: Mapping[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.mode, entry.size = 0o755, len(data)
            tar.addfile(entry, io.BytesIO(data))
    return archive.getvalue()


@pytest.fixture(scope="module")
def foreign(api: docker.APIClient) -> Iterator[str]:
    """An image that says it is for s390x; its shell is a program for another machine."""
    layer = _tar({"bin/sh": PROGRAM})
    config = {
        "architecture": "s390x",
        "os": "linux",
        "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]
    files = {"config.json": json.dumps(config).encode(), "manifest.json": json.dumps(manifest).encode()}
    list(api.load_image(_tar({**files, "layer.tar": layer})))
    yield IMAGE
    api.remove_image(IMAGE, force=True)


def test_a_box_of_a_foreign_image_says_why_it_cannot_start(docker_alone: Site, foreign: str) -> None:
    if platforms.has_no_emulator():
        pytest.skip("on this host such a box is not even made")
    box = docker_alone.new_box(image=foreign)
    with pytest.raises(ExecutionError, match=r"(?i)exec format error.*; the image is built for s390x") as raised:
        docker_alone.runtime.start(box)
    assert "cannot be executed" in raised.value.message
    docker_alone.runtime.remove(box, force=True)


def test_a_foreign_image_is_left_to_another_worker_where_nothing_emulates(
    docker_alone: Site, foreign: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platforms, "has_no_emulator", lambda: True)
    box = BoxRef(ids.new_id(), 1)
    with pytest.raises(LocalImageError, match="cannot run here: the image is built for s390x"):
        docker_alone.runtime.create(box, docker_alone.spec(image=foreign))
    native = docker_alone.new_box()
    docker_alone.runtime.remove(native, force=True)


def test_which_architectures_a_host_runs() -> None:
    assert not platforms.is_foreign("amd64", "amd64")
    assert not platforms.is_foreign("386", "amd64")
    assert not platforms.is_foreign("arm", "arm64")
    assert not platforms.is_foreign("", "amd64")
    assert not platforms.is_foreign("arm64", "")
    assert platforms.is_foreign("arm64", "amd64")
    assert platforms.is_foreign("amd64", "386")


def test_what_emulates_programs(tmp_path: Path) -> None:
    assert not platforms.has_no_emulator(tmp_path / "none"), "nothing is known"
    assert not platforms.has_no_emulator(tmp_path), "a container sees an empty directory"
    for name in ("register", "status"):
        (tmp_path / name).write_text("enabled\n")
    (tmp_path / "python3.11").write_text(
        "enabled\ninterpreter /usr/bin/python3.11\nflags: \noffset 0\nmagic a70d0d0a\n"
    )
    assert platforms.has_no_emulator(tmp_path)
    handler = tmp_path / "qemu-aarch64"
    handler.write_text("disabled\ninterpreter /usr/bin/qemu-aarch64\nflags: OCF\noffset 0\nmagic 7f454c460201010000\n")
    assert platforms.has_no_emulator(tmp_path)
    handler.write_text(handler.read_text().replace("disabled", "enabled"))
    assert not platforms.has_no_emulator(tmp_path)
