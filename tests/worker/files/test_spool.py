"""What is spooled is what came, and long runs of zeros take no room."""

from __future__ import annotations

from pathlib import Path

from boxlite_server.rpc import CHUNK_BYTES
from boxlite_server.worker.files.spool import Spool


def test_zeros_inside_of_a_large_piece_take_no_room(tmp_path: Path) -> None:
    data = b"a" * CHUNK_BYTES + bytes(2 * CHUNK_BYTES) + b"b" * 100
    with Spool(tmp_path, keep_free=0).open() as file:
        file.write(data)
        assert (file.size, file.stored) == (len(data), CHUNK_BYTES + 100)
        assert file.read(len(data), 0) == data
