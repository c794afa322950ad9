"""Trees packed by real packers: what comes out of a box equals what went in. And what hostile archives get."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sites import Site

from boxlite_server.errors import AlreadyExistsError, InvalidArgumentError, InvalidStateError, ResourceExhaustedError
from boxlite_server.local.machine import apt_install, which
from boxlite_server.worker.files import fields, names, sparse
from boxlite_server.worker.files import tar as archive
from boxlite_server.worker.files.spool import Spool
from boxlite_server.worker.files.transfer import Files
from boxlite_server.worker.runtime import BoxRef, FileKind, FileState

TIME = 1_700_000_000
MIB = 1 << 20

PACKERS = {
    "gnu": ["tar", "--format=gnu"],
    "gnu, sparse": ["tar", "--format=gnu", "--sparse"],
    "posix": ["tar", "--format=posix"],
    "posix, sparse 0.0": ["tar", "--format=posix", "--sparse", "--sparse-version=0.0"],
    "posix, sparse 0.1": ["tar", "--format=posix", "--sparse", "--sparse-version=0.1"],
    "posix, sparse 1.0": ["tar", "--format=posix", "--sparse", "--sparse-version=1.0"],
    "bsdtar": ["bsdtar", "--format=pax"],
    "bsdtar, restricted": ["bsdtar", "--format=paxr"],
}


class Box:
    """A box and its files as a client sees them."""

    def __init__(self, site: Site, spool: Path, ref: BoxRef) -> None:
        self.ref = ref
        self.files = site.runtime.files(ref)
        self._transfers = Files(site.runtime, Spool(spool))

    def put(self, path: str, data: bytes, *, overwrite: bool = True, source_is_dir: bool | None = None) -> str:
        return self._transfers.put(self.ref, path, [data], overwrite=overwrite, source_is_dir=source_is_dir)

    def get(self, path: str) -> bytes:
        with self._transfers.get(self.ref, path, follow_links=False) as (_, chunks):
            return b"".join(chunks)


@pytest.fixture(scope="module")
def box(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A box that was never started, shared by the tests of this module; each writes to a place of its own."""
    ref = site.new_box()
    yield Box(site, tmp_path_factory.mktemp("spool"), ref)
    site.runtime.remove(ref, force=True)


@pytest.fixture
def place(request: pytest.FixtureRequest) -> str:
    return "/" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("packed") / "src"
    deep = root.joinpath(*["directory-with-a-long-name-" * 4] * 4)
    deep.mkdir(parents=True)
    (root / "empty").mkdir(mode=0o750)
    (deep / ("x" * 200)).write_bytes(b"deep")
    (root / "plain").write_bytes(os.urandom(70_000))
    (root / "plain").chmod(0o4751)
    (root / "also plain").hardlink_to(root / "plain")
    (root / "ümläut\nand a line").write_bytes(b"name")
    (root / os.fsdecode(b"raw-\xff")).write_bytes(b"raw")
    (root / "link").symlink_to("plain")
    (root / "away").symlink_to("/nowhere/" + "y" * 150)
    _sparse(root / "hole at the end", [(0, 5000)], 3 * MIB)
    _sparse(root / "hole at the start", [(2 * MIB, 3)], 2 * MIB + 3)
    _sparse(root / "nothing but a hole", [], MIB)
    _sparse(root / "many holes", [(n * 65536, 4096) for n in range(40)], 40 * 65536)
    for path in [*root.rglob("*"), root]:
        os.utime(path, ns=(0, TIME * 10**9 + 123_456_789), follow_symlinks=False)
    return root


def _sparse(path: Path, parts: list[tuple[int, int]], size: int) -> None:
    with path.open("wb") as file:
        for offset, length in parts:
            file.seek(offset)
            file.write(os.urandom(length))
        file.truncate(size)


def packed(tree: Path, packer: list[str], *more: str) -> bytes:
    if which(packer[0]) is None:
        if os.geteuid() != 0:
            pytest.skip(f"{packer[0]} is not installed")
        apt_install("libarchive-tools")
    done = subprocess.run([*packer, *more, "-cf", "-", "-C", str(tree.parent), tree.name], capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def listing(root: Path) -> dict[str, Any]:
    """What there is to compare of a tree."""
    found: dict[str, Any] = {}
    for path in [root, *root.rglob("*")]:
        info = path.lstat()
        what: Any = None
        if stat.S_ISLNK(info.st_mode):
            what = str(path.readlink())
        elif stat.S_ISREG(info.st_mode):
            what = (hashlib.sha256(path.read_bytes()).hexdigest(), info.st_nlink)
        mode = 0 if stat.S_ISLNK(info.st_mode) else info.st_mode & 0o7777
        found[str(path.relative_to(root))] = (stat.S_IFMT(info.st_mode), mode, int(info.st_mtime), what)
    return found


def unpacked(data: bytes, into: Path) -> Path:
    into.mkdir()
    subprocess.run(["tar", "-xpf", "-", "-C", str(into)], input=data, check=True)
    return into


@pytest.mark.parametrize("packer", PACKERS)
def test_what_comes_out_is_what_a_packer_put_in(box: Box, tree: Path, place: str, packer: str, tmp_path: Path) -> None:
    assert box.put(place, packed(tree, PACKERS[packer]), source_is_dir=True) == ""
    back = unpacked(box.get(f"{place}/src"), tmp_path / "back") / "src"
    assert listing(back) == listing(tree)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_comes_out_is_what_python_put_in(box: Box, tree: Path, place: str, form: int, tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as opened:
        opened.add(tree, "src")
    box.put(place, out.getvalue(), source_is_dir=True)
    assert listing(unpacked(box.get(f"{place}/src"), tmp_path / "back") / "src") == listing(tree)


def test_a_sparse_file_alone_is_stored_as_the_path(box: Box, tree: Path, place: str) -> None:
    source = tree / "hole at the start"
    for packer in ("gnu, sparse", "posix, sparse 0.0", "posix, sparse 0.1", "posix, sparse 1.0"):
        box.put(place, packed(source, PACKERS[packer]), source_is_dir=False)
        with tarfile.open(fileobj=io.BytesIO(box.get(place))) as opened:
            (entry,) = opened
            file = opened.extractfile(entry)
            assert file is not None
            assert (entry.name, file.read()) == (place[1:], source.read_bytes())


@pytest.mark.parametrize("target", ["../../out", "../../../../out", "/../out", "..", "sub/../../../out"])
def test_a_link_may_lead_out_of_the_tree_that_it_came_with(box: Box, place: str, target: str) -> None:
    box.put(place, tar(entry("src/l", tarfile.SYMTYPE, linkname=target)), source_is_dir=True)
    box.put(f"{place}/src", tar(entry("m", tarfile.SYMTYPE, linkname=target)), source_is_dir=False)
    with tarfile.open(fileobj=io.BytesIO(box.get(f"{place}/src"))) as opened:
        assert [info.linkname for info in opened if info.issym()] == [target, target]


# ---- attributes -----------------------------------------------------------------------------------------


def entry(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **values: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mtime = kind, len(data), TIME
    for key, value in values.items():
        setattr(info, key, value)
    return info, data


def tar(*entries: tuple[tarfile.TarInfo, bytes], headers: dict[str, str] | None = None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers=headers) as opened:
        for info, data in entries:
            opened.addfile(info, io.BytesIO(data))
    return out.getvalue()


CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


def raw(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def test_extended_attributes_and_exact_times_are_stored(
    docker_alone: Site, tmp_path: Path, api: Any, place: str
) -> None:
    """The engine hands out no attributes but capabilities, so the box itself has to tell."""
    if os.geteuid() != 0:
        pytest.skip("looking into a box takes root")
    ref = docker_alone.running_box()
    box = Box(docker_alone, tmp_path, ref)
    headers = {
        "SCHILY.xattr.user.binary": raw(b"\0\xff\n=1 x"),
        "LIBARCHIVE.xattr.user.of%20libarchive": "AP89Cg",
        "SCHILY.xattr.security.capability": raw(CAPABILITY),
        "SCHILY.xattr.security.selinux": "label",
        "mtime": f"{TIME}.123456789",
    }
    folder = entry("d", tarfile.DIRTYPE, mode=0o755, pax_headers={"SCHILY.xattr.user.of": "directory"})
    skipped = box.put(place, tar(folder, entry("d/f", pax_headers=headers)), source_is_dir=True)
    assert skipped == "d/f?xattr=security.selinux"
    (container,) = api.containers(filters={"label": f"boxlite.box={ref.box_id}"}) or api.containers(latest=True)
    root = f"/proc/{api.inspect_container(container)['State']['Pid']}/root{place}"
    assert os.getxattr(f"{root}/d/f", "user.binary") == b"\0\xff\n=1 x"
    assert os.getxattr(f"{root}/d/f", "user.of libarchive") == b"\0\xff\x3d\x0a"
    assert os.getxattr(f"{root}/d/f", "security.capability") == CAPABILITY
    assert os.getxattr(f"{root}/d", "user.of") == b"directory"
    assert Path(root, "d/f").stat().st_mtime_ns == TIME * 10**9 + 123_456_789
    for path in (f"{place}/d/f", f"{place}/d"):
        assert raw(CAPABILITY) in box.get(path).decode("utf-8", "surrogateescape")
    docker_alone.runtime.remove(ref, force=True)


def test_fields_for_all_entries_hold_for_each(box: Box, place: str) -> None:
    box.put(place, tar(entry("a", mtime=0), entry("b", pax_headers={"mtime": "7"}), headers={"mtime": str(TIME)}))
    with tarfile.open(fileobj=io.BytesIO(box.get(place))) as opened:
        assert [(info.name[-1], info.mtime) for info in opened if info.isfile()] == [("a", TIME), ("b", 7)]


# ---- what is skipped ------------------------------------------------------------------------------------


def test_pipes_are_skipped_and_named(box: Box, place: str) -> None:
    pipe, named = entry("d/p p", tarfile.FIFOTYPE), entry("d/same", tarfile.LNKTYPE, linkname="d/p p")
    assert box.put(place, tar(entry("d/f", data=b"f"), pipe, named), source_is_dir=True) == "d/p%20p, d/same"
    with tarfile.open(fileobj=io.BytesIO(box.get(f"{place}/d"))) as opened:
        assert sorted(opened.getnames()) == ["d", "d/f"]


def test_a_name_that_is_a_pipe_and_then_a_file(box: Box, place: str) -> None:
    pipe, link = entry("p", tarfile.FIFOTYPE), entry("l", tarfile.LNKTYPE, linkname="p")
    assert box.put(place, tar(pipe, link, entry("p", data=b"x"), entry("l", data=b"y"))) == "p, l"
    assert b"y" in box.get(f"{place}/l")


def test_a_pipe_alone_is_refused_unless_it_is_in_a_directory(box: Box, place: str) -> None:
    for source_is_dir in (None, False):
        with pytest.raises(InvalidArgumentError, match="named pipe, and there is nothing else"):
            box.put(place, tar(entry("p", tarfile.FIFOTYPE)), source_is_dir=source_is_dir)
    assert box.files.stat(place) is None
    assert box.put(place, tar(entry("p", tarfile.FIFOTYPE)), source_is_dir=True) == "p"
    assert box.files.stat(place) == FileState(FileKind.DIRECTORY)


def test_what_is_skipped_is_told_in_bounded_length(box: Box, place: str) -> None:
    text = box.put(place, tar(*(entry(f"pipe-{n}", tarfile.FIFOTYPE) for n in range(1000))), source_is_dir=True)
    told = text.split(", ")
    assert len(text) <= 4096
    assert told[0] == "pipe-0"
    assert told[-1] == f"+{1000 - (len(told) - 1)}"


# ---- hostile archives -----------------------------------------------------------------------------------


def extended(data: bytes = b"", **records: str) -> bytes:
    """A file of a sparse form that is told in an extended header."""
    names = {f"GNU.sparse.{key}": value for key, value in records.items()}
    return tar(entry("f", data=data, pax_headers=names))


def form_0_0(pairs: list[tuple[str, str]], size: int, data: bytes = b"") -> bytes:
    records = b""
    for key, value in [("size", str(size)), *pairs]:
        body = f" GNU.sparse.{key}={value}\n".encode()
        length = len(body) + 2 if len(body) + 2 < 100 else len(body) + 3
        records += str(length).encode() + body
    info = tarfile.TarInfo("ext")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    return info.tobuf(tarfile.USTAR_FORMAT) + padded(records) + tar(entry("f", data=data))


def padded(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // 512) * 512, b"\0")


def form_1_0(text: bytes, size: int, data: bytes = b"") -> bytes:
    return extended(padded(text) + data, major="1", minor="0", realsize=str(size))


def old(pairs: list[tuple[int, int]], size: int, data: bytes = b"", more: list[bytes] | None = None) -> bytes:
    def number(value: int) -> bytes:
        return value.to_bytes(12, "big", signed=True) if not 0 <= value < 8**11 else b"%011o\0" % value

    info = tarfile.TarInfo("f")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, len(data)
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[345:500] = bytes(155)
    for place, pair in enumerate(pairs):
        header[386 + 24 * place : 410 + 24 * place] = number(pair[0]) + number(pair[1])
    header[482] = more is not None
    size_field = number(size)
    header[483:495] = bytes([size_field[0] | 0x80]) + size_field[1:] if size >= 8**11 else size_field
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + b"".join(more or []) + padded(data) + bytes(1024)


HOSTILE = {
    "overlapping": (old([(0, 10), (5, 10)], 100, bytes(20)), "map is broken"),
    "out of order": (old([(50, 10), (0, 10)], 100, bytes(20)), "map is broken"),
    "beyond the end": (old([(95, 10)], 100, bytes(10)), "map is broken"),
    "negative offset": (old([(-5, 10)], 100, bytes(10)), "map is broken"),
    "negative size": (old([(0, -5)], 100, b""), "map is broken"),
    "more data than the map has": (old([(0, 10)], 100, bytes(600)), "map is broken"),
    "less data than the map has": (old([(0, 600)], 1000, bytes(10)), "map is broken"),
    "of 10^18 bytes, old": (old([(0, 10)], 10**18, bytes(10)), "more than 16 TiB"),
    "blocks of the map without end": (old([], 100, b"", [b"\0" * 504 + b"\1" + b"\0" * 7] * 50)[:-1024], "cut off"),
    "a map of noise": (old([], 100, b"", [b"x" * 512]), "map is broken"),
    "0.1, overlapping": (extended(bytes(20), size="100", map="0,10,5,10"), "map is broken"),
    "0.1, half a part": (extended(bytes(10), size="100", map="0,10,20"), "map is broken"),
    "0.1, negative": (extended(bytes(10), size="100", map="-5,10"), "map is broken"),
    "0.1, no numbers": (extended(bytes(10), size="100", map="a,b"), "map is broken"),
    "0.1, no size": (extended(bytes(10), map="0,10"), "map is broken"),
    "0.1, of 10^18 bytes": (extended(bytes(10), size=str(10**18), map="0,10"), "more than 16 TiB"),
    "0.1, digits without end": (extended(bytes(10), size="9" * 5000, map="0,10"), "map is broken"),
    "0.0, out of turn": (form_0_0([("numbytes", "5"), ("offset", "0")], 100, bytes(5)), "a number is missing"),
    "0.0, negative": (form_0_0([("offset", "-1"), ("numbytes", "5")], 100, bytes(5)), "a number is missing"),
    "1.0, fewer than promised": (form_1_0(b"9\n0\n10\n", 100, bytes(10)), "map is broken"),
    "1.0, 10^18 parts": (form_1_0(b"1000000000000000000\n0\n10\n", 100, bytes(10)), "more than 500000 parts"),
    "1.0, a line without end": (form_1_0(b"1" * 5000, 100), "map is broken"),
    "1.0, negative": (form_1_0(b"1\n-5\n10\n", 100, bytes(10)), "map is broken"),
    "1.0, no map": (form_1_0(b"", 100), "map is broken"),
    "1.0, of 10^18 bytes": (form_1_0(b"1\n0\n10\n", 10**18, bytes(10)), "more than 16 TiB"),
    "2.0": (extended(major="2", minor="0", realsize="5"), "unknown form, 2.0"),
    "sparse for all": (tar(entry("f"), headers={"GNU.sparse.major": "1"}), "global header that names files"),
    "a name for all": (tar(entry("f"), headers={"path": "g"}), "global header that names files"),
    "attributes that are no base64": (tar(entry("f", pax_headers={"LIBARCHIVE.xattr.user.a": "!"})), "broken extended"),
    "an attribute of 70,000 bytes": (tar(entry("f", pax_headers={"SCHILY.xattr.user.a": "x" * 70_000})), "too large"),
    "700,000 bytes of attributes": (
        tar(entry("f", pax_headers={f"SCHILY.xattr.user.{n}": "x" * 50_000 for n in range(14)})),
        "too large",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused_whole(box: Box, place: str, name: str) -> None:
    data, text = HOSTILE[name]
    with pytest.raises(InvalidArgumentError, match=text):
        box.put(place, data)
    assert box.files.stat(place) is None


def checked(tmp_path: Path, data: bytes) -> archive.Summary:
    with Spool(tmp_path).open("box") as file:
        file.write(data)
        return archive.check(file)


def test_a_map_of_too_many_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "MAX_PARTS", 50)
    empty = b"%011o\0" % 0 * 42 + b"\1" + bytes(7)
    with pytest.raises(InvalidArgumentError, match="more than 50 parts"):
        checked(tmp_path, old([(0, 0)] * 4, 100, b"", [empty] * 10))


def test_extended_headers_that_add_up(tmp_path: Path) -> None:
    """Each of them is small enough, and the entry that they are for never comes."""
    info, record = tarfile.TarInfo("ext"), b"600000 comment=".ljust(599_999, b"x") + b"\n"
    info.size = len(record)
    for info.type in (tarfile.XHDTYPE, tarfile.XGLTYPE):
        header = info.tobuf(tarfile.USTAR_FORMAT) + padded(record)
        with pytest.raises(InvalidArgumentError, match=f"more than {fields.MAX_BYTES} bytes"):
            checked(tmp_path, header * 2 + tar(entry("f")))


def test_names_that_hold_more_directories_than_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "MAX_NAMES", 100)
    with pytest.raises(InvalidArgumentError, match="more than 100 names"):
        checked(tmp_path, tar(*(entry("/".join([str(n), *"abcdefghij", "f"])) for n in range(20))))


def test_holes_that_the_disk_has_no_room_for(site: Site, box: Box, place: str, tmp_path: Path) -> None:
    files = Files(site.runtime, Spool(tmp_path, keep_free=0))
    with pytest.raises(ResourceExhaustedError, match="MiB are needed"):
        files.put(box.ref, place, [old([(0, 10)], 2**43, bytes(10))], overwrite=True, source_is_dir=None)
    assert box.files.stat(place) is None


Parts = list[tuple[int, bytes]]


@st.composite
def sparse_files(draw: st.DrawFn) -> tuple[int, Parts]:
    """Size and parts of a sparse file."""
    parts: Parts = []
    end = 0
    for _ in range(draw(st.integers(0, 60))):
        start = end + draw(st.integers(0, 3000))
        data = draw(st.binary(min_size=0, max_size=700))
        parts.append((start, data))
        end = start + len(data)
    return end + draw(st.integers(0, 3000)), parts


@settings(max_examples=60, deadline=None)
@given(sparse_files())
def test_every_form_of_a_sparse_file_is_the_same_file(file: tuple[int, Parts]) -> None:
    size, parts = file
    stored = b"".join(data for _, data in parts)
    whole = bytearray(size)
    for offset, data in parts:
        whole[offset : offset + len(data)] = data
    numbers = [(offset, len(data)) for offset, data in parts]
    pairs = [pair for o, n in numbers for pair in (("offset", str(o)), ("numbytes", str(n)))]
    lines = [str(len(numbers)), *(str(number) for pair in numbers for number in pair)]
    first, rest = numbers[:4], numbers[4:]
    more = [_continued(rest[n : n + 21], n + 21 < len(rest)) for n in range(0, len(rest), 21)]
    forms = [
        old(first, size, stored, more or None),
        extended(stored, size=str(size), map=",".join(str(number) for pair in numbers for number in pair)),
        form_1_0("\n".join([*lines, ""]).encode(), size, stored),
    ]
    if pairs:
        forms.append(form_0_0(pairs, size, stored))
    for data in forms:
        source = _Bytes(data)
        (found,) = archive.read(source)
        assert found.info.size == size
        assert b"".join(archive.data(source, found))[:size] == bytes(whole)
        stream = archive.Stream([data[n : n + 700] for n in range(0, len(data), 700)])
        found = next(archive.read(stream))
        assert b"".join(archive.data(stream, found))[:size] == bytes(whole)


def _continued(numbers: list[tuple[int, int]], goes_on: bool) -> bytes:
    return b"".join(b"%011o\0" % n for pair in numbers for n in pair).ljust(504, b"\0") + bytes([goes_on]) + bytes(7)


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read(self, count: int, position: int) -> bytes:
        return self._data[position : position + count]


# ---- what the box has already ---------------------------------------------------------------------------


def many(directories: int) -> bytes:
    found = [entry("top", tarfile.DIRTYPE, mode=0o755)]
    for n in range(directories):
        found += [entry(f"top/{n}", tarfile.DIRTYPE, mode=0o755), entry(f"top/{n}/f", data=b"x")]
    return tar(*found)


class Counted:
    """The files of a box, counting the calls to the engine."""

    def __init__(self, files: Any) -> None:
        self._files = files
        self.calls = 0

    def files(self, ref: BoxRef) -> Counted:
        return self

    def __getattr__(self, name: str) -> Any:
        self.calls += 1
        return getattr(self._files, name)


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_second_upload_of_a_tree_takes_few_calls(box: Box, place: str, tmp_path: Path, overwrite: bool) -> None:
    counted = Counted(box.files)
    transfers = Files(counted, Spool(tmp_path))  # type: ignore[arg-type]
    box.put(place, many(300), source_is_dir=True)
    more = tar(*(entry(f"top/{n}/new", data=b"y") for n in range(300)))
    transfers.put(box.ref, place, [more], overwrite=overwrite, source_is_dir=True)
    assert counted.calls < 20
    with tarfile.open(fileobj=io.BytesIO(box.get(f"{place}/top"))) as opened:
        assert len(opened.getnames()) == 1 + 3 * 300


def test_directories_that_exist_keep_their_attributes_however_many_they_are(box: Box, place: str) -> None:
    box.put(place, tar(*(entry(f"d{n}", tarfile.DIRTYPE, mode=0o1777) for n in range(100))))
    box.put(place, tar(*(entry(f"d{n}/e", tarfile.DIRTYPE, mode=0o700) for n in range(100))))
    again = [entry(f"d{n}{below}", tarfile.DIRTYPE, mode=0o755) for n in range(101) for below in ("", "/e", "/g")]
    box.put(place, tar(*again))
    with tarfile.open(fileobj=io.BytesIO(box.get(f"{place}/."))) as opened:
        modes = {os.path.normpath(info.name): info.mode & 0o7777 for info in opened}
    assert {(modes[f"d{n}"], modes[f"d{n}/e"], modes[f"d{n}/g"]) for n in range(100)} == {(0o1777, 0o700, 0o755)}
    assert (modes["d100"], modes["d100/e"]) == (0o755, 0o755)


def test_files_that_are_the_same_or_not_in_a_second_upload(box: Box, place: str) -> None:
    def upload(**changed: dict[str, Any]) -> None:
        found = [entry(f"d{n}", tarfile.DIRTYPE, mode=0o755) for n in range(50)]
        for name in ("same", "content", "mode", "time", "kind", "link", "twice"):
            values: dict[str, Any] = {"data": b"content", "mode": 0o644, **changed.get(name, {})}
            if name == "link":
                values = {"kind": tarfile.SYMTYPE, "linkname": "a", **changed.get(name, {})}
            found.append(entry(f"d7/{name}", **values))
        if changed:
            found.append(entry("d7/twice", data=b"content", mode=0o644))
        box.put(place, tar(*found))

    upload()
    upload(
        content={"data": b"CONTENT"},
        mode={"mode": 0o600},
        time={"mtime": 7},
        kind={"kind": tarfile.SYMTYPE, "data": b"", "linkname": "b"},
        link={"linkname": "b"},
        twice={"data": b"first"},
    )
    told: dict[str, Any] = {}
    with tarfile.open(fileobj=io.BytesIO(box.get(f"{place}/d7"))) as opened:
        for info in opened:
            file = opened.extractfile(info) if info.isreg() else None
            content = file.read() if file is not None else info.linkname
            if not info.isdir():
                told[info.name.partition("/")[2]] = (info.mode & 0o777 if file else 0, info.mtime, content)
    assert told == {
        "same": (0o644, TIME, b"content"),
        "content": (0o644, TIME, b"CONTENT"),
        "mode": (0o600, TIME, b"content"),
        "time": (0o644, 7, b"content"),
        "kind": (0, TIME, "b"),
        "link": (0, TIME, "b"),
        "twice": (0o644, TIME, b"content"),
    }


def test_links_to_directories_are_merged_into_however_many_there_are(box: Box, place: str) -> None:
    real = [entry(f"real/{n}/sub", tarfile.DIRTYPE, mode=0o1777) for n in range(50)]
    links = [entry(f"d/{n}", tarfile.SYMTYPE, linkname=f"../real/{n}") for n in range(50)]
    box.put(place, tar(*real, *links))
    box.put(
        place, tar(*(entry(f"d/{n}/sub", tarfile.DIRTYPE) for n in range(50)), *(entry(f"d/{n}/f") for n in range(50)))
    )
    with tarfile.open(fileobj=io.BytesIO(box.get(f"{place}/real"))) as opened:
        found = {info.name: info.mode & 0o7777 for info in opened}
    assert all(f"real/{n}/f" in found and found[f"real/{n}/sub"] == 0o1777 for n in range(50))


def test_what_is_in_the_way_is_found_however_much_there_is(box: Box, place: str) -> None:
    box.put(
        place, tar(*(entry(f"d{n}", data=b"old") if n == 99 else entry(f"d{n}/f", data=b"old") for n in range(100)))
    )
    with pytest.raises(InvalidStateError, match=r"'/[0-9a-f]+/d99' in the box is not a directory"):
        box.put(place, tar(*(entry(f"d{n}/new") for n in range(100))))
    with pytest.raises(AlreadyExistsError, match="exists in the box; nothing was written"):
        box.put(place, tar(*(entry(f"d{n}/{'f' if n == 98 else 'new'}") for n in range(99))), overwrite=False)
    assert b"new" not in box.get(place)


def test_a_listing_that_would_be_too_large_is_given_up(
    box: Box, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("boxlite_server.worker.files.existing.MIN_LISTED_BYTES", 0)
    monkeypatch.setattr("boxlite_server.worker.files.existing.LISTED_BYTES", 1000)
    box.put(
        place,
        tar(*(entry(f"d{n:03}", tarfile.DIRTYPE, mode=0o1777) for n in range(60)), entry("d030x", data=bytes(MIB))),
    )
    box.put(place, tar(*(entry(f"d{n:03}", tarfile.DIRTYPE, mode=0o755) for n in range(60))))
    with tarfile.open(fileobj=io.BytesIO(box.get(f"{place}/."))) as opened:
        assert {info.mode & 0o7777 for info in opened if os.path.normpath(info.name) not in (".", "d030x")} == {0o1777}


# ---- out of the box -------------------------------------------------------------------------------------


def test_a_file_of_holes_takes_no_room_on_its_way_out(site: Site, box: Box, place: str, tmp_path: Path) -> None:
    """The engine hands out holes as zeros; the worker's disk could not hold these."""
    box.put(place, old([(0, 10)], 200 * MIB, b"0123456789"))
    with Spool(tmp_path, keep_free=0).open("box") as spooled:
        for chunk in box.files.get(place):
            spooled.write(chunk)
        assert spooled.size > 200 * MIB
        assert spooled.stored < MIB
        (found,) = archive.read(spooled, trusted=True)
        content = b"".join(archive.data(spooled, found))
    assert content == b"0123456789".ljust(200 * MIB, b"\0")
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("target", ["d/f", "{place}/d/f", "./d/../chain", "/../..{place}/d/f"])
def test_a_link_to_a_file_gives_the_file(box: Box, place: str, target: str) -> None:
    chain = entry("chain", tarfile.SYMTYPE, linkname="hop")
    hop = entry("hop", tarfile.SYMTYPE, linkname="d/f")
    link = entry("current.txt", tarfile.SYMTYPE, linkname=target.format(place=place))
    box.put(place, tar(entry("d/f", data=b"content", mode=0o640), chain, hop, link))
    with tarfile.open(fileobj=io.BytesIO(box.get(f"{place}/current.txt"))) as opened:
        (info,) = opened
        file = opened.extractfile(info)
        assert file is not None
        assert (info.name, info.mode & 0o7777, file.read()) == ("current.txt", 0o640, b"content")


def test_a_link_to_a_directory_gives_the_directory(box: Box, place: str) -> None:
    inner = entry("d/.hidden", tarfile.SYMTYPE, linkname="/etc/passwd")
    same = entry("d/same", tarfile.LNKTYPE, linkname="d/f")
    box.put(place, tar(entry("d/f", data=b"f"), same, inner, entry("now", tarfile.SYMTYPE, linkname="d")))
    with tarfile.open(fileobj=io.BytesIO(box.get(f"{place}/now"))) as opened:
        found = {info.name: info for info in opened}
    assert sorted(found) == ["now", "now/.hidden", "now/f", "now/same"]
    assert found["now/.hidden"].linkname == "/etc/passwd"
    assert {found["now/f"].linkname, found["now/same"].linkname} <= {"", "now/f", "now/same"}


def test_a_link_to_what_is_no_file_on_disk(box: Box, place: str) -> None:
    pipe = tar(entry(place[1:] + "p", tarfile.FIFOTYPE))
    box.files.put("/", [pipe])
    box.put(
        place,
        tar(entry("m", tarfile.SYMTYPE, linkname="/proc/mounts"), entry("p", tarfile.SYMTYPE, linkname=place + "p")),
    )
    with pytest.raises(InvalidArgumentError, match="nothing can be copied into or out of /proc"):
        box.get(f"{place}/m")
    with pytest.raises(InvalidArgumentError, match="neither a file nor a directory"):
        box.get(f"{place}/p")
