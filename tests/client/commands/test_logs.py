"""`boxlite logs`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from support.fake_server import FakeServer, error

from boxlite_server.client.commands import logs

Boxlite = Callable[..., int]

EVENTS = b"""event: stdout
data: {"data":"b3V0/wo="}

: keep-alive

event: stderr
data: {"data":"ZXJyCg=="}

"""
END = b"event: end\ndata: {}\n\n"


def test_each_stream_goes_its_way(
    server: FakeServer, boxlite: Boxlite, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    server.on("GET", "/v1/boxes/web/logs", (200, EVENTS + END))
    assert boxlite("logs", "web") == 0
    assert capfdbinary.readouterr() == (b"out\xff\n", b"err\n")


def test_flags(server: FakeServer, boxlite: Boxlite) -> None:
    server.on("GET", "/v1/boxes/web/logs?follow=true&tail=0", (200, END))
    assert boxlite("logs", "-f", "-n", "0", "web") == 0
    for bad in ("-1", "x"):
        with pytest.raises(SystemExit):
            boxlite("logs", "-n", bad, "web")


def test_since_and_timestamps(server: FakeServer, boxlite: Boxlite) -> None:
    noon = "/v1/boxes/web/logs?since=2026-01-31T12%3A00%3A00.000000Z"
    server.on("GET", noon, (200, END))
    server.on("GET", f"{noon}&timestamps=true", (200, END))
    assert boxlite("logs", "--since", "2026-01-31T12:00:00Z", "web") == 0
    assert boxlite("logs", "-t", "--since", "2026-01-31T13:00:00+01:00", "web") == 0
    assert boxlite("logs", "--since", "1769860800", "web") == 0
    assert boxlite("logs", "--tail", "all", "--since", "2026-01-31T12:00:00.0Z", "web") == 0


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("2h", 7200), ("1d", 86400), ("1h30m", 5400)])
def test_since_a_while_ago(text: str, seconds: int) -> None:
    before = datetime.now(UTC).timestamp()
    since = datetime.fromisoformat(logs.since_flag(text)).timestamp()
    assert before - seconds - 0.001 <= since <= datetime.now(UTC).timestamp() - seconds


def test_a_log_that_breaks_off_is_no_success(
    server: FakeServer, boxlite: Boxlite, capfd: pytest.CaptureFixture[str]
) -> None:
    server.on("GET", "/v1/boxes/web/logs", (200, EVENTS), (200, b"event: error\ndata: worker gone\n\n"))
    assert boxlite("logs", "web") == 1
    assert "broke the log off" in capfd.readouterr().err
    assert boxlite("logs", "web") == 1
    assert capfd.readouterr().err == "Error: worker gone\n"
    assert boxlite("logs", "nosuch") == 1


def test_a_box_that_is_not_there(server: FakeServer, boxlite: Boxlite, capfd: pytest.CaptureFixture[str]) -> None:
    server.on("GET", "/v1/boxes/web/logs", (404, error("not_found", "no box 'web'")))
    assert boxlite("logs", "web") == 1
    assert capfd.readouterr().err == "Error: no box 'web'\n"
