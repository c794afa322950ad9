"""Boxes: create, list, get, change, start, stop, remove."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import connexion
from starlette.responses import Response

from .... import errors
from ... import spec
from ...core import Core
from ...domain.boxes import Awaited
from ...states import BoxStatus, DesiredState
from ...tenants.scopes import EXECUTE
from .. import views
from ..bodies.streams import unless_gone
from ..errors import PRINCIPAL, asking
from ..idempotency import request_key

_AT_ONCE = 200  # boxes that are read in one go; other requests run in between

WAIT_SECONDS = 30.0  # for a state of a box

# The stored statuses of a status that clients see, if internal ones are among them.
_FILTER = {
    BoxStatus.CONFIGURED: (BoxStatus.CONFIGURED, BoxStatus.CREATING),
    BoxStatus.STOPPING: (BoxStatus.STOPPING, BoxStatus.REMOVING),
}


async def create_box(core: Core, prefix: str, body: dict[str, Any]) -> Any:
    box = await core.creation.create(prefix, body, request_key=request_key(), tenant=asking(prefix))
    # A box that ended with its engine is being started again already.
    if body.get("start") and box.status == BoxStatus.CONFIGURED and box.desired != DesiredState.RUNNING:
        box = await core.boxes.start(prefix, box.id)
    return await views.placed_box(core, box), 201, {"Location": f"/v1/{prefix}/boxes/{box.id}"}


async def list_boxes(
    core: Core,
    prefix: str,
    status: str | None = None,
    name: str | None = None,
    label: list[str] | None = None,
    page_size: int | None = None,
    page_token: str | None = None,
) -> Any:
    filters = {
        "statuses": _statuses(status),
        "unreachable": await core.fleet.unreachable() if status else (),
        "name": name,
        "labels": _labels(label or []),
    }
    after = views.after(page_token)
    shown: list[str] = []
    while True:
        page = await core.boxes.list(prefix, after=after, limit=page_size or _AT_ONCE, **filters)
        workers = await core.store.get_workers({box.worker_id for box in page.boxes})
        shown += [
            json.dumps(views.box(box, workers.get(box.worker_id), core.fleet, in_list=True)) for box in page.boxes
        ]
        after = page.next_token
        if page_size or after is None:
            break
        await asyncio.sleep(0)  # let other requests run
    token = views.encode_token(after) if after else None
    text = f'{{"boxes": [{", ".join(shown)}], "next_page_token": {json.dumps(token)}}}\n'
    return Response(text, media_type="application/json")


async def get_box(core: Core, prefix: str, box_id: str) -> Any:
    may_execute = EXECUTE in connexion.request.scope[PRINCIPAL].scopes
    return await views.placed_box(core, await core.boxes.get(prefix, box_id), with_values=may_execute)


async def box_exists(core: Core, prefix: str, box_id: str) -> Any:
    await core.boxes.get(prefix, box_id)
    return None, 204


async def update_box(core: Core, prefix: str, box_id: str, body: dict[str, Any]) -> Any:
    return await views.placed_box(core, await core.boxes.update(prefix, box_id, spec.changes(body)))


async def remove_box(core: Core, prefix: str, box_id: str, force: bool = False) -> Any:
    left = await core.boxes.remove(prefix, box_id, force=force)
    return ({"message": left}, 200) if left else (None, 204)


async def start_box(core: Core, prefix: str, box_id: str) -> Any:
    return await views.placed_box(core, await core.boxes.start(prefix, box_id))


async def stop_box(core: Core, prefix: str, box_id: str, body: dict[str, Any] | None = None) -> Any:
    return await views.placed_box(core, await core.boxes.stop(prefix, box_id, (body or {}).get("timeout_seconds")))


async def wait_for_box(core: Core, prefix: str, box_id: str, until: str, timeout: float = WAIT_SECONDS) -> Any:
    """Answer when the box is as the client wants it, or with the box as it is when the time is over. A client that goes
    away waits no longer."""
    waiting = core.boxes.wait(prefix, box_id, Awaited(until), timeout, core.stopping)
    is_reached, box = await unless_gone(connexion.request.receive, waiting)
    return {"reached": is_reached, **({"box": await views.placed_box(core, box)} if box else {})}


def _statuses(status: str | None) -> tuple[BoxStatus, ...]:
    if status is None:
        return ()
    shown = BoxStatus(status)
    return _FILTER.get(shown, (shown,))


def _labels(pairs: list[str]) -> dict[str, str]:
    labels = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise errors.InvalidArgumentError(f"label filter '{pair}' has to be KEY=VALUE")
        labels[key] = value
    return labels
