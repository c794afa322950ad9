"""API keys of the database, for operators: list, create, revoke."""

from __future__ import annotations

from typing import Any

import connexion

from ....errors import NotFoundError
from ...core import Core
from ...tenants import keys
from ...tenants.granting import grant
from .. import views
from ..errors import PRINCIPAL


async def list_keys(core: Core, page_size: int | None = None, page_token: str | None = None) -> Any:
    rows = await core.store.list_keys(after=views.after(page_token), limit=page_size and page_size + 1)
    page, token = views.page(rows, page_size, lambda row: (row.created_at, row.id))
    return {"keys": [keys.as_json(key, core.clock()) for key in page], "next_page_token": token}


async def create_key(core: Core, body: dict[str, Any]) -> Any:
    key, text = grant(connexion.request.scope[PRINCIPAL], body, core.clock())
    async with core.store.transaction() as tx:
        await keys.add(tx, key)
    headers = {"Location": f"/v1/admin/keys/{key.id}", "Cache-Control": "no-store"}
    return {**keys.as_json(key, core.clock()), "key": text}, 201, headers


async def revoke_key(core: Core, key_id: str) -> Any:
    async with core.store.transaction() as tx:
        if await tx.get_key(key_id) is None:
            raise NotFoundError(f"key not found: {key_id}")
        await tx.revoke_key(key_id, core.clock())
    return None, 204
