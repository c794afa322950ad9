"""API keys of the database: their text, and the rows as one coordinator remembers them.

A key is ``blx_<id>_<secret>``. The secret is 256 random bits, and the database has its SHA-256. A slow hash (bcrypt,
Argon2) is for passwords, which can be guessed: each guess is to cost something. Nobody finds 256 random bits by
guessing, however fast the hash is, and each request has to compute it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from ... import errors, ids
from ...formats import timestamp
from ..loops import Loop
from ..store import MAX_KEYS, MAX_KEYS_OF_PREFIX, Key, Store, Tables

log = logging.getLogger(__name__)

FRESH_SECONDS = 5.0  # for which a row that was read is taken as true; a revocation is known everywhere after that
WATCH_SECONDS = 4.0  # between two looks at the keys of connections that go on
USE_SECONDS = 60.0  # between two times that the last use of keys is written
MAX_KNOWN = 10_000  # rows that are remembered

_TEXT = re.compile(rf"blx_([0-9A-Za-z]{{{ids.ID_LENGTH}}})_([0-9A-Za-z_-]{{43}})")


class Minted(NamedTuple):
    """A new key: the text is shown once, and the hash is kept."""

    text: str
    secret_sha256: str


def mint(key_id: str) -> Minted:
    """Make a new secret for the key with that id."""
    secret = ids.secret()
    return Minted(f"blx_{key_id}_{secret}", digest(secret))


def is_name(text: str) -> bool:
    """Whether a key can have this name."""
    return 1 <= len(text) <= 128 and text.isprintable()


def digest(secret: str) -> str:
    """The SHA-256 of a secret, or of whatever a client sends in its place, as hexadecimal digits."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()


def parse(credential: str) -> tuple[str, str] | None:
    """The id and the hash of the secret of a key's text; None for any other text."""
    match = _TEXT.fullmatch(credential)
    return (match[1], digest(match[2])) if match else None


async def add(tables: Tables, key: Key) -> None:
    """Write down a new key. Raises ResourceExhaustedError where as many keys work as may."""
    if not await tables.insert_key(key):
        owner = f"the prefix {key.prefix}" if key.prefix else "the workers"
        raise errors.ResourceExhaustedError(
            f"{owner} may have {MAX_KEYS_OF_PREFIX} API keys that work, and all together {MAX_KEYS}; revoke some first"
        )


def status(key: Key, now: float) -> str:
    """Whether a key is `active`, `expired` or `revoked`."""
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= now else "active"


def as_json(key: Key, now: float) -> dict[str, object]:
    """A key as operators see it, without what is kept of its secret."""
    return {
        "id": key.id,
        "name": key.name,
        "prefix": key.prefix or None,
        "scopes": list(key.scopes),
        "status": status(key, now),
        "created_at": timestamp(key.created_at),
        "expires_at": timestamp(key.expires_at),
        "revoked_at": timestamp(key.revoked_at),
        "last_used_at": timestamp(key.last_used_at),
    }


def is_secret_of(key: Key, secret_sha256: str, now: float) -> bool:
    """Whether the key has, or until `former_until` had, the secret with this hash. Takes the same time whatever the
    hash is."""
    is_present = hmac.compare_digest(secret_sha256, key.secret_sha256)
    is_former = hmac.compare_digest(secret_sha256, key.former_sha256 or "")
    return is_present or (is_former and now < (key.former_until or 0.0))


def has_expired(key: Key, now: float) -> bool:
    return key.expires_at is not None and key.expires_at <= now


class Keys:
    """The rows of keys. Each is read again after `FRESH_SECONDS`. `clock` gives Unix seconds, `monotonic` any seconds
    that nobody sets."""

    def __init__(
        self, store: Store, clock: Callable[[], float], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._clock = clock
        self._monotonic = monotonic
        self._known: dict[str, tuple[Key, float]] = {}  # by id: a row, and when it was read; the oldest first
        self._reading: dict[str, asyncio.Task[Key | None]] = {}  # by id: concurrent requests read a row once
        self._used: dict[str, float] = {}  # by id: the last use that is not written yet
        self._exist: dict[bool, bool] = {}  # of workers or of any kind: whether there is one, as far as is known
        self._asked: dict[bool, float] = {}
        self._watched: dict[tuple[str, str], set[Callable[[], None]]] = {}  # by id and hash of the secret
        self._uses = Loop("writing the last uses of keys", self._write, retry=USE_SECONDS)
        self._watch = Loop("looking after the keys of connections", self._look, retry=WATCH_SECONDS)

    def start(self) -> None:
        """Write last uses and watch keys from now on; needs the running event loop."""
        self._uses.start(after=USE_SECONDS)
        self._watch.start(after=WATCH_SECONDS)

    async def close(self) -> None:
        await self._watch.close()
        await self._uses.close()
        try:
            await self.write_uses()
        except errors.DatabaseError as exc:
            log.warning("the last uses of keys are lost: %s", exc)

    async def find(self, key_id: str, *, again: bool = False) -> Key | None:
        """The row of a key, at most `FRESH_SECONDS` old; `again` reads it now. Raises DatabaseError."""
        known = self._known.get(key_id)
        if not again and known is not None and self._monotonic() - known[1] < FRESH_SECONDS:
            return known[0]
        reading = self._reading.get(key_id)
        if reading is None:
            reading = self._reading[key_id] = asyncio.create_task(self._read(key_id))
            reading.add_done_callback(lambda _: self._reading.pop(key_id))
        return await asyncio.shield(reading)

    async def exist(self, *, of_workers: bool = False) -> bool:
        """Whether a key was ever made, or a key of workers; a no may be `FRESH_SECONDS` old."""
        now = self._monotonic()
        if not self._exist.get(of_workers) and now - self._asked.get(of_workers, float("-inf")) >= FRESH_SECONDS:
            self._exist[of_workers] = await self._store.has_keys(of_workers=of_workers)
            self._asked[of_workers] = now
        return self._exist[of_workers]

    @contextmanager
    def watched(self, key_id: str, secret_sha256: str, on_end: Callable[[], None]) -> Iterator[None]:
        """During the `with` block, call `on_end` once if the key ends, or its secret with this hash. That is noticed
        within `WATCH_SECONDS` and `FRESH_SECONDS`."""
        watching = self._watched.setdefault((key_id, secret_sha256), set())
        watching.add(on_end)
        try:
            yield
        finally:
            watching.discard(on_end)
            if not watching:
                self._watched.pop((key_id, secret_sha256), None)

    def note_use(self, key: Key) -> None:
        """Note that a key is used now; `write_uses` writes it."""
        self._used[key.id] = self._clock()

    async def write_uses(self) -> None:
        """Write the uses noted since the last time. Raises DatabaseError."""
        for key_id, at in list(self._used.items()):
            await self._store.note_key_use(key_id, at)
            if self._used.get(key_id) == at:
                del self._used[key_id]

    async def _read(self, key_id: str) -> Key | None:
        now = self._monotonic()
        self._known.pop(key_id, None)
        key = await self._store.get_key(key_id)
        if key is not None:
            self._known[key_id] = (key, now)
            if len(self._known) > MAX_KNOWN:
                del self._known[next(iter(self._known))]
        return key

    async def _look(self) -> float:
        for (key_id, secret_sha256), watching in list(self._watched.items()):
            key, now = await self.find(key_id), self._clock()
            if key and is_secret_of(key, secret_sha256, now) and key.revoked_at is None and not has_expired(key, now):
                continue
            while watching:
                watching.pop()()
        return WATCH_SECONDS

    async def _write(self) -> float:
        await self.write_uses()
        return USE_SECONDS
