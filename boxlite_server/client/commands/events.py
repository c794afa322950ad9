"""`events`: prints what happens to boxes, snapshots, volumes and images, as it happens."""

from __future__ import annotations

import http.client
import json
import logging
import time
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from ...errors import ResourceExhaustedError, UpstreamUnavailableError
from .. import stream
from ..api import ApiClient, unreachable
from ..parser import Commands
from ..sse import ServerEvent, events_of
from .logs import since_flag

RETRY_SECONDS = 1.0  # from the end of a stream to the next request
PATIENCE_SECONDS = 60.0  # without an answer, after which the server is given up

_KEYS = ("box", "kind")

log = logging.getLogger("boxlite.client")


def add_to(commands: Commands) -> None:
    sub = commands.add(
        "events",
        events,
        "Show what happens to boxes, snapshots, volumes and images, as it happens",
        examples=(
            "boxlite events",
            "boxlite events --filter box=web --filter kind=box.stopped",
            "boxlite events --since 1h --no-follow --format json",
        ),
    )
    sub.add_argument(
        "-f",
        "--filter",
        type=_filter,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="show only events that fit: box=ID or box=NAME, and kind=KIND, such as box.stopped, or box for all "
        "events of boxes. Values of one key are alternatives (repeatable)",
    )
    sub.add_argument(
        "--since",
        type=since_flag,
        metavar="TIME",
        help="begin with what happened since this time: 30s, 10m, 2h or 7d ago, 2026-01-31T12:00:00Z, or a Unix time "
        "(default: now)",
    )
    sub.add_argument("--no-follow", dest="follow", action="store_false", help="end with the last event that there is")
    sub.add_argument(
        "--format",
        choices=("text", "json"),
        default="text",
        metavar="FORMAT",
        help="print each event as a line of text, or of json (default: text)",
    )


def _filter(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    if key not in _KEYS or not value:
        raise ArgumentTypeError(f"'{text}' is not KEY=VALUE with one of the keys {', '.join(_KEYS)}")
    return key, value


def events(api: ApiClient, args: Namespace, pause: Callable[[float], None] = time.sleep) -> int:
    """Follow the events until the user or the server's refusal ends it. A stream that breaks off goes on where it
    stopped."""
    _Follower(api, args, pause).follow()
    return 0


class _Follower:
    def __init__(self, api: ApiClient, args: Namespace, pause: Callable[[float], None]) -> None:
        self._api = api
        self._pause = pause
        self._shown: Callable[[dict[str, Any]], str] = json.dumps if args.format == "json" else _line
        self._since = None if args.since is None else _seconds(args.since)
        self._position = "" if args.since is None else "0"
        self._follows = args.follow
        self._heard_at: float | None = None  # when the server was heard last
        query = [*args.filter, *([] if args.follow else [("follow", "false")])]
        self._path = api.path("events") + ("?" + urlencode(query) if query else "")

    def follow(self) -> None:
        """Print the events. Raises `BoxliteError`."""
        while True:
            try:
                self._read()
                if not self._follows:
                    return
            except (UpstreamUnavailableError, ResourceExhaustedError) as error:
                if self._heard_at is None or time.monotonic() > self._heard_at + PATIENCE_SECONDS:
                    raise
                log.debug("events: %s", error)
            self._api.close()
            self._pause(RETRY_SECONDS)

    def _read(self) -> None:
        """Print the events of one stream. Raises `BoxliteError`."""
        more = {"Last-Event-ID": self._position} if self._position else {}
        response = self._api.download("GET", self._path, "text/event-stream", more=more, silence=stream.SILENCE)
        try:
            for event in events_of(response):
                self._heard_at = time.monotonic()
                self._take(event)
        except BrokenPipeError:
            raise  # of stdout: this client writes nothing to the server meanwhile
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise unreachable(self._api.url, error) from error

    def _take(self, event: ServerEvent) -> None:
        if event.name == "error":
            raise UpstreamUnavailableError(event.data)
        if event.name == "gap":
            if self._since is None:
                stream.notice("some events are missing here: the server no longer has them")
        elif event.name:
            fields = json.loads(event.data)
            if self._since is None or _seconds(fields["time"]) >= self._since:
                print(self._shown(fields), flush=True)
        self._position = event.id or self._position


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _line(event: dict[str, Any]) -> str:
    """One line of text: time, kind, what it is about, and the details that are there."""
    names = [event["name"], event["box_id"] and f"({event['box_id']})"]
    details = [f"{key}={value}" for key, value in event["details"].items() if value is not None]
    return " ".join([event["time"], event["kind"], *filter(None, names), *details])
