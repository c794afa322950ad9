"""`boxlite events`."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from support.fake_server import FakeServer, error

from boxlite_server.client.commands import events

Boxlite = Callable[..., int]

START = b"retry: 1000\nid: 4\n\n"


def told(number: int, kind: str, time: str = "2026-01-01T00:00:00.000Z", **details: object) -> bytes:
    fields = {"id": number, "time": time, "kind": kind, "box_id": "AbCdEf123456", "name": "web", "details": details}
    return f"event: {kind}\nid: {number}\ndata: {json.dumps(fields)}\n\n".encode()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "RETRY_SECONDS", 0.0)


def test_each_event_is_a_line(server: FakeServer, boxlite: Boxlite, capfd: pytest.CaptureFixture[str]) -> None:
    stream = (
        START + told(5, "box.started") + b": keep-alive\n\n" + told(6, "box.stopped", exit_code=3, error_message=None)
    )
    server.on("GET", "/v1/events?box=web&kind=box&follow=false", (200, stream), (200, stream))
    assert boxlite("events", "-f", "box=web", "-f", "kind=box", "--no-follow") == 0
    assert capfd.readouterr().out.splitlines() == [
        "2026-01-01T00:00:00.000Z box.started web (AbCdEf123456)",
        "2026-01-01T00:00:00.000Z box.stopped web (AbCdEf123456) exit_code=3",
    ]
    assert boxlite("events", "-f", "box=web", "-f", "kind=box", "--no-follow", "--format", "json") == 0
    assert [json.loads(line)["id"] for line in capfd.readouterr().out.splitlines()] == [5, 6]


def test_a_stream_that_ends_goes_on_where_it_stopped(
    server: FakeServer, boxlite: Boxlite, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = (200, told(5, "box.started") + b"event: error\ndata: the database cannot be used now\n\n")
    refused = (401, error("unauthenticated", "the key has ended"))
    server.on(
        "GET", "/v1/events", (200, START), broken, (503, error("upstream_unavailable", "busy")), (200, b""), refused
    )
    assert boxlite("events") == 1
    assert [request.headers.get("last-event-id") for request in server.requests] == [None, "4", "5", "5", "5"]
    out, err = capfd.readouterr()
    assert len(out.splitlines()) == 1
    assert err.startswith("Error: the key has ended")


def test_a_gap_is_told(server: FakeServer, boxlite: Boxlite, capfd: pytest.CaptureFixture[str]) -> None:
    gap = b'event: gap\nid: 9\ndata: {"id":9,"message":"gone"}\n\n'
    server.on("GET", "/v1/events?follow=false", (200, START + gap + told(10, "box.started")))
    assert boxlite("events", "--no-follow") == 0
    out, err = capfd.readouterr()
    assert "box.started" in out and "no longer has them" in err


def test_events_since_a_time(server: FakeServer, boxlite: Boxlite, capfd: pytest.CaptureFixture[str]) -> None:
    stream = told(1, "box.created", "2026-01-01T00:00:00.000Z") + told(2, "box.started", "2026-01-01T00:00:01.000Z")
    server.on("GET", "/v1/events?follow=false", (200, stream), (200, stream))
    assert boxlite("events", "--no-follow", "--since", "2026-01-01T00:00:01Z") == 0
    assert [line.split()[1] for line in capfd.readouterr().out.splitlines()] == ["box.started"]
    assert boxlite("events", "--no-follow", "--since", "10m") == 0
    assert capfd.readouterr().out == ""
    assert server.requests[0].headers["last-event-id"] == "0"
    for flag, value in (("--since", "yesterday"), ("--filter", "image=x"), ("--filter", "box")):
        with pytest.raises(SystemExit):
            boxlite("events", flag, value)


def test_a_server_that_is_not_there(boxlite: Boxlite, server: FakeServer, capfd: pytest.CaptureFixture[str]) -> None:
    server.on("GET", "/v1/events", (503, error("upstream_unavailable", "away")))
    assert boxlite("events") == 1
    assert capfd.readouterr().err == "Error: away\n"
