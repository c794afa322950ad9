"""Pieces of output as clients can take them."""

from __future__ import annotations

import base64
import json
import random

import pytest

from boxlite_server.coordinator.http.sse import output_event
from boxlite_server.coordinator.http.utf8 import Utf8Joiner

TEXT = "aé€😀" * 50


def joined(pieces: list[bytes]) -> list[bytes]:
    joiner = Utf8Joiner()
    out = [joiner.push(1, piece) for piece in pieces]
    return out + [data for _, data in joiner.flush()]


@pytest.mark.parametrize("seed", range(20))
def test_no_piece_ends_inside_a_character_and_nothing_is_lost(seed: int) -> None:
    rng, data, pieces = random.Random(seed), TEXT.encode(), []
    while data:
        size = rng.randint(1, 7)
        pieces.append(data[:size])
        data = data[size:]
    out = joined(pieces)
    assert "".join(piece.decode("utf-8") for piece in out) == TEXT


def test_bytes_that_are_no_text_pass_unchanged() -> None:
    data = bytes(range(256)) * 3
    assert b"".join(joined([data[i : i + 5] for i in range(0, len(data), 5)])) == data


def test_an_unfinished_character_comes_out_at_the_end() -> None:
    assert joined([b"a\xe2\x82"]) == [b"a", b"\xe2\x82"]


def test_streams_do_not_mix() -> None:
    joiner = Utf8Joiner()
    assert joiner.push(1, b"\xe2") == b""
    assert joiner.push(2, b"x") == b"x"
    assert joiner.push(1, b"\x82\xac") == "€".encode()


def test_an_event_always_holds_valid_text() -> None:
    event = output_event(1, b"ok\xff", 7).decode()
    name, position, data, end, _ = event.split("\n")
    assert (name, position, end) == ("event: stdout", "id: 7", "")
    assert base64.b64decode(json.loads(data.removeprefix("data: "))["data"]) == "ok\ufffd".encode()
