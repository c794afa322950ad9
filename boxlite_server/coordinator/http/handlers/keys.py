"""API keys of the database, for operators: list."""

from __future__ import annotations

from typing import Any

from ...core import Core
from ...tenants import keys


async def list_keys(core: Core) -> Any:
    return {"keys": [keys.as_json(key, core.clock()) for key in await core.store.list_keys()]}
