"""/etc/hosts, /etc/hostname and /etc/resolv.conf of boxes: uploaded, downloaded, and kept through restarts."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.sites import Site, collect

from boxlite_server.errors import InvalidArgumentError
from boxlite_server.worker.docker import system_files
from boxlite_server.worker.files.spool import Spool
from boxlite_server.worker.files.transfer import Files
from boxlite_server.worker.runtime import BoxRef, ExecSpec

PATHS = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="to write the engine's files takes root")


def tar(**files: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name.replace("__", "/").replace("_", "."))
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


class Box:
    def __init__(self, site: Site, spool: Path, **fields: Any) -> None:
        self.runtime = site.runtime
        self.ref = site.new_box(**fields)
        self._transfers = Files(site.runtime, Spool(spool))

    def put(self, path: str, data: bytes, source_is_dir: bool | None = None) -> None:
        self._transfers.put(self.ref, path, [data], overwrite=True, source_is_dir=source_is_dir)

    def content(self, path: str) -> bytes:
        with self._transfers.get(self.ref, path, follow_links=False) as (_, chunks):
            data = b"".join(chunks)
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            file = archive.extractfile(archive.getmembers()[0])
            assert file is not None
            return file.read()

    def shell(self, script: str) -> str:
        return collect(self.runtime.spawn(self.ref, ExecSpec(("sh", "-c", script))))[0].decode()

    def restart(self) -> None:
        self.runtime.stop(self.ref, 0)
        self.runtime.start(self.ref)


@pytest.fixture
def box(docker_alone: Site, tmp_path: Path) -> Iterator[Box]:
    box = Box(docker_alone, tmp_path)
    yield box
    box.runtime.remove(box.ref, force=True)


def test_an_upload_replaces_them_and_stays(box: Box) -> None:
    box.runtime.start(box.ref)
    for path in PATHS:
        box.put(path, tar(any=f"new {path}\n".encode()), source_is_dir=False)
        assert (box.content(path), box.shell(f"cat {path}")) == (f"new {path}\n".encode(), f"new {path}\n")
    for _ in range(2):
        box.restart()
        assert box.shell("cat " + " ".join(PATHS)) == "".join(f"new {path}\n" for path in PATHS)


def test_a_tree_that_holds_them_is_uploaded_whole(box: Box) -> None:
    box.put("/", tar(etc__hosts=b"before the start\n", etc__other=b"x"), source_is_dir=True)
    assert box.content("/etc/hosts") == b"before the start\n"
    box.runtime.start(box.ref)
    assert box.shell("cat /etc/hosts /etc/other") == "before the start\nx"
    box.put("/etc", tar(hosts=b"later\n", resolv_conf=b"nameserver 192.0.2.1\n", other=b"y"), source_is_dir=True)
    assert box.shell("cat /etc/hosts /etc/resolv.conf /etc/other") == "later\nnameserver 192.0.2.1\ny"
    box.runtime.stop(box.ref, 0)
    box.put("/etc/hosts", tar(h=b"while it is stopped\n"), source_is_dir=False)
    assert box.content("/etc/hosts") == b"while it is stopped\n"
    box.runtime.start(box.ref)
    assert box.shell("cat /etc/hosts /etc/resolv.conf") == "while it is stopped\nnameserver 192.0.2.1\n"


def test_what_a_box_writes_is_there_after_a_restart(box: Box) -> None:
    box.runtime.start(box.ref)
    box.shell("echo 192.0.2.7 db >> /etc/hosts; echo options ndots:3 >> /etc/resolv.conf")
    written = [box.content(path) for path in PATHS]
    for _ in range(2):
        box.restart()
        assert [box.content(path) for path in PATHS] == written


def test_what_nobody_changed_is_the_engines(box: Box, api: Any) -> None:
    box.runtime.start(box.ref)
    (container,) = api.containers(filters={"label": f"boxlite.box={box.ref.box_id}"})
    before = [box.content(path) for path in PATHS]
    box.restart()
    assert [box.content(path) for path in PATHS] == before
    resolv_conf = Path(api.inspect_container(container)["ResolvConfPath"])
    assert resolv_conf.read_bytes() == before[2]


def test_a_box_resolves_its_own_name_after_its_address_has_changed(docker_alone: Site, tmp_path: Path) -> None:
    box, other = (Box(docker_alone, tmp_path, network_enabled=True, hostname=name) for name in ("mine", "other"))
    box.runtime.start(box.ref)
    box.shell("echo 192.0.2.7 db >> /etc/hosts")
    before = box.shell("hostname -i").strip()
    box.runtime.stop(box.ref, 0)
    other.runtime.start(other.ref)  # it takes the address
    box.runtime.start(box.ref)
    hosts = box.shell("cat /etc/hosts")
    assert "192.0.2.7 db" in hosts
    assert box.shell("hostname -i").strip() != before
    assert before not in hosts
    for one in (box, other):
        one.runtime.remove(one.ref, force=True)


@pytest.mark.parametrize("how", [lambda runtime, _: runtime.tidy(), lambda runtime, ref: runtime.start(ref)])
def test_a_start_that_is_cut_off_loses_nothing(box: Box, how: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next worker process finishes it, or the next call to start the box, which runs already."""
    box.runtime.start(box.ref)
    box.shell("echo 192.0.2.7 db >> /etc/hosts")
    box.runtime.stop(box.ref, 0)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(system_files.SystemFiles, "after_start", die)
        box.runtime.start(box.ref)
    assert "db" not in box.shell("cat /etc/hosts")
    how(box.runtime, box.ref)
    assert "192.0.2.7 db" in box.shell("cat /etc/hosts")


def test_a_file_of_more_than_a_mebibyte_is_refused(box: Box) -> None:
    box.runtime.start(box.ref)
    with pytest.raises(InvalidArgumentError, match="at most 1048576 bytes"):
        box.put("/etc", tar(hosts=bytes(1024 * 1024 + 1), fresh=b""), source_is_dir=True)
    assert box.shell("ls /etc/fresh") == ""


def test_a_record_goes_with_its_box(docker_alone: Site, tmp_path: Path, box: Box) -> None:
    ref: BoxRef = box.ref
    box.runtime.start(ref)
    directory = docker_alone.runtime._system_files._directory  # type: ignore[attr-defined]
    assert [path.name for path in directory.iterdir() if ref.box_id in path.name] == [f"boxlite-{ref.box_id}-1"]
    box.runtime.remove(ref, force=True)
    assert not [path for path in directory.iterdir() if ref.box_id in path.name]
    (directory / "boxlite-gone-1").write_text("{}")
    docker_alone.runtime.tidy()  # type: ignore[attr-defined]
    assert not (directory / "boxlite-gone-1").exists()
