"""A reader of a cluster's events, as a client would be one."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlencode

from boxlite_server.client.sse import events_of
from support.cluster import wait_until

Event = dict[str, Any]


class Followed:
    """What a stream has told so far. `position`: the id to go on behind; `ended`: the server has closed the stream."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.events: list[Event] = []
        self.position = ""
        self.ended = False
        self._response = response
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @property
    def kinds(self) -> list[str]:
        return [event["kind"] for event in self.events]

    def until(self, found: Callable[[list[Event]], bool] | str, seconds: float = 60.0) -> list[Event]:
        """Wait for an event of that kind, or for events of which that holds; all events so far."""
        holds = found if callable(found) else lambda events: any(event["kind"] == found for event in events)
        wait_until(lambda: holds(list(self.events)), f"{found} after {self.kinds}", seconds)
        return list(self.events)

    def to_the_end(self) -> list[Event]:
        self._thread.join(60)
        assert self.ended
        return self.events

    def _read(self) -> None:
        with suppress(OSError, http.client.HTTPException, ValueError, AttributeError):  # closed on either side
            for event in events_of(self._response):
                if event.name == "gap":
                    self.events.append({"kind": "gap", **json.loads(event.data)})
                elif event.name:
                    self.events.append(json.loads(event.data))
                    assert (event.name, event.id) == (self.events[-1]["kind"], str(self.events[-1]["id"]))
                self.position = event.id or self.position
        self.ended = True


@contextmanager
def followed(
    port: int, path: str = "/v1/events", *, after: str = "", headers: dict[str, str] | None = None, **query: Any
) -> Iterator[Followed]:
    """Read the events from now on, or behind an id, for the duration of the `with` block."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    sent = {**(headers or {}), **({"Last-Event-ID": after} if after else {})}
    try:
        connection.request("GET", f"{path}?{urlencode(query, doseq=True)}", headers=sent)
        response = connection.getresponse()
        assert response.status == 200, response.read()
        yield Followed(response)
    finally:
        if connection.sock:
            with suppress(OSError):
                connection.sock.shutdown(2)
        connection.close()
