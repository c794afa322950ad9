"""The `.boxlite` archive: what is written is read, and nothing else is."""

from __future__ import annotations

import asyncio
import io
import random
import tarfile
from collections.abc import AsyncIterator

import pytest

from boxlite_server import errors
from boxlite_server.coordinator.domain import archive_format
from boxlite_server.coordinator.limits import Policy
from boxlite_server.coordinator.spec import Spec

MANIFEST = {"spec": {"image": "ü"}, "settings": {}}


async def chunked(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]
        yield b""


def disk(size: int) -> bytes:
    """A tar archive of at least that many bytes."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        entry = tarfile.TarInfo("file")
        entry.size = size
        tar.addfile(entry, io.BytesIO(random.Random(size).randbytes(size)))
    return made.getvalue()


def written(data: bytes, size: int = 100_000) -> bytes:
    async def gather() -> bytes:
        return b"".join([piece async for piece in archive_format.write(MANIFEST, chunked(data, size))])

    return asyncio.run(gather())


def read(archive: bytes, size: int = 100_000) -> tuple[dict[str, object], bytes]:
    async def gather() -> tuple[dict[str, object], bytes]:
        reader = archive_format.Reader(chunked(archive, size))
        return await reader.manifest(), b"".join([piece async for piece in reader.pieces()])

    return asyncio.run(gather())


@pytest.mark.parametrize("size", [1, archive_format.PIECE_BYTES - 1536, 3_000_000])
@pytest.mark.parametrize("step", [1000, 1 << 20])
def test_what_is_written_is_read(size: int, step: int) -> None:
    data = disk(size)
    manifest, found = read(written(data, step), step)
    assert found == data
    assert manifest == {"format": "boxlite-archive", "version": 1, **MANIFEST}


def test_ordinary_tools_can_read_it() -> None:
    data = disk(1_000_000)
    with tarfile.open(fileobj=io.BytesIO(written(data))) as archive:
        names = archive.getnames()
        parts = [archive.extractfile(name).read() for name in names]  # type: ignore[union-attr]
    assert (names[0], names[-1]) == ("manifest.json", "end.json")
    assert b"".join(parts[1:-1]) == data
    assert len(names) > 4


def test_no_part_of_an_archive_passes_for_the_whole() -> None:
    archive = written(disk(300_000))
    for length in [*range(0, len(archive) - 1024, 512), len(archive) - 1025]:
        with pytest.raises(errors.InvalidArgumentError):
            read(archive[:length])


def test_no_changed_bit_passes() -> None:
    archive, rng = written(disk(300_000)), random.Random(1)
    end = archive.rindex(b"}") + 1
    for _ in range(300):
        at = rng.randrange(end)
        changed = archive[:at] + bytes([archive[at] ^ 1 << rng.randrange(8)]) + archive[at + 1 :]
        try:
            manifest, data = read(changed)
        except errors.InvalidArgumentError:
            continue
        # What is left is padding and unread bytes: the manifest's own text has no checksum.
        assert data == disk(300_000)
        assert manifest.keys() or at < 4096


def test_a_spec_survives_its_archive() -> None:
    """A spec that a row keeps is a valid request, word for word."""
    asked = {"name": "web", "env": {"A": "b"}, "cmd": ["x"], "labels": {"l": "m"}, "auto_remove": True}
    spec = Spec.of_request(asked, Policy(default_auto_stop=60))
    assert Spec.of_request(spec.to_request(), Policy(default_auto_stop=30, default_auto_delete=1)) == spec
