"""Volumes: create, list, get, remove."""

from __future__ import annotations

from typing import Any

from ...core import Core
from .. import views
from ..idempotency import request_key


async def create_volume(core: Core, prefix: str, body: dict[str, Any] | None = None) -> Any:
    volume = await core.volumes.create(prefix, (body or {}).get("name"), request_key=request_key())
    return views.volume(volume), 201, {"Location": f"/v1/{prefix}/volumes/{volume.id}"}


async def list_volumes(core: Core, prefix: str, page_size: int | None = None, page_token: str | None = None) -> Any:
    rows = await core.volumes.list(prefix, after=views.after(page_token), limit=page_size and page_size + 1)
    page, token = views.page(rows, page_size, lambda row: (row.created_at, row.id))
    return {"volumes": [views.volume(row) for row in page], "next_page_token": token}


async def get_volume(core: Core, prefix: str, volume_id: str) -> Any:
    return views.volume(await core.volumes.get(prefix, volume_id))


async def remove_volume(core: Core, prefix: str, volume_id: str, force: bool = False) -> Any:
    await core.volumes.remove(prefix, volume_id, force=force)
    return None, 204
