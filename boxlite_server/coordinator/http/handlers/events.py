"""Events: what happens to boxes, snapshots, volumes, images and workers, as a stream."""

from __future__ import annotations

import functools
from typing import Any

import connexion

from .... import errors
from ...core import Core
from ...events import Wanted
from ...store import KINDS
from .. import sse, views
from ..errors import IS_OPERATOR

_KNOWN = frozenset(KINDS) | {kind.partition(".")[0] for kind in KINDS}


async def stream_events(
    core: Core,
    prefix: str,
    last_event_id: int | None = None,
    box: list[str] | None = None,
    kind: list[str] | None = None,
) -> Any:
    """Answer with the events of a prefix from now on, or from after ``Last-Event-ID``."""
    return await _stream(core, prefix, last_event_id, box, kind)


async def stream_all_events(
    core: Core,
    last_event_id: int | None = None,
    box: list[str] | None = None,
    kind: list[str] | None = None,
) -> Any:
    """Answer with the events of workers and of all prefixes."""
    return await _stream(core, None, last_event_id, box, kind)


async def _stream(
    core: Core, prefix: str | None, last_event_id: int | None, box: list[str] | None, kind: list[str] | None
) -> Any:
    kinds = frozenset(one for several in kind or () for one in several.split(","))
    if unknown := kinds - _KNOWN:
        raise errors.InvalidArgumentError(f"unknown kind of event '{min(unknown)}'; known are {', '.join(KINDS)}")
    header = connexion.request.headers.get("last-event-id")
    after = last_event_id if header is None else sse.parse_event_id(header)
    reader = await core.events.reader(prefix, after, Wanted(frozenset(box or ()), kinds))
    return sse.stream_events(core, reader, functools.partial(views.event, for_operator=IS_OPERATOR.get()))
