"""Secrets in files of this host: who may read them, and when keys and certificates end."""

from __future__ import annotations

import asyncio
import stat
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from ...coordinator.store import Key, Store
from ...errors import BoxliteError
from ...tls import certificates
from ...tls.files import Files, content, read
from .findings import Finding, ok, problem, warning
from .fleet import SOON


def examine(directory: Path, home: Path, database: Path | None, key_file: Path | None) -> Iterator[Finding]:
    """Yield what there is to say of the authority and the certificates in `directory`, of the worker's files in `home`,
    of the coordinator's SQLite `database`, and of the file of an API key. What does not exist is left out."""
    joined = home / "tls" / "worker.pem"
    secret = [*directory.glob("*.key"), joined, home / "worker.json"]
    secret += [file for file in (database, key_file) if file]
    yield from _closed([file for file in secret if file.exists()])
    for certificate in sorted(directory.glob("*.crt")):
        yield from _certificate(certificate)
    if joined.exists():
        yield _end(joined, "start the worker: it renews its certificate by itself")
    if database and database.exists():
        yield from _keys(database)


def _closed(files: Sequence[Path]) -> Iterator[Finding]:
    open_to_others = [file for file in files if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)]
    for file in open_to_others:
        text = f"other users of this host may use {file}, which holds a secret"
        yield problem("keys", text, f"chmod 600 {file}")
    if files and not open_to_others:
        yield ok("keys", f"only their owner may read the files with secrets, {len(files)} in number")


def _certificate(certificate: Path) -> Iterator[Finding]:
    key = certificate.with_suffix(".key")
    again = f"boxlite-server certs issue --dir {certificate.parent} --coordinator HOST"
    if certificate.name == "ca.crt":
        yield _end(certificate, "make another authority; docs/operations.md says how to go over to it")
    elif key.exists():
        try:
            read(Files(certificate, key, certificate.with_name("ca.crt")))
        except BoxliteError as exc:
            yield problem("certificates", exc.message, again)
        else:
            yield _end(certificate, again)


def _end(certificate: Path, remedy: str) -> Finding:
    try:
        _, end = certificates.lifetime(content(certificate))
    except BoxliteError as exc:
        return problem("certificates", f"{certificate} cannot be used: {exc.message}", remedy)
    left = end - datetime.now(UTC)
    if left.total_seconds() <= 0:
        return problem("certificates", f"{certificate} has ended on {end:%Y-%m-%d}", remedy)
    if left < SOON:
        return warning("certificates", f"{certificate} ends on {end:%Y-%m-%d}", remedy)
    return ok("certificates", f"{certificate} is valid until {end:%Y-%m-%d}")


def _keys(database: Path) -> Iterator[Finding]:
    try:
        found = asyncio.run(_all_keys(database))
    except BoxliteError as exc:
        yield problem("keys", f"{database} cannot be read: {exc.message}", "run this as the coordinator's user")
        return
    now = time.time()
    alive = [key for key in found if key.revoked_at is None and (key.expires_at is None or key.expires_at > now)]
    for key in alive:
        if key.expires_at is not None and key.expires_at - now < SOON.total_seconds():
            end = datetime.fromtimestamp(key.expires_at, UTC)
            text = f"the API key {key.name} ({key.id}) ends on {end:%Y-%m-%d}"
            yield warning("keys", text, f"boxlite-server keys create --name {key.name} --prefix {key.prefix}")
    if found and not alive:
        text = f"no API key in {database} is valid any more, and nobody gets in"
        yield problem("keys", text, "boxlite-server keys create")
    elif alive:
        yield ok("keys", f"{len(alive)} of {len(found)} API keys in {database} are valid")


async def _all_keys(database: Path) -> list[Key]:
    store = await Store.open_beside(database)
    try:
        return await store.list_keys()
    finally:
        await store.close()
