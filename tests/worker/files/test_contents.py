"""Single files and directories of boxes: what a worker tells of them, and how it reads and writes them."""

from __future__ import annotations

import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support.sites import Site, collect

from boxlite_server.errors import InvalidArgumentError, InvalidStateError, NotFoundError
from boxlite_server.worker.docker.runtime import DockerRuntime
from boxlite_server.worker.files import listing
from boxlite_server.worker.files.contents import Condition, Contents
from boxlite_server.worker.files.spool import Spool
from boxlite_server.worker.files.transfer import Files
from boxlite_server.worker.runtime import ArchiveStream, BoxFiles, BoxRef, ExecSpec, FileKind, WholeArchive

MIB = 1 << 20


class Box:
    """A box, with a directory of its own for each test."""

    def __init__(self, site: Site, spool: Path, ref: BoxRef, home: str) -> None:
        self.ref = ref
        self.home = home
        self.spool = spool
        self.contents = Contents(site.runtime, Spool(spool))
        self._files = Files(site.runtime, Spool(spool))

    def write(self, path: str, data: bytes, mode: int | None = None, **condition: object) -> str | None:
        """The version of what was written; None: nothing was."""
        found = self.contents.write(self.ref, self.home + path, [data], mode, Condition(**condition))  # type: ignore[arg-type]
        return found and found.version

    def read(self, path: str, start: int = 0, stop: int | None = None) -> bytes:
        entry = self.contents.stat(self.ref, self.home + path, follow=True)
        size = (entry.size if stop is None else stop) - start
        with self.contents.read(self.ref, self.home + path, entry.version, start, size) as (_, pieces):
            return b"".join(pieces)

    def tree(self, *entries: tuple[str, bytes, dict[str, object]]) -> None:
        """Have files, links and directories in the box: their names, types of tar and fields."""
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as archive:
            for name, kind, fields in entries:
                info = tarfile.TarInfo(name)
                info.type, info.mode, info.mtime = kind, 0o755, 1_700_000_000
                for key, value in fields.items():
                    setattr(info, key, value)
                archive.addfile(info, io.BytesIO(bytes(info.size)))
        self._files.put(self.ref, self.home, [out.getvalue()], overwrite=True, source_is_dir=True)

    def names(self, path: str = "", after: str = "", count: int = 1000) -> tuple[list[str], bool]:
        found = self.contents.entries(self.ref, self.home + path, after, count)
        return [entry.name for entry in found.entries], found.more


@pytest.fixture(scope="module")
def running(site: Site) -> Iterator[BoxRef]:
    ref = site.running_box()
    yield ref
    site.runtime.remove(ref, force=True)


@pytest.fixture(scope="module")
def at_rest(site: Site) -> Iterator[BoxRef]:
    ref = site.new_box()
    yield ref
    site.runtime.remove(ref, force=True)


@pytest.fixture(params=["at_rest", "running"])
def box(request: pytest.FixtureRequest, site: Site, tmp_path: Path) -> Box:
    """A box that was never started, whose files the engine reads, and a running one, which has a file service."""
    home = f"/srv/{request.node.name.partition('[')[0][:60]}"
    return Box(site, tmp_path, request.getfixturevalue(request.param), home)


def test_what_is_written_is_read_whole_and_in_parts(box: Box) -> None:
    data = bytes(range(256)) * 12288  # 3 MiB, more than the file service reads
    for content in (b"small", b"", data):
        box.write("/new/f", content)
        assert box.read("/new/f") == content
    assert box.read("/new/f", 1_000_001, 1_000_300) == data[1_000_001:1_000_300]
    assert box.read("/new/f", len(data) - 5) == data[-5:]


def test_a_file_keeps_its_permissions_and_takes_those_that_are_given(box: Box) -> None:
    def mode() -> int:
        return box.contents.stat(box.ref, f"{box.home}/f", follow=False).mode

    box.write("/f", b"1")
    assert mode() == 0o644
    box.write("/f", b"2", 0o4711)
    assert mode() == 0o4711
    box.write("/f", b"3")
    assert mode() == 0o711


def test_a_condition_that_does_not_hold_leaves_the_file_alone(box: Box) -> None:
    assert box.write("/f", b"1", versions=("*",)) is None
    first = box.write("/f", b"1", absent=True)
    assert first
    assert box.write("/f", b"2", absent=True) is None
    second = box.write("/f", b"2", versions=(first, "other"))
    assert second not in (None, first)
    assert box.write("/f", b"3", versions=(first,)) is None
    assert box.read("/f") == b"2"
    assert box.write("/f", b"4", versions=("*",))


def test_of_many_writers_of_one_version_one_succeeds(box: Box) -> None:
    first = box.write("/f", b"0")
    written: list[str | None] = []
    threads = [
        threading.Thread(target=lambda: written.append(box.write("/f", b"x", versions=(first,)))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [bool(each) for each in sorted(written, key=str)].count(True) == 1


def test_another_version_is_not_read(box: Box) -> None:
    box.write("/f", b"1")
    with box.contents.read(box.ref, f"{box.home}/f", "other", 0, 1) as (entry, pieces):
        assert (entry.size, list(pieces)) == (1, [])


class Changed:
    """The files of a box, of which one changes between the look at it and its reading."""

    def __init__(self, files: BoxFiles, change: Callable[[], object]) -> None:
        self._files = files
        self._change = change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._files, name)

    def get(self, path: str) -> ArchiveStream:
        self._change()
        return self._files.get(path)


@pytest.mark.parametrize("content", [b"longer than it was", b"b"])
def test_a_file_that_changes_while_it_is_read_is_not_read(
    box: Box, site: Site, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    box.write("/f", b"a")
    files = site.runtime.files
    with closing(files(box.ref)) as found:
        if len(content) == 1 and not isinstance(found.get(f"{box.home}/f"), WholeArchive):
            pytest.skip("an archive of the engine tells the size and the second of the change alone")
    changed = Box(site, box.spool, box.ref, box.home)
    with monkeypatch.context() as patch:

        def change() -> None:
            patch.setattr(site.runtime, "files", files)
            changed.write("/f", content)

        patch.setattr(site.runtime, "files", lambda ref: Changed(files(ref), change))
        entry = box.contents.stat(box.ref, f"{box.home}/f", follow=True)
        with (
            pytest.raises(InvalidStateError, match="changes while it is read"),
            box.contents.read(box.ref, f"{box.home}/f", entry.version, 0, 1) as (_, pieces),
        ):
            list(pieces)
    assert box.read("/f") == content


def test_a_new_file_belongs_to_the_user_of_the_box(site: Site, tmp_path: Path) -> None:
    if not isinstance(site.runtime, DockerRuntime):
        pytest.skip("the runtime sets no owners of its own")
    box = Box(site, tmp_path, site.new_box(user="box"), "/srv")
    box.write("/at/rest", b"")
    site.runtime.start(box.ref)
    box.write("/as/running", b"")
    owned = "set -e; cd /srv; for f in at at/rest as as/running; do test -O $f; done"
    assert collect(site.runtime.spawn(box.ref, ExecSpec(("sh", "-c", owned))))[2] == 0
    site.runtime.remove(box.ref, force=True)


def test_links_are_followed_inside_the_box_and_no_further(box: Box) -> None:
    box.tree(
        ("to", tarfile.SYMTYPE, {"linkname": "there"}),
        ("up", tarfile.SYMTYPE, {"linkname": "../../../../../.." + box.home + "/there"}),
        ("loop", tarfile.SYMTYPE, {"linkname": "loop"}),
        ("proc", tarfile.SYMTYPE, {"linkname": "/proc/self/environ"}),
    )
    box.write("/to", b"through a link")
    assert box.read("/there") == box.read("/to") == box.read("/up") == b"through a link"
    link = box.contents.stat(box.ref, f"{box.home}/to", follow=False)
    assert (link.kind, link.text, link.name) == (FileKind.LINK, "there", "to")
    assert box.contents.stat(box.ref, f"{box.home}/to", follow=True).name == "to"
    with pytest.raises(InvalidStateError):
        box.read("/loop")
    with pytest.raises(InvalidArgumentError, match="/proc"):
        box.read("/proc")
    with pytest.raises(InvalidArgumentError, match="/proc"):
        box.write("/proc", b"x")


def test_what_is_no_file_is_refused(box: Box) -> None:
    box.tree(("d", tarfile.DIRTYPE, {}), ("f", tarfile.REGTYPE, {}))
    for act in (lambda: box.read("/d"), lambda: box.write("/d", b""), lambda: box.write("/new/", b"")):
        with pytest.raises(InvalidArgumentError, match="directory"):
            act()
    with pytest.raises(InvalidArgumentError, match="no directory"):
        box.names("/f")
    with pytest.raises(InvalidStateError):
        box.write("/f/below", b"x")
    refusals: list[Callable[[], object]] = [lambda: box.read("/no"), lambda: box.names("/no")]
    refusals.append(lambda: box.contents.stat(box.ref, f"{box.home}/no", follow=False))
    for refusal in refusals:
        with pytest.raises(NotFoundError):
            refusal()


def test_a_directory_is_listed_in_pages_in_the_order_of_its_names(box: Box) -> None:
    names = [f"f{number:04}" for number in range(0, 1100)]
    box.tree(*((name, tarfile.REGTYPE, {}) for name in names))
    assert box.names() == (names[:1000], True)
    assert box.names(after=names[999]) == (names[1000:], False)
    assert box.names(after="f0500", count=2) == (["f0501", "f0502"], True)
    assert box.names(after="g") == ([], False)


def test_an_entry_tells_what_it_is(box: Box) -> None:
    box.tree(
        ("d", tarfile.DIRTYPE, {"mode": 0o1777}),
        ("d/below", tarfile.REGTYPE, {"size": 5}),
        ("f", tarfile.REGTYPE, {"size": 3, "mode": 0o640}),
        ("hard", tarfile.LNKTYPE, {"linkname": "f", "mode": 0o640}),
        ("l", tarfile.SYMTYPE, {"linkname": "/nowhere"}),
        ("\udcff\n", tarfile.REGTYPE, {}),
    )
    found = {entry.name: entry for entry in box.contents.entries(box.ref, box.home, "", 100).entries}
    assert sorted(found) == ["d", "f", "hard", "l", "\udcff\n"]
    assert [(found[name].kind, found[name].size) for name in ("d", "f", "hard", "l")] == [
        (FileKind.DIRECTORY, 0),
        (FileKind.FILE, 3),
        (FileKind.FILE, 3),
        (FileKind.LINK, 0),
    ]
    assert (found["d"].mode, found["f"].mode, found["l"].text) == (0o1777, 0o640, "/nowhere")
    assert found["f"].modified == 1_700_000_000 * 10**9
    for name in ("d", "f"):
        described = box.contents.stat(box.ref, f"{box.home}/{name}", follow=False)
        assert (described.kind, described.size, described.mode) == (
            found[name].kind,
            found[name].size,
            found[name].mode,
        )


def test_the_root_is_listed(box: Box) -> None:
    box.write("/f", b"")
    found = {entry.name: entry.kind for entry in box.contents.entries(box.ref, "/", "", 1000).entries}
    assert found["srv"] is FileKind.DIRECTORY
    assert box.contents.stat(box.ref, "/", follow=False).name == "/"


def test_a_directory_that_is_too_large_for_an_archive_is_refused(
    box: Box, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, site: Site
) -> None:
    if "running" in request.node.name or not isinstance(site.runtime, DockerRuntime):
        pytest.skip("no archive is needed there")
    box.write("/deep/f", bytes(MIB))
    monkeypatch.setattr(listing, "MAX_BYTES", MIB // 2)
    with pytest.raises(InvalidStateError, match="start the box"):
        box.names()


def test_a_version_is_the_same_whoever_tells_it(site: Site, tmp_path: Path, running: BoxRef) -> None:
    box = Box(site, tmp_path, running, "/srv/versions")
    written = box.write("/f", b"1")
    box.tree(("deep", tarfile.DIRTYPE, {}))
    if isinstance(site.runtime, DockerRuntime):
        by_engine = site.runtime.files(running)._others.describe("/srv/versions/f")  # type: ignore[attr-defined]
        assert by_engine.version == written
        assert collect(site.runtime.spawn(running, ExecSpec(("sh", "-c", "echo 2 >> /srv/versions/f"))))[2] == 0
        assert box.contents.stat(running, "/srv/versions/f", follow=True).version != written
