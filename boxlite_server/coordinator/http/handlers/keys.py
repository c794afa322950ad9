"""API keys of the database, for operators: list, create, revoke."""

from __future__ import annotations

from typing import Any

import connexion

from ....errors import NotFoundError
from ...core import Core
from ...tenants import keys
from ...tenants.granting import grant
from ..errors import PRINCIPAL


async def list_keys(core: Core) -> Any:
    return {"keys": [keys.as_json(key, core.clock()) for key in await core.store.list_keys()]}


async def create_key(core: Core, body: dict[str, Any]) -> Any:
    key, text = grant(connexion.request.scope[PRINCIPAL], body, core.clock())
    async with core.store.transaction() as tx:
        await tx.insert_key(key)
    headers = {"Location": f"/v1/admin/keys/{key.id}", "Cache-Control": "no-store"}
    return {**keys.as_json(key, core.clock()), "key": text}, 201, headers


async def revoke_key(core: Core, key_id: str) -> Any:
    async with core.store.transaction() as tx:
        if await tx.get_key(key_id) is None:
            raise NotFoundError(f"key not found: {key_id}")
        await tx.revoke_key(key_id, core.clock())
    return None, 204
