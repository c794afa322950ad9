"""`boxlite-server keys`: makes, lists, revokes and rotates API keys, in the coordinator's database itself, which a
coordinator may be using meanwhile."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..client import output
from ..errors import InvalidArgumentError, InvalidStateError, NotFoundError
from ..formats import join_token, timestamp
from . import types
from .audit import note
from .flags import Commands, add, add_database, add_debug, on_database

if TYPE_CHECKING:
    from ..coordinator.store import Key, Store


def add_keys(commands: Commands) -> None:
    """Add the command and its subcommands."""
    parser = commands.add_parser("keys", help="make, list, revoke and rotate API keys")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    _add_create(actions)
    listing = add(actions, "list", on_database(list_keys), "list all keys, without their secrets")
    listing.add_argument("--format", choices=("table", "json"), default="table", help="print the keys in this format")
    revoking = add(actions, "revoke", on_database(revoke), "end a key; every coordinator refuses it within 10 seconds")
    rotating = add(actions, "rotate", on_database(rotate), "give a key a new secret, and print the key")
    rotating.add_argument(
        "--grace",
        metavar="DURATION",
        type=types.duration,
        default=0.0,
        help="let the present secret work for this long beside the new one, for example 1h (default: it ends at once)",
    )
    _add_format(rotating)
    _add_authority(rotating)
    for parser in (revoking, rotating):
        parser.add_argument("key", metavar="KEY", help="the key's id, or its name")
    for parser in (listing, revoking, rotating):
        add_database(parser)
        add_debug(parser)


def _add_create(actions: Commands) -> None:
    parser = add(actions, "create", on_database(create), "make a key, and print it; it is never shown again")
    parser.add_argument("--name", type=types.key_name, required=True, help="name the key, for people")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--prefix", type=types.prefix, help="let the key use this prefix (tenant), and no other")
    kind.add_argument(
        "--worker", action="store_true", help="make a key for workers, which can register workers and nothing else"
    )
    parser.add_argument(
        "--scope",
        metavar="SCOPE,…",
        type=types.scopes,
        action="extend",
        help="let the key do this, for example box:read,box:write,box:exec; may be repeated "
        "(default: all that concerns the prefix)",
    )
    parser.add_argument(
        "--expires",
        metavar="DURATION",
        type=types.duration,
        help="end the key after this long, for example 90d (default: never)",
    )
    _add_authority(parser)
    _add_format(parser)
    add_database(parser)
    add_debug(parser)


def _add_authority(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tls-ca",
        metavar="FILE",
        type=Path,
        help="print the key of workers as a join token, with which they trust coordinators of the authority in this "
        "file, and get their certificates from them",
    )


def _add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format", choices=("text", "json"), default="text", help="print the key alone, or with all that it is"
    )


async def create(store: Store, arguments: argparse.Namespace) -> None:
    """Make a key and print it. Raises InvalidArgumentError, ResourceExhaustedError."""
    from .. import ids
    from ..coordinator.store import WORKER_PREFIX, Key
    from ..coordinator.tenants import keys, scopes

    if arguments.worker and arguments.scope:
        raise InvalidArgumentError("a key for workers takes no --scope")
    if arguments.tls_ca and not arguments.worker:
        raise InvalidArgumentError("--tls-ca makes a join token of a key for workers; give --worker too")
    completed = _completion(arguments.tls_ca)
    now, key_id = time.time(), ids.new_id()
    minted = keys.mint(key_id)
    of_client = tuple(dict.fromkeys(arguments.scope or scopes.TENANT))
    key = Key(
        id=key_id,
        name=arguments.name,
        prefix=WORKER_PREFIX if arguments.worker else arguments.prefix,
        scopes=(scopes.WORKER,) if arguments.worker else of_client,
        secret_sha256=minted.secret_sha256,
        created_at=now,
        expires_at=None if arguments.expires is None else now + arguments.expires,
    )
    async with store.transaction() as tx:
        await keys.add(tx, key)
        await note(tx, "createKey", key.prefix, key.id)
    _print_key(key, completed(minted.text), arguments.format)


async def list_keys(store: Store, arguments: argparse.Namespace) -> None:
    """Print a table of all keys, or JSON."""
    from ..coordinator.tenants import keys

    found, now = await store.list_keys(), time.time()
    if arguments.format == "json":
        print(output.as_json([keys.as_json(key, now) for key in found]))
        return
    header = ("NAME", "ID", "PREFIX", "STATUS", "EXPIRES", "LAST USED", "SCOPES")
    rows = [
        (
            key.name,
            key.id,
            key.prefix or "(workers)",
            keys.status(key, now),
            timestamp(key.expires_at) or "never",
            output.age(timestamp(key.last_used_at) or "never"),
            ",".join(key.scopes),
        )
        for key in found
    ]
    print(output.table(header, rows))


async def revoke(store: Store, arguments: argparse.Namespace) -> None:
    """End a key. Raises NotFoundError, InvalidStateError."""
    async with store.transaction() as tx:
        key = _find(await tx.list_keys(), arguments.key)
        await tx.revoke_key(key.id, time.time())
        await note(tx, "revokeKey", key.prefix, key.id)
    print(f"{key.name} ({key.id}) is revoked")


async def rotate(store: Store, arguments: argparse.Namespace) -> None:
    """Give a key a new secret and print the key. Raises NotFoundError, InvalidStateError."""
    from ..coordinator.tenants import keys

    completed = _completion(arguments.tls_ca)
    async with store.transaction() as tx:
        key = _find(await tx.list_keys(), arguments.key)
        if (status := keys.status(key, time.time())) != "active":
            raise InvalidStateError(f"the key {key.name} ({key.id}) is {status}; make another one")
        if arguments.tls_ca and key.prefix:
            raise InvalidArgumentError(f"the key {key.name} is not one of workers, and so no join token")
        minted = keys.mint(key.id)
        await tx.rotate_key(key.id, minted.secret_sha256, time.time() + arguments.grace)
        await note(tx, "rotateKey", key.prefix, key.id)
    _print_key(key, completed(minted.text), arguments.format)


def _completion(ca: Path | None) -> Callable[[str], str]:
    """What makes a join token of a key; without an authority the key stays as it is. Raises InvalidArgumentError."""
    if ca is None:
        return lambda key: key
    from ..tls import certificates, files

    pin = next(iter(certificates.fingerprints(files.content(ca))), None)
    if pin is None:
        raise InvalidArgumentError(f"{ca} has no certificate in PEM")
    return lambda key: join_token(key, pin)


def _find(found: list[Key], id_or_name: str) -> Key:
    """Find a key by its id, else by its name, among the revoked ones last. Raises NotFoundError, InvalidStateError."""
    by_name = [key for key in found if key.name == id_or_name]
    candidates = [key for key in found if key.id == id_or_name]
    candidates = candidates or [key for key in by_name if key.revoked_at is None] or by_name
    if not candidates:
        raise NotFoundError(f"key not found: {id_or_name}; `boxlite-server keys list` lists all keys")
    if len(candidates) > 1:
        raise InvalidStateError(
            f"{len(candidates)} keys have the name {id_or_name}; give an id: {', '.join(key.id for key in candidates)}"
        )
    return candidates[0]


def _print_key(key: Key, text: str, form: str) -> None:
    if form == "json":
        from ..coordinator.tenants import keys

        print(output.as_json({**keys.as_json(key, time.time()), "key": text}))
        return
    print(text)
    print(f"this is the key {key.name} ({key.id}); it is not shown again", file=sys.stderr)
