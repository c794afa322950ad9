"""Quotas of prefixes, for operators: list, get, set, remove."""

from __future__ import annotations

from typing import Any

from ...core import Core
from ...store import Quotas


async def list_quotas(core: Core) -> Any:
    return {"quotas": [await get_quotas(core, prefix) for prefix in await core.store.list_quotas()]}


async def get_quotas(core: Core, quota_prefix: str) -> Any:
    own = await core.store.own_quotas(quota_prefix) or Quotas()
    return {
        "prefix": quota_prefix,
        "own": own._asdict(),
        "quotas": (await core.store.quotas_of(quota_prefix)).over(core.quotas.default)._asdict(),
        "used": (await core.store.use_of(quota_prefix))._asdict(),
    }


async def set_quotas(core: Core, quota_prefix: str, body: dict[str, Any]) -> Any:
    quotas = Quotas(**{name: body.get(name) for name in Quotas._fields})
    async with core.store.transaction() as tx:
        await tx.put_quotas(quota_prefix, quotas)
    return await get_quotas(core, quota_prefix)


async def remove_quotas(core: Core, quota_prefix: str) -> Any:
    async with core.store.transaction() as tx:
        await tx.delete_quotas(quota_prefix)
    return None, 204
