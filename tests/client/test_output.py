from __future__ import annotations

from datetime import UTC, datetime

import pytest

from boxlite_server.client import output

NOW = datetime(2026, 1, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    ("timestamp", "text"),
    [
        ("2026-01-10T00:00:05Z", "0 seconds ago"),
        ("2026-01-09T23:59:59Z", "1 second ago"),
        ("2026-01-09T23:58:01+00:00", "1 minute ago"),
        ("2026-01-10T00:00:00+02:00", "2 hours ago"),
        ("2026-01-01T00:00:00.123456Z", "8 days ago"),
        ("yesterday", "yesterday"),
    ],
)
def test_age(timestamp: str, text: str) -> None:
    assert output.age(timestamp, NOW) == text


def test_table_pads_to_the_widest_cell() -> None:
    assert output.table(("A", "BB"), [("long", ""), ("x", "y")]) == "A      BB\nlong\nx      y"
