"""Snapshots, clones, exports and imports."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import connexion

from .... import errors
from ...core import Core
from .. import views
from ..bodies.streams import ArchiveResponse, drain, received
from ..idempotency import request_key


async def list_snapshots(
    core: Core, prefix: str, box_id: str, page_size: int | None = None, page_token: str | None = None
) -> Any:
    limit = page_size and page_size + 1
    rows = await core.snapshots.list(prefix, box_id, after=views.after(page_token), limit=limit)
    page, token = views.page(rows, page_size, lambda row: (row.created_at, row.id))
    return {"snapshots": [views.snapshot(row) for row in page], "next_page_token": token}


async def create_snapshot(core: Core, prefix: str, box_id: str, body: dict[str, Any]) -> Any:
    snapshot = await core.snapshots.create(prefix, box_id, body["name"], request_key=request_key())
    location = f"/v1/{prefix}/boxes/{snapshot.box_id}/snapshots/{quote(snapshot.name, safe='')}"
    return views.snapshot(snapshot), 201, {"Location": location}


async def get_snapshot(core: Core, prefix: str, box_id: str, snapshot_name: str) -> Any:
    return views.snapshot(await core.snapshots.get(prefix, box_id, snapshot_name))


async def remove_snapshot(core: Core, prefix: str, box_id: str, snapshot_name: str) -> Any:
    await core.snapshots.remove(prefix, box_id, snapshot_name)
    return None, 204


async def restore_snapshot(core: Core, prefix: str, box_id: str, snapshot_name: str) -> Any:
    await core.snapshots.restore(prefix, box_id, snapshot_name)
    return None, 204


async def clone_box(core: Core, prefix: str, box_id: str, body: dict[str, Any] | None = None) -> Any:
    box = await core.snapshots.clone(prefix, box_id, (body or {}).get("name"), request_key=request_key())
    return await views.placed_box(core, box), 201, {"Location": f"/v1/{prefix}/boxes/{box.id}"}


async def export_box(core: Core, prefix: str, box_id: str, body: dict[str, Any] | None = None) -> Any:
    """Answer with an archive. Refusals come before the answer begins; a failure after that breaks the connection,
    and leaves an archive without its end."""
    box, archive = await core.archives.export(prefix, box_id)
    headers = {"Content-Disposition": f'attachment; filename="{box.name or box.id}.boxlite"'}
    return ArchiveResponse(archive, media_type="application/octet-stream", headers=headers)


async def import_box(core: Core, prefix: str, name: str | None = None) -> Any:
    """Make a box from the request's archive. There is no parameter `body`: Connexion would read the body whole."""
    body = connexion.request.stream()
    try:
        box = await core.archives.load(prefix, name, received(body), request_key=request_key())
        await drain(body)  # the body has been read whole, unless the box existed already
    except errors.BoxliteError:
        await drain(body)
        raise
    return await views.placed_box(core, box), 201, {"Location": f"/v1/{prefix}/boxes/{box.id}"}
