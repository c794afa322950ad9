"""The flags that several commands of `boxlite-server` share."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from . import credentials, types

if TYPE_CHECKING:
    from ..coordinator.store import Store

DEFAULT_HOME = Path("~/.boxlite")

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add(commands: Commands, name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", formatter_class=types.Formatter
    )
    parser.set_defaults(run=run)
    return parser


def add_database(parser: argparse.ArgumentParser) -> None:
    # The help names the built-in default, not the effective one: a URL may carry a password.
    parser.add_argument(
        "--database",
        "--db-path",
        metavar="PATH|URL",
        type=types.database,
        default=types.from_env("BOXLITE_COORDINATOR_DB", str(DEFAULT_HOME / "coordinator.db")),
        help="use this database: the path of an SQLite file, or postgresql://USER@HOST/NAME, which several "
        f"coordinators can share [BOXLITE_COORDINATOR_DB] (default: {DEFAULT_HOME}/coordinator.db)",
    )


def on_database(
    act: Callable[[Store, argparse.Namespace], Awaitable[None]],
) -> Callable[[argparse.Namespace], int]:
    """Make a command of `act`, which gets the database that is named by the flag, and which a coordinator may be using
    meanwhile."""

    async def with_store(arguments: argparse.Namespace) -> None:
        from ..coordinator.store import Store

        store = await Store.open_beside(arguments.database)
        try:
            await act(store, arguments)
        finally:
            await store.close()

    def run(arguments: argparse.Namespace) -> int:
        asyncio.run(with_store(arguments))
        return 0

    return run


def add_home(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument(
        "--home",
        metavar="DIR",
        type=Path,
        default=types.from_env("BOXLITE_HOME", str(DEFAULT_HOME)),
        help=f"{text} [BOXLITE_HOME]",
    )


def add_client(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--coordinator",
        metavar="URL",
        type=types.http_url,
        default=types.from_env("BOXLITE_COORDINATOR_URL", "http://127.0.0.1:8200"),
        help="call the coordinator at this address [BOXLITE_COORDINATOR_URL]",
    )
    add_api_key(parser, "send this API key to the coordinator")
    add_ca_cert(parser)
    add_debug(parser)


def add_ca_cert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ca-cert",
        metavar="FILE",
        type=Path,
        default=os.environ.get("BOXLITE_CA_CERT") or None,
        help="trust the authorities in this file, and no others, with an https address [BOXLITE_CA_CERT] "
        "(default: those of the host)",
    )


def add_api_key(parser: argparse.ArgumentParser, text: str, *others: str) -> None:
    """Add the flags of an API key; `others`: further names of --api-key, see `credentials`."""
    parser.add_argument("--api-key", *others, metavar="KEY", help=f"{text} [{credentials.VARIABLE}] (default: no key)")
    parser.add_argument("--api-key-file", metavar="FILE", type=Path, help="read the API key from this file")


def add_debug(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--debug", action="store_true", help="log debug messages too, also those of libraries")


def add_metrics_token(parser: argparse.ArgumentParser, text: str) -> None:
    """Add `--metrics-token-file`; `text` is its help."""
    parser.add_argument("--metrics-token-file", metavar="FILE", type=Path, help=text)
