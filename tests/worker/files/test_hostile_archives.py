"""Archives made to cost the worker, or the engine behind it, more than they cost their sender."""

from __future__ import annotations

import gzip
import io
import tarfile
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.calls import Client, create_request, refusal
from support.sites import Site

from boxlite_server import ids
from boxlite_server._gen import worker_pb2 as pb
from boxlite_server.errors import BoxliteError, InvalidArgumentError, ResourceExhaustedError
from boxlite_server.worker.files import fields, names, transfer
from boxlite_server.worker.files import tar as archive
from boxlite_server.worker.files.spool import Spool
from boxlite_server.worker.files.transfer import Files
from boxlite_server.worker.runtime import BoxRef

MIB = 1024 * 1024
END = bytes(1024)


def header(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.PAX_FORMAT)


def extended(records: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    return header("ext", kind, len(records)) + records + bytes(-len(records) % 512)


def record(key: str, value: str = "") -> bytes:
    text = f" {key}={value}\n".encode("utf-8", "surrogateescape")
    size = len(text) + 1
    while size != len(text) + len(str(size)):
        size = len(text) + len(str(size))
    return str(size).encode() + text


def filled(*records: bytes) -> bytes:
    """The records again and again, up to the size that an extended header may have."""
    whole = b"".join(records)
    return whole * (fields.MAX_BYTES // len(whole))


def checked(tmp_path: Path, data: bytes) -> archive.Summary:
    with Spool(tmp_path).open("box") as file:
        file.write(data)
        return archive.check(file)


def test_a_deep_entry_is_refused_before_it_costs_memory(tmp_path: Path) -> None:
    data = header("a/" * 1990 + "f") + END
    tracemalloc.start()
    try:
        with pytest.raises(InvalidArgumentError, match="directories deep"):
            checked(tmp_path, data)
        assert tracemalloc.get_traced_memory()[1] < 300_000
    finally:
        tracemalloc.stop()


def test_names_are_bounded_in_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "MAX_BYTES", 20_000)
    data = b"".join(header(f"{number:0100}") for number in range(1000)) + END
    with pytest.raises(InvalidArgumentError, match="names of more than 20000 bytes"):
        checked(tmp_path, data)


def test_uploads_at_once_share_the_memory_for_names(
    fake_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "MAX_NAMES_AT_ONCE", 3000)
    box, files = fake_site.new_box(), Files(fake_site.runtime, Spool(tmp_path))
    few = b"".join(header(f"d/{number}") for number in range(900)) + END
    many = b"".join(header(f"d/{number}") for number in range(3900)) + END

    def put(data: bytes) -> None:
        files.put(box, "/many", [data], overwrite=True, source_is_dir=True)

    put(few)
    with pytest.raises(ResourceExhaustedError, match="too many large archives"):
        put(many)
    for _ in range(4):
        put(few)  # what a refused and a finished upload have taken is free again


COSTLY = {
    "small records": (filled(b"5 a=\n"), "more than 50000 records"),
    "attributes": (
        b"".join(record(f"SCHILY.xattr.user.{n}") for n in range(30_000)),
        "more than 1000 extended attributes",
    ),
    "attributes to leave out": (
        b"".join(record(f"SCHILY.xattr.{n}") for n in range(30_000)),
        "more than 1000 extended",
    ),
    "an encoded name": (record("LIBARCHIVE.xattr." + "%zz" * 300_000), "name is too long"),
    "a long name": (record("SCHILY.xattr." + "x" * 1_000_000), "name is too long"),
    "a path": (record("path", "a/" * 500_000), "name that is too long"),
    "a path upwards": (record("path", "../" * 300_000), "leads upwards"),
}


@pytest.mark.parametrize("kind", COSTLY)
def test_an_extended_header_that_costs_much_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    records, why = COSTLY[kind]
    start = time.thread_time()
    with pytest.raises(InvalidArgumentError, match=why) as refused:
        checked(tmp_path, extended(records) + header("f") + END)
    assert time.thread_time() - start < 1.0
    assert len(refused.value.message) < 500


def test_what_holds_for_all_entries_is_not_paid_for_by_each(tmp_path: Path) -> None:
    head = b"".join(record(f"k{n}", "v") for n in range(40_000))
    start = time.thread_time()
    checked(tmp_path, extended(head, tarfile.XGLTYPE) + header("f") * 2000 + END)
    assert time.thread_time() - start < 2.0


def test_attributes_for_all_entries_are_refused(tmp_path: Path) -> None:
    head = record("SCHILY.xattr.user.a", "x" * 60_000)
    with pytest.raises(InvalidArgumentError, match="global header that sets extended attributes"):
        checked(tmp_path, extended(head, tarfile.XGLTYPE) + header("f") + END)


def test_extended_headers_are_bounded_in_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_HEADER_BYTES", 100_000)
    one = extended(record("comment", "x" * 900)) + header("f")
    assert checked(tmp_path, one * 50 + END)
    with pytest.raises(InvalidArgumentError, match="100000 bytes of extended headers"):
        checked(tmp_path, one * 150 + END)


def test_links_that_multiply_end_at_a_limit(fake_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each directory has ten links to the next: ten files of 1 KB in ten levels would be ten terabytes."""
    monkeypatch.setattr(transfer, "MAX_FOLLOWED_BYTES", MIB)
    box, files = fake_site.new_box(), Files(fake_site.runtime, Spool(tmp_path))
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as opened:
        for level in range(10):
            for number in range(10):
                link = tarfile.TarInfo(f"{level}/{number}")
                link.type, link.linkname = tarfile.SYMTYPE, f"/grow/{level + 1}"
                opened.addfile(link)
        last = tarfile.TarInfo("10/f")
        last.size = 1000
        opened.addfile(last, io.BytesIO(bytes(1000)))
    files.put(box, "/grow", [out.getvalue()], overwrite=True, source_is_dir=True)
    with files.get(box, "/grow/0", follow_links=True) as (_, chunks):
        got = 0
        with pytest.raises(InvalidArgumentError, match="links followed"):
            for chunk in chunks:
                got += len(chunk)
        assert got < 20 * MIB


# ---- imports --------------------------------------------------------------------------------------------


def bomb() -> bytes:
    """A gzip stream that looks like a tar archive at the place where one has its magic word."""
    packed = gzip.compress(header("f", size=64 * MIB) + bytes(64 * MIB) + END)
    name = (b"a" * 247 + b"ustar\x0000").ljust(490, b"a")
    return packed[:3] + bytes([packed[3] | 8]) + packed[4:10] + name + b"\0" + packed[10:]


def sparse_bomb() -> bytes:
    """1 TiB of zeros."""
    head = record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") + record("GNU.sparse.name", "f")
    map_ = f"1\n{2**40 - 1}\n1\n".encode().ljust(512, b"\0")
    return extended(head + record("GNU.sparse.realsize", str(2**40))) + header("f", size=513) + map_ + bytes(512) + END


IMPORTS = {
    "a gzip bomb": (bomb(), "compressed with gzip"),
    "a sparse bomb": (sparse_bomb(), "sparse file"),
    "a deep path": (header("a/" * 1990 + "f") + END, "directories deep"),
    "a way out": (header("../f") + END, "leads upwards"),
    "a broken header": (header("f") + b"x" * 512 + END, "broken at byte"),
}


@pytest.mark.parametrize("kind", IMPORTS)
def test_a_hostile_import_is_refused(fake_site: Site, client: Client, kind: str) -> None:
    """Its sender gets to its end: a coordinator that is interrupted would not receive the reason."""
    data, why = IMPORTS[kind]
    is_sent = False
    assert data[257:262] == b"ustar", "it gets past the coordinator"
    ref = pb.BoxRef(box_id=ids.new_id(), generation=1)

    def requests() -> Iterator[pb.ImportBoxRequest]:
        nonlocal is_sent
        yield pb.ImportBoxRequest(box=create_request(fake_site, ref))
        for start in range(0, len(data), 100_000):
            yield pb.ImportBoxRequest(data=data[start : start + 100_000])
        for _ in range(100):
            yield pb.ImportBoxRequest(data=bytes(100_000))
        yield pb.ImportBoxRequest(end=True)
        is_sent = True

    status, code, text = refusal(client.ImportBox, requests())
    assert (status, code) == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_argument")
    assert why in text
    assert is_sent
    with pytest.raises(BoxliteError):
        fake_site.runtime.inspect(BoxRef(ref.box_id, 1))


def test_an_import_keeps_what_an_export_holds() -> None:
    """Owners, modes, devices, links, exact times and capabilities come through as they are."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as opened:
        for name, kind, more in ENTRIES:
            info = tarfile.TarInfo(name)
            info.type, info.mtime, info.uid, info.gid, info.mode = kind, 1_700_000_000, 70_000, 5, 0o6755
            for key, value in more.items():
                setattr(info, key, value)
            opened.addfile(info, io.BytesIO(b"x" * info.size))
    sent = out.getvalue()
    taken = b"".join(archive.disk([sent[start : start + 700] for start in range(0, len(sent), 700)]))
    with tarfile.open(fileobj=io.BytesIO(sent)) as before, tarfile.open(fileobj=io.BytesIO(taken)) as after:
        told = ("name", "type", "mode", "uid", "gid", "size", "linkname", "devmajor", "devminor", "mtime")
        for old, new in zip(before, after, strict=True):
            assert [getattr(old, key) for key in told] == [getattr(new, key) for key in told]
            assert old.pax_headers.get("SCHILY.xattr.security.capability") == new.pax_headers.get(
                "SCHILY.xattr.security.capability"
            )


ENTRIES: list[tuple[str, bytes, dict[str, Any]]] = [
    ("etc", tarfile.DIRTYPE, {}),
    ("etc/long" + "n" * 200, tarfile.REGTYPE, {"size": 70_000}),
    ("etc/able", tarfile.REGTYPE, {"size": 3, "pax_headers": {"SCHILY.xattr.security.capability": "\1\0\0\2x"}}),
    ("etc/hard", tarfile.LNKTYPE, {"linkname": "etc/able"}),
    ("etc/soft", tarfile.SYMTYPE, {"linkname": "../../" + "t" * 150}),
    ("dev/null", tarfile.CHRTYPE, {"devmajor": 1, "devminor": 3}),
    ("run/pipe", tarfile.FIFOTYPE, {}),
    ("etc/exact", tarfile.REGTYPE, {"mtime": 1_700_000_000.25}),
]
