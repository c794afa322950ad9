"""What is spooled is what came, and long runs of zeros take no room."""

from __future__ import annotations

import os
from pathlib import Path

from boxlite_server.errors import ResourceExhaustedError
from boxlite_server.rpc import CHUNK_BYTES
from boxlite_server.worker.files.spool import Spool, SpooledFile


def test_zeros_inside_of_a_large_piece_take_no_room(tmp_path: Path) -> None:
    data = b"a" * CHUNK_BYTES + bytes(2 * CHUNK_BYTES) + b"b" * 100
    with Spool(tmp_path, keep_free=0).open("box") as file:
        file.write(data)
        assert (file.size, file.stored) == (len(data), CHUNK_BYTES + 100)
        assert file.read(len(data), 0) == data


MIB = 1024 * 1024


def test_one_box_takes_half_of_the_budget_and_all_boxes_the_whole(tmp_path: Path) -> None:
    spool = Spool(tmp_path, keep_free=0, budget=32 * MIB)
    data = os.urandom(MIB)

    def fill(box_id: str) -> tuple[SpooledFile, int]:
        """A file of a box that takes what there is, and its size in MiB."""
        file = spool.open(box_id)
        for size in range(100):
            try:
                file.write(data)
            except ResourceExhaustedError:
                return file, size
        raise AssertionError("there is no end to it")

    first, size = fill("one")
    assert size == 16
    again, size = fill("one")
    assert size == 0
    other, size = fill("two")
    assert size == 16
    third, size = fill("three")
    assert size == 0
    for file in (first, again, third):
        file.close()
        file.close()
    assert fill("three")[1] == 16
    assert fill("one")[1] == 0
    other.close()
    assert fill("one")[1] == 16


def test_holes_take_nothing_of_the_budget(tmp_path: Path) -> None:
    with Spool(tmp_path, keep_free=0, budget=8 * MIB).open("box") as file:
        file.write(bytes(64 * MIB))
        assert file.size == 64 * MIB
