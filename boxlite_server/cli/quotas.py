"""`boxlite-server quotas`: lists, sets and removes what prefixes may have at most, in the coordinator's database
itself, which a coordinator may be using meanwhile."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..client import output
from ..errors import InvalidArgumentError
from . import types
from .audit import note
from .flags import Commands, add, add_database, add_debug, on_database

if TYPE_CHECKING:
    from ..coordinator.store import Quotas, Store, Use

_PATH = "/v1/admin/quotas/"  # of the same in the API, as the audit has it
_FLAGS = {
    "boxes": "have at most so many boxes",
    "running_boxes": "have at most so many boxes that run",
    "cpus": "reserve at most so many cpus, of all boxes together",
    "memory_mib": "reserve at most so much memory, of all boxes together",
    "volumes": "have at most so many volumes",
    "executions": "run at most so many commands on each worker",
    "transfers": "have at most so many uploads, downloads, exports, imports and pulls under way at each worker",
    "spooled_bytes": "take at most so many bytes of each worker's disk for transfers, and as many for kept output",
    "requests_per_second": "send at most so many requests in a second to each coordinator",
}


def add_quotas(commands: Commands) -> None:
    """Add the command and its subcommands."""
    parser = commands.add_parser("quotas", help="list, set and remove what prefixes (tenants) may have at most")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    listing = add(actions, "list", on_database(list_quotas), "list the quotas that were set, with what is in use")
    setting = add(
        actions, "set", on_database(set_quotas), "set quotas of a prefix; coordinators know them within 5 seconds"
    )
    removing = add(actions, "remove", on_database(remove_quotas), "remove all quotas that were set for a prefix")
    for parser in (setting, removing):
        parser.add_argument(
            "prefix",
            metavar="PREFIX",
            type=types.prefix_or_any,
            help="the prefix, or * for every prefix, where it has no quota of its own",
        )
    for name, text in _FLAGS.items():
        flag = f"--{name.replace('_', '-')}"
        setting.add_argument(
            flag, metavar="N", type=types.quota, default=argparse.SUPPRESS, help=f"let it {text}; none: no quota"
        )
    for parser in (listing, setting):
        parser.add_argument("--format", choices=("table", "json"), default="table", help="print in this format")
    for parser in (listing, setting, removing):
        add_database(parser)
        add_debug(parser)


async def list_quotas(store: Store, arguments: argparse.Namespace) -> None:
    """Print the quotas that were set, as a table or as JSON."""
    found = await store.list_quotas()
    _print({prefix: (quotas, await store.use_of(prefix)) for prefix, quotas in found.items()}, arguments.format)


async def set_quotas(store: Store, arguments: argparse.Namespace) -> None:
    """Set the given quotas of a prefix, leave its others, and print them all. Raises InvalidArgumentError."""
    from ..coordinator.store import Quotas

    given = {name: value for name, value in vars(arguments).items() if name in _FLAGS}
    if not given:
        raise InvalidArgumentError("no quota is given; `boxlite-server quotas set --help` lists all")
    async with store.transaction() as tx:
        quotas = (await tx.own_quotas(arguments.prefix) or Quotas())._replace(**given)
        await tx.put_quotas(arguments.prefix, quotas)
        use = await tx.use_of(arguments.prefix)
        await note(tx, "setQuotas", arguments.prefix, _PATH + arguments.prefix)
    _print({arguments.prefix: (quotas, use)}, arguments.format)


async def remove_quotas(store: Store, arguments: argparse.Namespace) -> None:
    """Remove all quotas of a prefix."""
    async with store.transaction() as tx:
        await tx.delete_quotas(arguments.prefix)
        await note(tx, "removeQuotas", arguments.prefix, _PATH + arguments.prefix)
    print(f"{arguments.prefix} has no quotas of its own")


def _print(found: dict[str, tuple[Quotas, Use]], form: str) -> None:
    if form == "json":
        shown = [
            {"prefix": prefix, "own": quotas._asdict(), "used": use._asdict()}
            for prefix, (quotas, use) in found.items()
        ]
        print(output.as_json(shown))
        return
    header = ("PREFIX", "QUOTA", "AT MOST", "USED")
    rows = [
        (prefix, name, str(limit), str(getattr(use, name, "")))
        for prefix, (quotas, use) in found.items()
        for name, limit in quotas._asdict().items()
        if limit is not None
    ]
    print(output.table(header, rows))
