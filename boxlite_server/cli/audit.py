"""`boxlite-server audit`: shows the audit, from the coordinator's database itself, which a coordinator may be using
meanwhile. Commands that change that database add their lines by `note`."""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import TYPE_CHECKING

from ..client import output
from ..formats import timestamp
from . import types
from .flags import Commands, add, add_database, add_debug
from .logs import visible

if TYPE_CHECKING:
    from ..coordinator.store import AuditLine, Tables

LINES = 100  # that are shown, unless --limit says otherwise


def add_audit(commands: Commands) -> None:
    """Add the command."""
    parser = add(commands, "audit", run, "show who has changed what, and who was refused")
    parser.add_argument(
        "--since", metavar="DURATION", type=types.duration, help="show what is not older than this, for example 12h"
    )
    parser.add_argument("--key", metavar="KEY", help="show requests of the key with this id or name")
    parser.add_argument("--prefix", metavar="PREFIX", help="show requests of this prefix (tenant)")
    parser.add_argument("--action", metavar="OPERATION", help="show this operation, for example createBox")
    parser.add_argument(
        "--status",
        type=types.statuses,
        help="show requests that were answered with this status, for example 403, or 4xx for all of 400 to 499",
    )
    parser.add_argument(
        "--request-id", metavar="ID", help="show the request with this id; with * at its end, all that begin so"
    )
    parser.add_argument(
        "--limit", metavar="N", type=types.positive, default=LINES, help=f"show the last N lines (default: {LINES})"
    )
    parser.add_argument("--format", choices=("table", "json"), default="table", help="print the lines in this format")
    add_database(parser)
    add_debug(parser)


async def note(tx: Tables, action: str, prefix: str, target: str) -> None:
    """Add a line about a command of the operator, in the transaction in which the command changes the database:
    neither is there without the other. `AuditLine` says what the fields are."""
    from ..coordinator.store import OPERATOR, AuditLine

    await tx.insert_audit([AuditLine(time.time(), OPERATOR, prefix, action, target, 0, request_id="", address="")])


def run(arguments: argparse.Namespace) -> int:
    """Print the lines that are asked for, the oldest first."""
    found = asyncio.run(_find(arguments))
    if arguments.format == "json":
        from ..coordinator.tenants.audit import as_json

        print(output.as_json([as_json(line) for line in found]))
        return 0
    header = ("TIME", "STATUS", "ACTION", "KEY", "PREFIX", "ADDRESS", "REQUEST ID", "TARGET")
    print(output.table(header, map(_row, found)))
    return 0


async def _find(arguments: argparse.Namespace) -> list[AuditLine]:
    from ..coordinator.store import AuditFilter, Store

    store = await Store.open_beside(arguments.database)
    try:
        wanted = AuditFilter(
            since=None if arguments.since is None else time.time() - arguments.since,
            key_ids=None if arguments.key is None else await store.key_ids(arguments.key),
            prefix=arguments.prefix,
            action=arguments.action,
            statuses=arguments.status,
            request_id=arguments.request_id,
        )
        return await store.find_audit(wanted, arguments.limit)
    finally:
        await store.close()


def _row(line: AuditLine) -> tuple[str, ...]:
    shown = (line.action, line.key_id, line.prefix, line.address, line.request_id, line.target)
    return (timestamp(line.at) or "", str(line.status or "-"), *(visible(text) or "-" for text in shown))
