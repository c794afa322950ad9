"""Texts of clients, read as JSON."""

from __future__ import annotations

import pytest

from boxlite_server.formats import parse_json


def test_json_is_read() -> None:
    assert parse_json('{"a": [1, null, "\\u00e9"]}') == {"a": [1, None, "é"]}


@pytest.mark.parametrize(
    "text", ["", "{", "NaN", "[-Infinity]", '"\\ud800"', '{"\\udfff": 1}', "[" * 100_000, "9" * 5000]
)
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_json(text)
