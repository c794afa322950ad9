"""The table of API keys. It holds hashes of the keys' secrets, and no secret."""

from __future__ import annotations

import json
from typing import NamedTuple

from .table import Table, marks, read_on, reader, to_row

WORKER_PREFIX = ""  # of keys of workers; no request can name it
MAX_KEYS = 10_000  # keys that work at a time
MAX_KEYS_OF_PREFIX = 1000
MAX_ENDED_KEYS = 10_000  # revoked and expired ones that are kept

_WORKS = "revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?)"


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
    """Methods over the table `keys`."""

    async def insert_key(self, key: Key) -> bool:
        """Insert a key, and delete the oldest of the ended keys of clients where there are too many. False, with
        nothing inserted, where its id is taken, or where as many keys work at `key.created_at` as may."""
        fields, now = key._asdict(), key.created_at
        sql = (
            f"INSERT INTO keys ({', '.join(fields)}) SELECT {marks(fields)} "
            f"WHERE (SELECT count(*) FROM keys WHERE {_WORKS}) < {MAX_KEYS} "
            f"AND (SELECT count(*) FROM keys WHERE prefix = ? AND {_WORKS}) < {MAX_KEYS_OF_PREFIX} "
            "ON CONFLICT DO NOTHING RETURNING 1"
        )
        if not await self._write(sql, (*to_row(fields), now, key.prefix, now)):
            return False
        ended = f"SELECT id FROM keys WHERE prefix <> '' AND NOT ({_WORKS}) ORDER BY created_at DESC, id"
        sql = f"DELETE FROM keys WHERE id IN ({ended} LIMIT {MAX_KEYS} OFFSET {MAX_ENDED_KEYS})"
        await self._write(sql, (now,))
        return True

    async def get_key(self, key_id: str) -> Key | None:
        row = await self._read_one(f"SELECT {_COLUMNS} FROM keys WHERE id = ?", (key_id,))
        return _key(row) if row else None

    async def list_keys(self, *, after: tuple[float, str] | None = None, limit: int | None = None) -> list[Key]:
        """The keys, revoked and expired ones too, oldest first: those made after the time and the id in `after`,
        `limit` at most."""
        tail, place = read_on("created_at, id", after, limit)
        return [_key(row) for row in await self._read(f"SELECT {_COLUMNS} FROM keys WHERE TRUE{tail}", place)]

    async def key_ids(self, id_or_name: str) -> list[str]:
        """The ids that the audit may have for an id or a name: a name may be that of several keys, and an id none of
        any key."""
        rows = await self._read("SELECT id FROM keys WHERE name = ?", (id_or_name,))
        return [id_or_name, *(row[0] for row in rows)]

    async def has_keys(self, *, of_workers: bool = False) -> bool:
        """Whether a key was ever made, or a key of workers; a key that is deleted leaves a newer one."""
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
