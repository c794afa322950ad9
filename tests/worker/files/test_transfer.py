"""What every `BoxFiles` promises, and what the worker makes of it: uploads and downloads by the contract."""

from __future__ import annotations

import io
import os
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.sites import Site, collect

from boxlite_server.errors import (
    AlreadyExistsError,
    BoxliteError,
    EngineError,
    InvalidArgumentError,
    InvalidStateError,
    NotFoundError,
    ResourceExhaustedError,
)
from boxlite_server.rpc import CHUNK_BYTES
from boxlite_server.worker.docker.runtime import DockerRuntime
from boxlite_server.worker.files import tar as archive
from boxlite_server.worker.files.spool import MAX_KEPT, Follower, Spool
from boxlite_server.worker.files.transfer import Files
from boxlite_server.worker.runtime import BoxRef, ExecSpec, FileKind, FileState

TIME = 1_700_000_000
KEPT = ".dockerenv bin dev etc home lib lib64 proc root run sbin sys tmp usr var"
REMOVE_NEW = f"""cd /; for name in * .[!.]*; do case " {KEPT} " in *" $name "*) ;; *) rm -rf "./$name"; esac; done"""


def file(name: str, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, tarfile.REGTYPE, data, **fields)


def folder(name: str, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, tarfile.DIRTYPE, mode=0o755, **fields)


def link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, tarfile.SYMTYPE, linkname=target)


def hard(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, tarfile.LNKTYPE, linkname=target)


def entry(name: str, kind: bytes, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mtime = kind, len(data), TIME
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def tar(*entries: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


class Box:
    """A box and its files as a client sees them."""

    def __init__(self, site: Site, spool: Path, ref: BoxRef) -> None:
        self.ref = ref
        self.files = site.runtime.files(ref)
        self._transfers = Files(site.runtime, Spool(spool))

    def put(
        self,
        path: str,
        data: bytes | Iterable[bytes],
        overwrite: bool = True,
        source_is_dir: bool | None = None,
        keep_owner: bool = False,
    ) -> None:
        chunks = [data] if isinstance(data, bytes) else data
        self._transfers.put(
            self.ref, path, chunks, overwrite=overwrite, source_is_dir=source_is_dir, keep_owner=keep_owner
        )

    def get(self, path: str, follow: bool = False) -> tuple[bool, dict[str, tarfile.TarInfo], dict[str, bytes]]:
        """Whether it is a directory, the entries, and the content of the files."""
        with self._transfers.get(self.ref, path, follow_links=follow) as (is_dir, chunks):
            data = b"".join(chunks)
        with tarfile.open(fileobj=io.BytesIO(data)) as opened:
            entries = {info.name: info for info in opened}
            content = {}
            for name, info in entries.items():
                info.mode &= 0o7777  # engines leave the kind in it
                if info.isfile() and (member := opened.extractfile(info)):
                    content[name] = member.read()
        return is_dir, entries, content

    def content(self, path: str) -> bytes:
        (data,) = self.get(path)[2].values()
        return data

    def tree(self, path: str) -> list[str]:
        return sorted(self.get(path)[1])


@pytest.fixture(params=["at rest", "running"])
def box(request: pytest.FixtureRequest, site: Site, tmp_path: Path) -> Iterator[Box]:
    """A box that was never started, whose files the engine copies, and a running one, which has a file service."""
    if request.param == "running" and isinstance(site.runtime, DockerRuntime):
        ref = request.getfixturevalue("started")
        yield Box(site, tmp_path, ref)
        assert collect(site.runtime.spawn(ref, ExecSpec(("sh", "-c", REMOVE_NEW))))[2] == 0
        return
    ref = site.new_box() if request.param == "at rest" else site.running_box()
    yield Box(site, tmp_path, ref)
    site.runtime.remove(ref, force=True)


@pytest.fixture(scope="module")
def started(site: Site) -> Iterator[BoxRef]:
    """A running box that the tests share, each leaving it as it was."""
    ref = site.running_box()
    yield ref
    site.runtime.remove(ref, force=True)


# ---- the seam -------------------------------------------------------------------------------------------


def test_stat_tells_kinds_and_where_links_lead(box: Box) -> None:
    box.files.put(
        "/",
        [
            tar(
                folder("d"),
                file("d/f", b"x"),
                link("d/up", "../d/f"),
                link("abs", "/d"),
                link("broken", "nowhere"),
                entry("d/pipe", tarfile.FIFOTYPE),
            )
        ],
    )
    assert box.files.stat("/d") == FileState(FileKind.DIRECTORY)
    assert box.files.stat("/") == FileState(FileKind.DIRECTORY)
    assert box.files.stat("/d/f") == FileState(FileKind.FILE)
    assert box.files.stat("/d/up") == FileState(FileKind.LINK, "/d/f")
    assert box.files.stat("/abs") == FileState(FileKind.LINK, "/d")
    assert box.files.stat("/abs/f") == FileState(FileKind.FILE)
    assert box.files.stat("/broken") == FileState(FileKind.LINK, "/nowhere")
    assert box.files.stat("/d/pipe") == FileState(FileKind.OTHER)
    assert box.files.stat("/nosuch") is None
    assert box.files.stat("/nosuch/below") is None
    assert box.files.stat("/d/f/below") is None


def test_get_gives_the_top_under_its_last_name(box: Box) -> None:
    box.files.put("/", [tar(folder("d"), file("d/f", b"content"))])

    def names(path: str) -> list[str]:
        with tarfile.open(fileobj=io.BytesIO(b"".join(box.files.get(path)))) as opened:
            return sorted(os.path.normpath(name) for name in opened.getnames())

    assert names("/d") == ["d", "d/f"]
    assert names("/d/f") == ["f"]
    assert names("/d/.") == [".", "f"]
    for path in ("/nosuch", "/d/f/below"):
        with pytest.raises(NotFoundError):
            box.files.get(path)


def test_put_replaces_no_directory(box: Box) -> None:
    box.files.put("/", [tar(folder("d"), file("f"))])
    with pytest.raises(InvalidStateError):
        box.files.put("/", [tar(file("d"))])
    with pytest.raises(InvalidStateError):
        box.files.put("/", [tar(folder("f"))])
    assert box.files.stat("/d") == FileState(FileKind.DIRECTORY)
    assert box.files.stat("/f") == FileState(FileKind.FILE)


def test_files_of_a_former_generation_or_an_unknown_box(site: Site) -> None:
    box = site.new_box()
    later = BoxRef(box.box_id, 2)
    with pytest.raises(NotFoundError):
        site.runtime.files(later)
    site.runtime.create(later, site.spec())
    with pytest.raises(InvalidStateError, match="generation 1 is over"):
        site.runtime.files(box)
    site.runtime.remove(later, force=True)


@pytest.mark.parametrize("user", ["", "root", "nobody"])
def test_owner(site: Site, user: str) -> None:
    ref = site.new_box(user=user)
    assert site.runtime.files(ref).owner() == ((65534, 65534) if user == "nobody" else (0, 0))
    site.runtime.remove(ref, force=True)


# ---- where things go ------------------------------------------------------------------------------------


def test_a_file_is_stored_as_the_path(box: Box) -> None:
    box.put("/made/for/it/b.txt", tar(file("host-name", b"one", mode=0o640)))
    is_dir, entries, content = box.get("/made/for/it/b.txt")
    assert (is_dir, content) == (False, {"b.txt": b"one"})
    assert (entries["b.txt"].mode, entries["b.txt"].mtime) == (0o640, TIME)
    box.put("/made/for/it/b.txt", tar(file("host-name", b"two")), source_is_dir=False)
    assert box.content("/made/for/it/b.txt") == b"two"


@pytest.mark.parametrize("path", ["/there", "/there/", "there", "/new/", "/link-to-there"])
def test_a_file_is_stored_into_a_directory(box: Box, path: str) -> None:
    box.put("/", tar(folder("there"), link("link-to-there", "/there")))
    box.put(path, tar(file("name", b"x")))
    assert box.content(f"{path.rstrip('/')}/name") == b"x"


def test_a_file_goes_through_a_link_at_the_path(box: Box) -> None:
    box.put("/", tar(file("real", b"old"), link("alias", "real")))
    box.put("/alias", tar(file("f", b"new")))
    assert box.content("/real") == b"new"
    assert box.files.stat("/alias") == FileState(FileKind.LINK, "/real")


def test_a_directory_without_its_own_entry(box: Box) -> None:
    box.put("/d", tar(folder("."), folder("sub"), file("sub/y", b"y"), file("x", b"x")))
    assert box.tree("/d") == ["d", "d/sub", "d/sub/y", "d/x"]


def test_a_directory_with_its_own_entry(box: Box) -> None:
    box.put("/d", tar(folder("src"), file("src/x", b"x")), source_is_dir=True)
    assert box.tree("/d") == ["d", "d/src", "d/src/x"]


def test_a_directory_of_one_file_comes_and_goes_as_one(box: Box) -> None:
    box.put("/d", tar(folder("."), file("only", b"x")))
    assert box.tree("/d") == ["d", "d/only"]
    assert box.get("/d")[0] is True
    box.put("/e", tar(file("only", b"x")), source_is_dir=True)
    assert box.tree("/e") == ["e", "e/only"]


def test_an_empty_directory(box: Box) -> None:
    box.put("/a", tar(folder(".")))
    box.put("/b", tar(folder("none")), source_is_dir=True)
    box.put("/c", tar())
    assert (box.tree("/a"), box.tree("/b"), box.tree("/c")) == (["a"], ["b", "b/none"], ["c"])


def test_what_exists_is_merged_and_keeps_its_attributes(box: Box) -> None:
    box.put("/", tar(entry("d", tarfile.DIRTYPE, mode=0o1777), file("d/old", b"o"), file("d/both", b"o")))
    box.put("/d", tar(folder("."), file("both", b"n"), file("new", b"n")))
    assert box.get("/d")[1]["d"].mode == 0o1777
    assert box.get("/d")[2] == {"d/old": b"o", "d/both": b"n", "d/new": b"n"}
    box.put("/", tar(folder("d"), file("d/more", b"m")))
    assert box.get("/d")[1]["d"].mode == 0o1777


def test_a_directory_takes_the_archives_mode_and_time(box: Box) -> None:
    box.put("/d", tar(entry(".", tarfile.DIRTYPE, mode=0o700), entry("s", tarfile.DIRTYPE, mode=0o750)))
    entries = box.get("/d")[1]
    assert [(info.mode, info.mtime) for info in entries.values()] == [(0o700, TIME), (0o750, TIME)]


def test_an_entry_that_exists_as_a_link_to_a_directory_is_merged_into_it(box: Box) -> None:
    box.put("/", tar(folder("real"), link("d", "real")))
    box.put("/", tar(folder("d"), file("d/x", b"x")))
    assert box.content("/real/x") == b"x"


@pytest.mark.parametrize("path", ["/f/below", "/f/"])
def test_below_a_file_nothing_can_be_stored(box: Box, path: str) -> None:
    box.put("/f", tar(file("f", b"x")))
    with pytest.raises(InvalidStateError, match="'/f' in the box is not a directory"):
        box.put(path, tar(file("x")))
    with pytest.raises(InvalidStateError, match="not a directory"):
        box.put("/", tar(folder("f"), file("f/x")))
    assert box.content("/f") == b"x"


@pytest.mark.parametrize("path", ["/proc/x", "/sys", "/dev/shm/x", "/a/../dev/x", "/devices/x"])
def test_what_is_not_on_disk_is_refused(box: Box, path: str) -> None:
    if path == "/devices/x":
        box.put(path, tar(file("x", b"1")))
        assert box.content(path) == b"1"
        return
    with pytest.raises(InvalidArgumentError, match="nothing can be copied"):
        box.put(path, tar(file("x")))
    with pytest.raises(InvalidArgumentError, match="nothing can be copied"):
        box.get(path)
    box.put("/", tar(link("way", "/proc")))
    with pytest.raises(InvalidArgumentError, match="nothing can be copied"):
        box.put("/way", tar(file("x")))


def test_without_overwrite_nothing_is_written_over_anything(box: Box) -> None:
    box.put("/d", tar(folder("."), file("old", b"old"), link("link", "nowhere"), folder("sub"), file("sub/f", b"f")))
    before = box.get("/d")[2]
    for path, data in {
        "/d/old": tar(file("any", b"new")),
        "/d": tar(folder("."), file("new", b"new"), file("old", b"new")),
        "/": tar(folder("d"), folder("d/sub"), file("d/sub/f", b"new")),
        "/d/": tar(file("link", b"new")),
    }.items():
        with pytest.raises(AlreadyExistsError, match="exists in the box"):
            box.put(path, data, overwrite=False)
    assert box.get("/d")[2] == before
    box.put("/d", tar(folder("."), folder("sub"), file("sub/g", b"g"), file("other/h", b"h")), overwrite=False)
    assert box.content("/d/sub/g") == b"g"
    assert box.content("/d/other/h") == b"h"


def test_source_is_dir_false_means_one_file(box: Box) -> None:
    with pytest.raises(InvalidArgumentError, match="one file alone"):
        box.put("/x", tar(file("a"), file("b")), source_is_dir=False)
    box.put("/x", tar(link("l", "target")), source_is_dir=False)
    assert box.files.stat("/x") == FileState(FileKind.LINK, "/target")


def test_names_and_links_of_every_kind(box: Box) -> None:
    long = "/".join(["long-name-" * 20] * 5)
    names = ["plain", "with space", "ümläut", "raw-\udcff", "-dash", "new\nline", long]
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        entries = [file(name, name.encode("utf-8", "surrogateescape")) for name in names]
        box.put("/d", tar(*entries, hard("same", "plain"), link("there", "/absolute/" + "x" * 150), form=form))
        _, found, content = box.get("/d")
        assert {f"d/{name}": name.encode("utf-8", "surrogateescape") for name in names}.items() <= content.items()
        assert found["d/there"].linkname == "/absolute/" + "x" * 150
        assert found["d/same"].islnk() or found["d/plain"].islnk()


def test_times_below_a_second_are_kept(box: Box) -> None:
    box.put("/d", tar(file("f", mtime=TIME + 0.25)))
    assert box.get("/d")[1]["d"].mtime in (TIME + 0.25, TIME)  # an engine may hand out whole seconds


def test_all_belongs_to_the_boxs_user(site: Site, tmp_path: Path) -> None:
    ref = site.new_box(user="nobody")
    box = Box(site, tmp_path, ref)
    box.put("/a/b", tar(folder("."), file("f", uid=7, gid=7), folder("s", uid=7)))
    if os.geteuid() == 0:
        assert {(info.uid, info.gid) for info in box.get("/a")[1].values()} == {(65534, 65534)}
    site.runtime.remove(ref, force=True)


def test_all_belongs_to_its_owners_in_the_archive_where_they_are_to_be_kept(site: Site, tmp_path: Path) -> None:
    ref = site.new_box(user="nobody")
    box = Box(site, tmp_path, ref)
    box.put("/a", tar(folder("."), file("f", uid=7, gid=8), folder("s", uid=9)), keep_owner=True)
    box.put("/b", tar(file("f", uid=7, gid=8)), keep_owner=True)
    if os.geteuid() == 0:
        found = {name: (info.uid, info.gid) for name, info in box.get("/a")[1].items()}
        assert (found["a/f"], found["a/s"]) == ((7, 8), (9, 0))
        assert {(info.uid, info.gid) for info in box.get("/b")[1].values()} == {(7, 8)}
    site.runtime.remove(ref, force=True)


# ---- bad archives ---------------------------------------------------------------------------------------


def broken_header() -> bytes:
    return bytes(range(256)) * 4


def with_extended_header(text: bytes) -> bytes:
    info = tarfile.TarInfo("ext")
    info.type, info.size = tarfile.XHDTYPE, len(text)
    return info.tobuf(tarfile.USTAR_FORMAT) + text.ljust(-(-len(text) // 512) * 512, b"\0") + tar(file("f"))


def claiming(size: int, kind: bytes) -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


BAD = {
    "empty": (b"", "empty"),
    "text": (b"hello, world", "no tar archive"),
    "noise": (broken_header(), "no tar archive"),
    "gzip": (b"\x1f\x8b\x08" + bytes(600), "gzip"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(600), "zstd"),
    "absolute": (tar(file("ok"), file("/etc/passwd")), "absolute"),
    "upwards": (tar(file("ok"), file("../evil")), "upwards"),
    "upwards inside": (tar(folder("a"), file("a/../../evil")), "upwards"),
    "through a link": (tar(link("l", "/etc"), file("l/passwd")), "no directory there"),
    "through a link, deep": (tar(link("a/l", "/"), file("a/l/b/c")), "no directory there"),
    "a link in place of a directory": (
        tar(folder("d"), link("d", "/etc"), file("d/x")),
        "directory and something else",
    ),
    "a link in place of an implied directory": (tar(file("d/x"), link("d", "/etc")), "directory and something else"),
    "below a file": (tar(file("f"), file("f/x")), "no directory there"),
    "hard link out": (tar(hard("h", "../../etc/shadow")), "upwards"),
    "hard link to the host": (tar(hard("h", "/etc/shadow")), "absolute"),
    "hard link to nothing": (tar(hard("h", "nosuch")), "no earlier file"),
    "hard link to a link": (tar(link("l", "/etc/shadow"), hard("h", "l")), "no earlier file"),
    "device": (tar(entry("sda", tarfile.BLKTYPE, devmajor=8)), "a device"),
    "character device": (tar(entry("mem", tarfile.CHRTYPE, devmajor=1, devminor=1)), "a device"),
    "pipe": (tar(entry("p", tarfile.FIFOTYPE)), "a named pipe"),
    "sparse": (claiming(1 << 40, tarfile.GNUTYPE_SPARSE), "sparse"),
    "sparse without a map": (with_extended_header(b"22 GNU.sparse.major=1\n"), "sparse"),
    "unknown kind": (tar(entry("v", b"V")), "not known"),
    "huge": (claiming(1 << 40, tarfile.REGTYPE), "cut off"),
    "negative": (claiming(-512, tarfile.REGTYPE), "below zero"),
    "huge extended header": (claiming(1 << 40, tarfile.XHDTYPE), "extended header of more than"),
    "huge name": (claiming(1 << 40, tarfile.GNUTYPE_LONGNAME), "extended header of more than"),
    "broken extended header": (with_extended_header(b"999 path=x\n"), "broken extended header"),
    "endless extended header": (with_extended_header(b"0 x=y\n"), "broken extended header"),
    "no number": (with_extended_header(b"15 size=1e9999\n"[:15]), "broken"),
    "cut in the data": (tar(file("f", bytes(5000)))[:3000], "cut off"),
    "cut between entries": (tar(file("f", b"x"), file("g"))[:1024], "cut off"),
    "cut header": (tar(file("f"), file("g"))[:700], "cut off"),
    "broken later": (tar(file("f"))[:512] + broken_header(), "broken at byte 512"),
    "long part": (tar(file("x" * 256)), "too long"),
    "long path": (tar(file("/".join(["x" * 100] * 50))), "too long"),
    "top is a file": (tar(file(".")), "no directory"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_archive_is_refused_whole(box: Box, name: str) -> None:
    data, text = BAD[name]
    with pytest.raises(InvalidArgumentError, match=text):
        box.put("/fresh", data)
    assert box.files.stat("/fresh") is None


def test_an_upload_that_breaks_off_leaves_nothing(box: Box, tmp_path: Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield tar(file("f", b"x"))
        raise EngineError("the line is dead")

    with pytest.raises(EngineError, match="dead"):
        box.put("/fresh", chunks())
    assert box.files.stat("/fresh") is None
    assert list(tmp_path.iterdir()) == []


def test_too_many_entries(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_ENTRIES", 3)
    box.put("/d", tar(*(file(str(n)) for n in range(3))))
    with pytest.raises(InvalidArgumentError, match="more than 3 entries"):
        box.put("/d", tar(*(file(str(n)) for n in range(4))))


# ---- down -----------------------------------------------------------------------------------------------


def test_links_stay_links_unless_followed(box: Box) -> None:
    box.put(
        "/o", tar(file("f", b"f"), link("l", "f"), link("out", "/else"), link("broken", "nowhere"), link("up", ".."))
    )
    box.put("/else", tar(folder("."), file("deep", b"deep"), hard("same", "deep"), link("back", "/o")))
    _, entries, _ = box.get("/o")
    assert {name for name, info in entries.items() if info.issym()} == {"o/l", "o/out", "o/broken", "o/up"}
    is_dir, entries, content = box.get("/o", follow=True)
    assert is_dir
    assert {name for name, info in entries.items() if info.issym()} == {"o/broken", "o/up", "o/out/back"}
    hard_links = {name: info.linkname for name, info in entries.items() if info.islnk()}
    assert hard_links in ({"o/out/same": "o/out/deep"}, {"o/out/deep": "o/out/same"})
    assert {content.get(name) for name in ("o/out/deep", "o/out/same")} == {b"deep", None}
    assert (content["o/f"], content["o/l"]) == (b"f", b"f")


def test_a_path_that_is_a_link(box: Box) -> None:
    box.put("/", tar(folder("d"), file("d/f", b"f"), link("dl", "d"), link("fl", "d/f"), link("broken", "nowhere")))
    for follow in (False, True):
        is_dir, entries, content = box.get("/dl", follow=follow)
        assert (is_dir, sorted(entries), content) == (True, ["dl", "dl/f"], {"dl/f": b"f"})
        is_dir, entries, content = box.get("/fl", follow=follow)
        assert (is_dir, content) == (False, {"fl": b"f"})
        with pytest.raises(NotFoundError, match="/broken: it is a link to /nowhere, which does not exist"):
            box.get("/broken", follow=follow)
    assert box.get("/dl/.")[2] == {"./f": b"f"} or box.get("/dl/.")[2] == {"f": b"f"}


@pytest.mark.parametrize("path", ["/nosuch", "/nosuch/.", "/f/below"])
def test_what_is_not_there(box: Box, path: str) -> None:
    box.put("/f", tar(file("f")))
    with pytest.raises(NotFoundError, match="no such file"):
        box.get(path)


def test_the_root_has_no_name(box: Box) -> None:
    box.put("/", tar(file("in-the-root", b"x")))
    is_dir, entries, content = box.get("/")
    assert is_dir
    assert content["./in-the-root"] == b"x"
    assert not any(name.startswith("/") for name in entries)


def test_the_root_with_its_links_followed(fake_site: Site, tmp_path: Path) -> None:
    ref = fake_site.new_box()  # an image has links by the hundred
    box = Box(fake_site, tmp_path, ref)
    box.put("/", tar(file("f", b"x"), link("l", "f")))
    assert box.get("/", follow=True)[2] == {"./f": b"x", "./l": b"x"}
    fake_site.runtime.remove(ref, force=True)


@pytest.mark.parametrize("path", ["/round/a", "/round/a/below"])
def test_links_that_lead_in_a_circle(box: Box, path: str) -> None:
    box.put("/round", tar(link("a", "b"), link("b", "a")))
    for action in (
        lambda: box.get(path),
        lambda: box.get(path, follow=True),
        lambda: box.put(path, tar(file("f"))),
    ):
        with pytest.raises(InvalidStateError, match="link"):
            action()
    assert sorted(box.get("/round", follow=True)[1]) == ["round", "round/a", "round/b"]


def test_a_path_that_no_file_system_takes(box: Box) -> None:
    for action in (lambda: box.get("/" + "x" * 256), lambda: box.put("/" + "ü" * 128 + "/x", tar(file("f")))):
        with pytest.raises(InvalidArgumentError, match="longer than 255"):
            action()


def test_a_pipe_cannot_be_copied(box: Box) -> None:
    box.files.put("/", [tar(entry("pipe", tarfile.FIFOTYPE))])
    with pytest.raises(InvalidArgumentError, match="neither"):
        box.get("/pipe")


# ---- the spool ------------------------------------------------------------------------------------------


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    with (
        Spool(tmp_path, keep_free=1 << 60).open("box") as spooled,
        pytest.raises(ResourceExhaustedError, match="no room"),
    ):
        spooled.write(b"x")


def followed(tmp_path: Path, source: Iterator[bytes], close_source: Callable[[], None] = lambda: None) -> Follower:
    return Follower(Spool(tmp_path), "box", source, close_source)


def test_a_source_is_not_held_up_by_its_reader(tmp_path: Path) -> None:
    done = threading.Event()

    def source() -> Iterator[bytes]:
        for number in range(100):
            yield bytes([number]) * 10_000
        done.set()

    follower = followed(tmp_path, source())
    assert done.wait(60)
    assert b"".join(follower) == b"".join(bytes([number]) * 10_000 for number in range(100))
    follower.close()


def test_a_reader_waits_for_its_source(tmp_path: Path) -> None:
    more = threading.Event()

    def source() -> Iterator[bytes]:
        yield bytes(CHUNK_BYTES - 1)
        yield b"one"
        assert more.wait(60)
        yield b"two"

    follower = followed(tmp_path, source())
    chunks = iter(follower)
    assert next(chunks) == bytes(CHUNK_BYTES - 1)
    assert next(chunks) == b"one"
    more.set()
    assert list(chunks) == [b"two"]
    follower.close()


def test_what_was_spooled_for_a_slow_reader_comes_before_what_follows(tmp_path: Path) -> None:
    caught_up, spooled = threading.Event(), threading.Event()
    pieces = [bytes([number]) * 1000 for number in range(30)]

    def source() -> Iterator[bytes]:
        yield from pieces[:20]
        spooled.set()
        assert caught_up.wait(60)
        yield from pieces[20:]

    follower = followed(tmp_path, source())
    assert spooled.wait(60)
    chunks, received = iter(follower), b""
    while len(received) < 1000 * MAX_KEPT:  # what is kept in memory
        received += next(chunks)
    caught_up.set()
    received += b"".join(chunks)
    assert received == b"".join(pieces)
    follower.close()


def test_a_reader_hears_of_the_sources_failure_after_its_last_byte(tmp_path: Path) -> None:
    def source() -> Iterator[bytes]:
        yield b"one"
        raise EngineError("broken")

    chunks = iter(followed(tmp_path, source()))
    assert next(chunks) == b"one"
    with pytest.raises(BoxliteError, match="broken"):
        next(chunks)


def test_a_reader_that_leaves_ends_the_source(tmp_path: Path) -> None:
    gone, ended = threading.Event(), threading.Event()

    def source() -> Iterator[bytes]:
        try:
            yield bytes(CHUNK_BYTES)
            assert gone.wait(60)
            while True:
                yield b"more"
        finally:
            ended.set()

    follower = followed(tmp_path, source(), gone.set)
    assert next(iter(follower)) == bytes(CHUNK_BYTES)
    follower.close()
    del follower
    assert ended.wait(60)
