"""API keys for tests."""

from __future__ import annotations

from typing import Any

from boxlite_server import ids
from boxlite_server.coordinator.store import Key, Store
from boxlite_server.coordinator.tenants import keys, scopes

KEY = "the-one-key-of-a-small-installation"


async def new_key(store: Store, **fields: Any) -> tuple[Key, str]:
    """Make a key of the prefix acme with all scopes of clients, unless `fields` say otherwise; its row and its text."""
    key_id = ids.new_id()
    minted = keys.mint(key_id)
    row = {"name": "ci", "prefix": "acme", "scopes": scopes.CLIENT, "created_at": 0.0, **fields}
    key = Key(id=key_id, secret_sha256=minted.secret_sha256, **row)
    assert await store.insert_key(key)
    return key, minted.text
