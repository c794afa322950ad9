"""Events: what happens to boxes, snapshots, volumes, images and workers, as a stream."""

from __future__ import annotations

import functools
from typing import Any

import connexion

from ...core import Core
from ...events import Wanted
from .. import sse, views
from ..errors import IS_OPERATOR


async def stream_events(
    core: Core,
    prefix: str | None,
    last_event_id: int | None = None,
    box: list[str] | None = None,
    kind: list[str] | None = None,
    follow: bool = True,
) -> Any:
    """Answer with the events of a prefix from now on, or from after ``Last-Event-ID``."""
    request = connexion.request
    header = request.headers.get("last-event-id")
    reader = await core.events.reader(
        prefix,
        last_event_id if header is None else sse.parse_event_id(header),
        Wanted(frozenset(box or ()), frozenset(kind or ())),
        follow=follow and request.method != "HEAD",
    )
    return sse.stream_events(core, reader, functools.partial(views.event, for_operator=IS_OPERATOR.get()))


async def stream_all_events(
    core: Core,
    last_event_id: int | None = None,
    box: list[str] | None = None,
    kind: list[str] | None = None,
    follow: bool = True,
) -> Any:
    """Answer with the events of workers and of all prefixes."""
    return await stream_events(core, None, last_event_id, box, kind, follow)
