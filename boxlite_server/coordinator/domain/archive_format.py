"""The `.boxlite` archive: a box's settings and its file system in one file that can be written as a stream.

The archive is an uncompressed tar archive (ustar) of plain files, in exactly this order:

    manifest.json           format, version, settings; at most 1 MiB
    rootfs.tar.00000000 …   the file system, a tar archive cut into pieces of at most 1 MiB
    end.json                length and SHA-256 of all pieces; an archive without it is truncated

So `tar -xOf web.boxlite --wildcards 'rootfs.tar.*' | tar -t` lists the file system with ordinary tools.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

from ... import errors, rpc
from ...formats import parse_json

FORMAT, VERSION = "boxlite-archive", 1
MAX_ENTRY_BYTES = 1024 * 1024
PIECE_BYTES = rpc.CHUNK_BYTES

_BLOCK = 512
_MANIFEST, _PIECE, _END = "manifest.json", "rootfs.tar.{:08d}", "end.json"
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"PK\x03\x04")


async def write(manifest: Mapping[str, Any], tar: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The archive, piece by piece. `manifest` has neither format nor version; both are added."""
    yield _entry(_MANIFEST, _json({"format": FORMAT, "version": VERSION, **manifest}))
    digest, length, number, held = hashlib.sha256(), 0, 0, bytearray()
    async for data in tar:
        held += data
        while len(held) >= PIECE_BYTES:
            piece = bytes(held[:PIECE_BYTES])
            del held[:PIECE_BYTES]
            digest.update(piece)
            length += len(piece)
            yield _entry(_PIECE.format(number), piece)
            number += 1
    digest.update(held)
    length += len(held)
    yield _entry(_PIECE.format(number), bytes(held))
    yield _entry(_END, _json({"bytes": length, "sha256": digest.hexdigest()})) + bytes(2 * _BLOCK)


class Reader:
    """Reads an archive from a stream. All methods raise InvalidArgumentError for what is not exactly an archive."""

    def __init__(self, stream: AsyncIterator[bytes]) -> None:
        self._stream = stream
        self._held = bytearray()

    async def manifest(self) -> dict[str, Any]:
        """The manifest, to be read first. Another version of the format is refused."""
        name, data = await self._next()
        manifest = _parsed(data) if name == _MANIFEST else {}
        if manifest.get("format") != FORMAT:
            raise errors.InvalidArgumentError("this is no .boxlite archive: it does not begin with a manifest")
        if manifest.get("version") != VERSION:
            raise errors.InvalidArgumentError(
                f"archive version {manifest.get('version')!r} cannot be read; this server knows version {VERSION}"
            )
        return manifest

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The pieces of the file system, a tar archive. The iteration ends only if the whole archive was read and its
        checksum is right."""
        digest, length, number = hashlib.sha256(), 0, 0
        while True:
            name, data = await self._next()
            if name == _END:
                break
            if name != _PIECE.format(number):
                raise errors.InvalidArgumentError(f"the archive is damaged: {name!r} does not belong there")
            if number == 0 and data[257:262] != b"ustar":
                raise errors.InvalidArgumentError("the archive's file system is no tar archive")
            digest.update(data)
            length += len(data)
            number += 1
            yield data
        if _parsed(data) != {"bytes": length, "sha256": digest.hexdigest()}:
            raise errors.InvalidArgumentError("the archive is damaged: its checksum does not match")
        async for rest in self._rest():
            if rest.strip(b"\0"):
                raise errors.InvalidArgumentError("the archive is damaged: data follows its end")

    async def _next(self) -> tuple[str, bytes]:
        header = await self._take(_BLOCK)
        try:
            entry = tarfile.TarInfo.frombuf(header, "ascii", "strict")
        except (tarfile.HeaderError, ValueError) as exc:
            if header.startswith(_COMPRESSED):
                raise errors.InvalidArgumentError("the archive is compressed; unpack it first") from exc
            raise errors.InvalidArgumentError("this is no .boxlite archive, or a damaged one") from exc
        if entry.type != tarfile.REGTYPE or not 0 <= entry.size <= MAX_ENTRY_BYTES:
            raise errors.InvalidArgumentError(f"this is no .boxlite archive: {entry.name!r} cannot be in one")
        data = await self._take(entry.size)
        await self._take(-entry.size % _BLOCK)
        return entry.name, data

    async def _take(self, size: int) -> bytes:
        while len(self._held) < size:
            try:
                self._held += await anext(self._stream)
            except StopAsyncIteration:
                raise errors.InvalidArgumentError("the archive breaks off before its end") from None
        taken = bytes(self._held[:size])
        del self._held[:size]
        return taken

    async def _rest(self) -> AsyncIterator[bytes]:
        yield bytes(self._held)
        async for data in self._stream:
            yield data


def _entry(name: str, data: bytes) -> bytes:
    header = tarfile.TarInfo(name)
    header.size, header.mode = len(data), 0o644
    return header.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % _BLOCK)


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode()


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        value = parse_json(data.decode())
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise errors.InvalidArgumentError("the archive is damaged: its manifest or its end is no JSON object")
    return value
