"""The `boxlite-server` command: coordinator, worker, or both for local use; and what an operator does to a fleet."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from .. import __version__, errors
from ..client.api import ApiClient
from . import admin, types

DEFAULT_HOME = Path("~/.boxlite")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code: 0 after a clean end, 1 when it cannot start, 2 for wrong arguments."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if getattr(arguments, "timeout", None) is not None and not arguments.wait:
        parser.error("--timeout is of use with --wait only")
    logging.basicConfig(
        level=logging.DEBUG if arguments.debug else logging.INFO,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
    )
    # Libraries that tell each request and each frame, or warn about what the edge has dealt with.
    for name in ("connexion", "uvicorn", "urllib3", "docker", "websockets", "asyncio"):
        logging.getLogger(name).setLevel(logging.INFO if arguments.debug else logging.ERROR)
    try:
        return int(arguments.run(arguments))
    except errors.BoxliteError as exc:
        print(f"boxlite-server: {exc.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _run_coordinator(arguments: argparse.Namespace) -> int:
    from ..coordinator.limits import Policy
    from ..coordinator.server import CoordinatorConfig, run

    return run(
        CoordinatorConfig(
            host=arguments.host,
            port=arguments.port,
            database=arguments.database,
            api_key=arguments.api_key,
            no_auth=arguments.no_auth,
            policy=Policy(
                default_auto_stop=arguments.default_auto_stop,
                default_auto_delete=arguments.default_auto_delete,
                max_boxes_per_prefix=arguments.max_boxes_per_prefix,
            ),
            reconnect_grace=arguments.reconnect_grace,
            orphan_grace=arguments.orphan_grace,
            debug=arguments.debug,
        )
    )


def _run_worker(arguments: argparse.Namespace) -> int:
    from ..worker.host_access import Policy
    from ..worker.main import WorkerConfig, run

    return run(
        WorkerConfig(
            coordinator=arguments.coordinator,
            host=arguments.host,
            port=arguments.port,
            advertise=arguments.advertise,
            name=arguments.name,
            labels=dict(arguments.label),
            home=arguments.home.expanduser(),
            health_port=arguments.health_port,
            max_boxes=arguments.max_boxes,
            api_key=arguments.api_key,
            policy=Policy(tuple(arguments.allow_host_path), frozenset(arguments.allow_cap)),
            cpu_overcommit=arguments.cpu_overcommit,
        )
    )


def _run_dev(arguments: argparse.Namespace) -> int:
    from ..local.dev import run

    return run(arguments.port, arguments.home.expanduser(), debug=arguments.debug)


def _run_backup(arguments: argparse.Namespace) -> int:
    from ..coordinator.store.backup import back_up
    from ..coordinator.store.connection import is_url, shown

    if is_url(arguments.database):
        raise errors.InvalidArgumentError(
            f"copying {shown(arguments.database)} is PostgreSQL's own job: pg_dump --format=custom --file=FILE URL"
        )
    back_up(arguments.database, arguments.file)
    return 0


def _run_admin(act: Callable[[ApiClient, argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    def run(arguments: argparse.Namespace) -> int:
        api = ApiClient(
            arguments.coordinator, api_key=arguments.api_key or "", setting="--coordinator or BOXLITE_COORDINATOR_URL"
        )
        try:
            return act(api, arguments)
        finally:
            api.close()

    return run


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="boxlite-server", description="A distributed server for sandbox boxes.")
    parser.add_argument("--version", action="version", version=f"boxlite-server {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_coordinator(commands)
    _add_worker(commands)
    _add_dev(commands)
    _add_backup(commands)

    _add_workers(commands)
    _add_drain(commands)
    _add_reconcile(commands)
    return parser


def _add_coordinator(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "coordinator", help="take client requests and place boxes on workers", formatter_class=types.Formatter
    )
    parser.set_defaults(run=_run_coordinator)
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on")
    parser.add_argument(
        "--port", type=types.port, default=types.from_env("BOXLITE_COORDINATOR_PORT", "8200"), help="port to serve on"
    )
    _add_database(parser)
    _add_api_key(parser, "require this key of clients and workers")
    parser.add_argument(
        "--reconnect-grace",
        metavar="SECONDS",
        type=types.seconds,
        default=types.from_env("BOXLITE_RECONNECT_GRACE", "300"),
        help="a terminal whose client is gone gets SIGHUP after this long; 0: never",
    )
    parser.add_argument(
        "--orphan-grace",
        metavar="SECONDS",
        type=types.seconds,
        default=types.from_env("BOXLITE_ORPHAN_GRACE", "60"),
        help="remove a container of ours that no box has after this long",
    )
    parser.add_argument("--no-auth", action="store_true", help="serve any address without a key")
    parser.add_argument(
        "--default-auto-stop",
        metavar="SECONDS",
        type=types.lifetime,
        default=0,
        help="stop boxes that are idle so long, unless they ask for something else (default: never)",
    )
    parser.add_argument(
        "--default-auto-delete",
        metavar="SECONDS",
        type=types.lifetime,
        default=0,
        help="remove boxes so long after their stop, unless they ask for something else (default: never)",
    )
    parser.add_argument(
        "--max-boxes-per-prefix", metavar="N", type=types.positive, help="allow each prefix N boxes (default: no limit)"
    )
    _add_debug(parser)


def _add_worker(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "worker", help="run boxes on this host's Docker Engine", formatter_class=types.Formatter
    )
    parser.set_defaults(run=_run_worker)
    coordinator = os.environ.get("BOXLITE_COORDINATOR_URL")
    parser.add_argument(
        "--coordinator",
        metavar="URL",
        type=types.http_url,
        default=coordinator,
        required=not coordinator,
        help="the coordinator's address [BOXLITE_COORDINATOR_URL]",
    )
    parser.add_argument(
        "--host", metavar="ADDR", help="address to serve on (default: loopback if the coordinator is there, else all)"
    )
    parser.add_argument(
        "--port",
        type=types.port,
        default=types.from_env("BOXLITE_WORKER_PORT", "9100"),
        help="port for the coordinator's calls",
    )
    parser.add_argument(
        "--advertise", metavar="URL", help="address for the coordinator's calls (default: how this host reached it)"
    )
    parser.add_argument("--name", default=os.environ.get("BOXLITE_WORKER_NAME"), help="name (default: a made-up one)")
    parser.add_argument(
        "--label", metavar="K=V", type=types.key_value, action="append", default=[], help="label, repeatable"
    )
    parser.add_argument(
        "--home",
        metavar="DIR",
        type=Path,
        default=types.from_env("BOXLITE_HOME", str(DEFAULT_HOME)),
        help="data directory",
    )
    parser.add_argument("--health-port", type=types.port, default=9101, help="port of /healthz and /readyz")
    parser.add_argument(
        "--max-boxes",
        metavar="N",
        type=types.positive,
        help="let at most N boxes hold room at once; stopped ones hold none (default: no limit)",
    )
    parser.add_argument(
        "--cpu-overcommit",
        metavar="FACTOR",
        type=types.factor,
        default=16.0,
        help="promise boxes so many cpus for each that the machine has",
    )
    parser.add_argument(
        "--allow-host-path",
        metavar="DIR",
        type=types.directory,
        action="append",
        default=[],
        help="let boxes mount directories below this one, repeatable",
    )
    parser.add_argument(
        "--allow-cap",
        metavar="CAP",
        type=types.capability,
        action="append",
        default=[],
        help="let boxes have this Linux capability beside the usual ones, or ALL; repeatable",
    )
    _add_api_key(parser, "the coordinator's API key")
    _add_debug(parser)


def _add_dev(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "dev", help="a coordinator and one worker in one command, on loopback", formatter_class=types.Formatter
    )
    parser.set_defaults(run=_run_dev)
    parser.add_argument(
        "--port",
        type=types.port,
        default=types.from_env("BOXLITE_COORDINATOR_PORT", "8200"),
        help="port of the coordinator",
    )
    parser.add_argument(
        "--home",
        metavar="DIR",
        type=Path,
        default=types.from_env("BOXLITE_HOME", str(DEFAULT_HOME)),
        help="data directory",
    )
    _add_debug(parser)


def _add_backup(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "backup", help="copy the coordinator's database, also while it runs", formatter_class=types.Formatter
    )
    parser.set_defaults(run=_run_backup)
    _add_database(parser)
    parser.add_argument("file", metavar="FILE", type=Path, help="the copy; a file that does not exist yet")
    _add_debug(parser)


def _add_database(parser: argparse.ArgumentParser) -> None:
    """Its default is not shown as other defaults are: a URL may carry a password."""
    parser.add_argument(
        "--database",
        "--db-path",
        metavar="PATH|URL",
        type=types.database,
        default=types.from_env("BOXLITE_COORDINATOR_DB", str(DEFAULT_HOME / "coordinator.db")),
        help=(
            "the database: a file of SQLite's, or postgresql://USER@HOST/NAME, which several coordinators can share "
            f"[BOXLITE_COORDINATOR_DB] (default: {DEFAULT_HOME}/coordinator.db)"
        ),
    )


def _add_workers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "workers", help="list the workers and what is reserved on them", formatter_class=types.Formatter
    )
    parser.set_defaults(run=_run_admin(admin.workers))
    parser.add_argument("--format", choices=("table", "json"), default="table", help="how to print them")
    _add_client(parser)


def _add_drain(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "drain",
        help="keep a worker from new boxes; those that it has stay as they are",
        formatter_class=types.Formatter,
    )
    parser.set_defaults(run=_run_admin(admin.drain))
    parser.add_argument("worker", metavar="WORKER", help="its name or id")
    parser.add_argument("--wait", action="store_true", help="return when no box holds room there any more")
    parser.add_argument("--timeout", metavar="S", type=types.seconds, help="of --wait: fail after so many seconds")
    _add_client(parser)
    parser = commands.add_parser("undrain", help="let a worker take new boxes again", formatter_class=types.Formatter)
    parser.set_defaults(run=_run_admin(admin.undrain))
    parser.add_argument("worker", metavar="WORKER", help="its name or id")
    _add_client(parser)


def _add_reconcile(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "reconcile",
        help="bring what is written of boxes and what the workers hold in line; it goes on by itself, too",
        formatter_class=types.Formatter,
    )
    parser.set_defaults(run=_run_admin(admin.reconcile))
    parser.add_argument("--dry-run", action="store_true", help="only print what would be done")
    parser.add_argument("--worker", metavar="WORKER", help="the name or id of the one to look at (default: all)")
    _add_client(parser)


def _add_client(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--coordinator",
        metavar="URL",
        type=types.http_url,
        default=types.from_env("BOXLITE_COORDINATOR_URL", "http://127.0.0.1:8200"),
        help="the coordinator's address",
    )
    _add_api_key(parser, "the coordinator's API key")
    _add_debug(parser)


def _add_api_key(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument(
        "--api-key", metavar="KEY", default=os.environ.get("BOXLITE_API_KEY"), help=f"{text} [BOXLITE_API_KEY]"
    )


def _add_debug(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--debug", action="store_true", help="log more")
