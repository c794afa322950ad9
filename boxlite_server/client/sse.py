"""Parses server-sent events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class ServerEvent(NamedTuple):
    """One event; an event with an id alone says how far a stream has come."""

    name: str
    data: str
    id: str


def events_of(lines: Iterable[bytes]) -> Iterator[ServerEvent]:
    """Yield the events of an answer, given line by line; comments are left out. Raises what reading the lines raises,
    and ValueError for lines that are not UTF-8."""
    name, data, event_id = "", list[str](), ""
    for raw in lines:
        field, _, value = raw.decode().rstrip("\r\n").partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data.append(value)
        elif field == "id":
            event_id = value
        elif not field and not value:
            if name or event_id:
                yield ServerEvent(name, "\n".join(data), event_id)
            name, data, event_id = "", [], ""
