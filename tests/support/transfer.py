"""Large files through the API, without holding them: made up on the way in, hashed on the way out."""

from __future__ import annotations

import hashlib
import http.client
import os
import tarfile
from collections.abc import Iterator
from urllib.parse import quote

MIB = 1 << 20
_NOISE = os.urandom(MIB)


def upload(port: int, box: str, path: str, mib: int, *, seed: int = 0) -> str:
    """Store `mib` MiB as `path` in a box; the SHA-256 of what was sent."""
    sha = hashlib.sha256()

    def body() -> Iterator[bytes]:
        info = tarfile.TarInfo("data")
        info.size = mib * MIB
        yield info.tobuf()
        for number in range(mib):
            piece = (seed * 2**32 + number).to_bytes(8, "big") + _NOISE[8:]
            sha.update(piece)
            yield piece
        yield bytes(1024)

    status, answer = _finish(open_upload(port, box, path, body()))
    assert status == 204, answer
    return sha.hexdigest()


def open_upload(port: int, box: str, path: str, body: Iterator[bytes]) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("PUT", url(box, path), body, {"Content-Type": "application/x-tar"})
    return connection


def download(port: int, box: str, path: str) -> str:
    """The SHA-256 of the file at `path` in a box."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    try:
        connection.request("GET", url(box, path))
        response = connection.getresponse()
        assert response.status == 200, response.read()
        assert response.getheader("x-boxlite-source-is-dir") == "false"
        sha = hashlib.sha256()
        with tarfile.open(fileobj=response, mode="r|") as archive:
            entry = archive.next()
            assert entry is not None
            file = archive.extractfile(entry)
            assert file is not None
            while piece := file.read(MIB):
                sha.update(piece)
        while response.read(MIB):
            pass
    finally:
        connection.close()
    return sha.hexdigest()


def url(box: str, path: str) -> str:
    return f"/v1/boxes/{box}/files?path={quote(path, safe='')}"


def _finish(connection: http.client.HTTPConnection) -> tuple[int, bytes]:
    try:
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
