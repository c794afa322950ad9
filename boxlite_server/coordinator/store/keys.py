"""The table of API keys. It holds hashes of the keys' secrets, and no secret."""

from __future__ import annotations

import json
from typing import NamedTuple

from .table import Table, reader

WORKER_PREFIX = ""  # of keys of workers; no request can name it


class Key(NamedTuple):
    """An API key; times in Unix seconds."""

    id: str
    name: str
    prefix: str  # the tenant, or WORKER_PREFIX
    scopes: tuple[str, ...]
    secret_sha256: str  # hexadecimal, as is `former_sha256`
    created_at: float
    expires_at: float | None = None  # None: never
    former_sha256: str | None = None  # of the secret before the last rotation
    former_until: float | None = None  # when the former secret ends
    revoked_at: float | None = None
    last_used_at: float | None = None  # to the minute


_COLUMNS = ", ".join(Key._fields)


def _scopes(text: str) -> tuple[str, ...]:
    return tuple(json.loads(text))


_key = reader(Key, Key._fields, scopes=_scopes)


class Keys(Table):
    """Methods over the table `keys`. No row is ever deleted."""

    async def insert_key(self, key: Key) -> bool:
        """Insert a key. False, with nothing inserted, where its id is taken."""
        return await self._insert("keys", key._asdict())

    async def get_key(self, key_id: str) -> Key | None:
        row = await self._read_one(f"SELECT {_COLUMNS} FROM keys WHERE id = ?", (key_id,))
        return _key(row) if row else None

    async def list_keys(self) -> list[Key]:
        """All keys, revoked and expired ones too, the oldest first."""
        return [_key(row) for row in await self._read(f"SELECT {_COLUMNS} FROM keys ORDER BY created_at, id")]

    async def key_ids(self, id_or_name: str) -> list[str]:
        """The ids that the audit may have for an id or a name: a name may be that of several keys, and an id none of
        any key."""
        rows = await self._read("SELECT id FROM keys WHERE name = ?", (id_or_name,))
        return [id_or_name, *(row[0] for row in rows)]

    async def has_keys(self, *, of_workers: bool = False) -> bool:
        """Whether a key was ever made, or a key of workers."""
        condition = " WHERE prefix = ''" if of_workers else ""
        return bool(await self._read(f"SELECT 1 FROM keys{condition} LIMIT 1"))

    async def revoke_key(self, key_id: str, now: float) -> None:
        """End a key, together with its former secret. A key that is revoked already keeps its time."""
        await self._write("UPDATE keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", (now, key_id))

    async def rotate_key(self, key_id: str, secret_sha256: str, former_until: float) -> None:
        """Give a key a new secret. Its present secret becomes the former one, which ends at `former_until`."""
        await self._write(
            "UPDATE keys SET former_sha256 = secret_sha256, former_until = ?, secret_sha256 = ? WHERE id = ?",
            (former_until, secret_sha256, key_id),
        )

    async def note_key_use(self, key_id: str, at: float) -> None:
        """Note when a key was used last; of several coordinators the latest time counts."""
        await self._write(
            "UPDATE keys SET last_used_at = ? WHERE id = ? AND (last_used_at IS NULL OR last_used_at < ?)",
            (at, key_id, at),
        )
