"""The `boxlite-server` command: it runs a coordinator, a worker or both, and administers a fleet."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from .. import __version__, errors
from ..client.api import ApiClient
from . import admin, audit, certs, credentials, doctor, host_access, keys, logs, quotas, types
from .flags import Commands, add, add_api_key, add_client, add_database, add_debug, add_home, add_metrics_token


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 for success, 1 for a failure, 130 after Ctrl-C.

    Wrong arguments raise SystemExit(2), as argparse does.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    if getattr(arguments, "timeout", None) is not None and not arguments.wait:
        parser.error("--timeout needs --wait")
    logs.set_up(debug=arguments.debug)
    # These libraries log each request and each frame, or warn about errors that the server has handled.
    for name in ("connexion", "uvicorn", "urllib3", "docker", "websockets", "asyncio"):
        logging.getLogger(name).setLevel(logging.INFO if arguments.debug else logging.ERROR)
    try:
        if "api_key" in arguments:
            arguments.api_key = credentials.take_key(arguments, may_start_again=argv is None)
        return int(arguments.run(arguments))
    except errors.BoxliteError as exc:
        print(f"boxlite-server: {exc.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _run_coordinator(arguments: argparse.Namespace) -> int:
    from ..coordinator.http.connections import ConnectionLimits
    from ..coordinator.limits import Policy
    from ..coordinator.server import CoordinatorConfig, run

    return run(
        CoordinatorConfig(
            host=arguments.host,
            port=arguments.port,
            database=arguments.database,
            api_key=arguments.api_key,
            no_auth=arguments.no_auth,
            allowed_origins=tuple(arguments.allow_origin),
            allowed_hosts=tuple(arguments.allow_host),
            trusted_proxies=tuple(arguments.trusted_proxy),
            limits=ConnectionLimits(count=arguments.max_connections, idle=arguments.idle_timeout),
            policy=Policy(
                default_auto_stop=arguments.default_auto_stop,
                default_auto_delete=arguments.default_auto_delete,
                max_boxes_per_prefix=arguments.max_boxes_per_prefix,
                audit_keep=arguments.audit_keep,
            ),
            reconnect_grace=arguments.reconnect_grace,
            orphan_grace=arguments.orphan_grace,
            debug=arguments.debug,
            metrics_token=credentials.metrics_token(arguments.metrics_token_file),
            tls=certs.files(arguments),
            ca_key=arguments.tls_ca_key,
        )
    )


def _run_worker(arguments: argparse.Namespace) -> int:
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
            policy=host_access.policy(arguments),
            cpu_overcommit=arguments.cpu_overcommit,
            supervisor=not arguments.no_supervisor,
            enforce_disk_limit=arguments.disk_limit == "enforce",
            warm_images=dict(arguments.warm),
            filtered_network=not arguments.unfiltered_network,
            allow_private=tuple(arguments.allow_private),
            rejoin=arguments.rejoin,
            reserve_memory_mib=arguments.reserve_memory,
            reserve_disk=None if arguments.reserve_disk is None else arguments.reserve_disk << 20,
            spool_limit=arguments.spool_limit and arguments.spool_limit << 30,
            output_limit=arguments.output_limit and arguments.output_limit << 30,
            tls=certs.files(arguments),
            metrics_token=credentials.metrics_token(arguments.metrics_token_file),
            insecure_grpc=arguments.insecure_grpc,
        )
    )


def _run_dev(arguments: argparse.Namespace) -> int:
    from ..local.dev import run

    home, unfiltered = arguments.home.expanduser(), arguments.unfiltered_network
    return run(arguments.port, home, debug=arguments.debug, unfiltered=unfiltered)


def _run_backup(arguments: argparse.Namespace) -> int:
    from ..coordinator.store.backup import back_up
    from ..coordinator.store.connection import is_url, shown

    if is_url(arguments.database):
        raise errors.InvalidArgumentError(
            f"{shown(arguments.database)} is copied by PostgreSQL itself: pg_dump --format=custom --file=FILE URL"
        )
    back_up(arguments.database, arguments.file)
    return 0


def _run_admin(act: Callable[[ApiClient, argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    def run(arguments: argparse.Namespace) -> int:
        api = ApiClient(
            arguments.coordinator,
            api_key=arguments.api_key or "",
            ca_cert=arguments.ca_cert,
            setting="--coordinator or BOXLITE_COORDINATOR_URL",
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
    doctor.add_doctor(commands)
    _add_backup(commands)
    keys.add_keys(commands)
    quotas.add_quotas(commands)
    certs.add_certs(commands)
    audit.add_audit(commands)
    _add_workers(commands)
    _add_drain(commands)
    _add_undrain(commands)
    _add_reconcile(commands)
    return parser


def _add_coordinator(commands: Commands) -> None:
    parser = add(commands, "coordinator", _run_coordinator, "serve the REST API and place boxes on workers")
    parser.add_argument("--host", metavar="ADDR", default="127.0.0.1", help="serve on this address")
    parser.add_argument(
        "--port",
        type=types.port,
        default=types.from_env("BOXLITE_COORDINATOR_PORT", "8200"),
        help="serve on this port; 0 takes any free one [BOXLITE_COORDINATOR_PORT]",
    )
    add_database(parser)
    add_api_key(parser, "require this key from clients and workers")
    add_metrics_token(parser, "let those read /metrics who send the token in this file, beside keys of operators")
    parser.add_argument(
        "--no-auth",
        action="store_true",
        help="serve without an API key on any address (default: without a key, serve on loopback only)",
    )
    _add_browsers(parser)
    certs.add_coordinator_flags(parser)
    parser.add_argument(
        "--max-connections",
        metavar="N",
        type=types.positive,
        default=10_000,
        help="serve at most N connections at a time, and no more than three quarters of the limit of open files",
    )
    parser.add_argument(
        "--idle-timeout",
        metavar="SECONDS",
        type=types.seconds,
        default=75.0,
        help="close a connection without a request after this long",
    )
    parser.add_argument(
        "--reconnect-grace",
        metavar="SECONDS",
        type=types.seconds,
        default=types.from_env("BOXLITE_RECONNECT_GRACE", "300"),
        help="send SIGHUP to a terminal this long after its client disconnects; 0 means never "
        "[BOXLITE_RECONNECT_GRACE]",
    )
    parser.add_argument(
        "--orphan-grace",
        metavar="SECONDS",
        type=types.seconds,
        default=types.from_env("BOXLITE_ORPHAN_GRACE", "60"),
        help="remove an orphan, a container of this cluster without a box, after this long [BOXLITE_ORPHAN_GRACE]",
    )
    parser.add_argument(
        "--default-auto-stop",
        metavar="SECONDS",
        type=types.lifetime,
        default=0,
        help="stop a box that is idle for this long, unless the box sets auto_stop; 0 means never (default: 0)",
    )
    parser.add_argument(
        "--default-auto-delete",
        metavar="SECONDS",
        type=types.lifetime,
        default=0,
        help="remove a box this long after its stop, unless the box sets auto_delete; 0 means never (default: 0)",
    )
    parser.add_argument(
        "--max-boxes-per-prefix",
        metavar="N",
        type=types.positive,
        help="allow each prefix (tenant) at most N boxes (default: no limit)",
    )
    parser.add_argument(
        "--audit-keep",
        metavar="DURATION",
        type=types.kept,
        default="90d",
        help="delete lines of the audit after this long, a day at least",
    )
    add_debug(parser)


def _add_browsers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-origin",
        metavar="ORIGIN",
        type=types.origin,
        action="append",
        default=[],
        help="let pages of this web site use the API, for example https://app.example.com, or * for all; may be "
        "repeated (default: only pages of the coordinator itself)",
    )
    parser.add_argument(
        "--allow-host",
        metavar="NAME",
        action="append",
        default=[],
        help="without an API key, serve requests to this host name too, or * for any; may be repeated "
        "(default: names and addresses of loopback, and the address given with --host)",
    )
    parser.add_argument(
        "--trusted-proxy",
        metavar="ADDRESS",
        type=types.network,
        action="append",
        default=[],
        help="take the address of a client from the X-Forwarded-For of this proxy, an address or a network such as "
        "10.0.0.0/24; may be repeated (default: the header is ignored)",
    )


def _add_worker(commands: Commands) -> None:
    parser = add(commands, "worker", _run_worker, "run boxes on this host's Docker Engine")
    coordinator = os.environ.get("BOXLITE_COORDINATOR_URL")
    parser.add_argument(
        "--coordinator",
        metavar="URL",
        type=types.http_url,
        default=coordinator,
        required=not coordinator,
        help="register with the coordinator at this address [BOXLITE_COORDINATOR_URL]",
    )
    parser.add_argument(
        "--host",
        metavar="ADDR",
        help="serve on this address (default: loopback if the coordinator is on loopback, else all addresses)",
    )
    parser.add_argument(
        "--port",
        type=types.port,
        default=types.from_env("BOXLITE_WORKER_PORT", "9100"),
        help="serve the coordinator's calls on this port; 0 takes any free one [BOXLITE_WORKER_PORT]",
    )
    parser.add_argument(
        "--advertise",
        metavar="URL",
        help="tell the coordinator to call the worker at this address "
        "(default: this host's address on the route to the coordinator, and the port)",
    )
    parser.add_argument(
        "--name",
        default=os.environ.get("BOXLITE_WORKER_NAME"),
        help="name the worker; the name is kept in its home [BOXLITE_WORKER_NAME] (default: a generated name)",
    )
    parser.add_argument(
        "--label",
        metavar="KEY=VALUE",
        type=types.key_value,
        action="append",
        default=[],
        help="attach this label to the worker; may be repeated (default: no labels)",
    )
    add_home(parser, "keep the worker's identity and data in this directory")
    parser.add_argument(
        "--health-port",
        metavar="PORT",
        type=types.port,
        default=9101,
        help="serve /healthz, /readyz and /metrics on this port; 0 takes any free one",
    )
    add_metrics_token(parser, "show /metrics to those who send the token in this file (default: only to this host)")
    parser.add_argument(
        "--max-boxes",
        metavar="N",
        type=types.positive,
        help="take at most N boxes at once; stopped and failed boxes do not count (default: no limit)",
    )
    parser.add_argument(
        "--warm",
        metavar="IMAGE=N",
        type=types.warm_image,
        action="append",
        default=[],
        help="keep N boxes of IMAGE started for requests to come; may be repeated (default: none)",
    )
    parser.add_argument(
        "--cpu-overcommit",
        metavar="FACTOR",
        type=types.factor,
        default=16.0,
        help="let boxes reserve up to FACTOR cpus for each cpu of the machine, 1 to 1000",
    )
    parser.add_argument(
        "--reserve-memory",
        metavar="MIB",
        type=types.count,
        help="promise boxes all memory of the machine but this, which is left to its system, the container engine and "
        "the worker (default: a tenth, between 256 MiB and 8 GiB)",
    )
    parser.add_argument(
        "--reserve-disk",
        metavar="MIB",
        type=types.count,
        help="leave so much of the engine's disk free: below that nothing is made that takes room, and the running box "
        "that is writing the most is stopped; 0 turns this off (default: a twentieth of the disk, 2 GiB at most)",
    )
    parser.add_argument(
        "--spool-limit",
        metavar="GIB",
        type=types.positive,
        help="keep at most so much of uploads and downloads on the disk at once, and half of that for one box "
        "(default: half of the disk); tenants share it",
    )
    parser.add_argument(
        "--output-limit",
        metavar="GIB",
        type=types.positive,
        help="keep at most so much of the output of commands on the disk, and 512 KiB of each command in any case; the "
        "oldest output goes first (default: a quarter of the disk); tenants share it",
    )
    host_access.add_flags(parser)
    parser.add_argument(
        "--no-supervisor",
        action="store_true",
        help="run commands by the engine's exec alone, and not by a supervisor in each box",
    )
    parser.add_argument(
        "--disk-limit",
        choices=("advise", "enforce"),
        default="advise",
        help="where the engine's storage cannot limit the disk of a box: advise measures it now and then and stops the "
        "box once it is over, enforce refuses boxes with a limit",
    )
    parser.add_argument(
        "--rejoin",
        action="store_true",
        help="register also with a coordinator that does not know this worker, after the cluster got a new database or "
        "one from before this worker joined it (default: a worker that was registered once has the coordinator prove "
        "that it knows the worker's secret)",
    )
    add_api_key(parser, "send this API key, or join with this token, to the coordinator", "--join")
    certs.add_worker_flags(parser)
    add_debug(parser)


def _add_dev(commands: Commands) -> None:
    parser = add(commands, "dev", _run_dev, "run a coordinator and one worker, both on loopback")
    parser.add_argument(
        "--port",
        type=types.port,
        default=types.from_env("BOXLITE_COORDINATOR_PORT", "8200"),
        help="serve the coordinator on this port [BOXLITE_COORDINATOR_PORT]",
    )
    add_home(parser, "keep the database and the worker's data in this directory")
    parser.add_argument(
        "--unfiltered-network",
        action="store_true",
        help="add neither a network nor firewall rules to this host: boxes then reach each other and this host",
    )
    add_debug(parser)


def _add_backup(commands: Commands) -> None:
    parser = add(
        commands, "backup", _run_backup, "copy the coordinator's SQLite database; the coordinator may be running"
    )
    add_database(parser)
    parser.add_argument("file", metavar="FILE", type=Path, help="write the copy to this file, which must not exist yet")
    add_debug(parser)


def _add_workers(commands: Commands) -> None:
    parser = add(
        commands,
        "workers",
        _run_admin(admin.workers),
        "list the workers, their status and what boxes have reserved on them",
    )
    parser.add_argument("--format", choices=("table", "json"), default="table", help="print the workers in this format")
    add_client(parser)


def _add_drain(commands: Commands) -> None:
    parser = add(
        commands,
        "drain",
        _run_admin(admin.drain),
        "keep new boxes away from a worker; the boxes on it stay as they are",
    )
    parser.add_argument("worker", metavar="WORKER", help="the worker's name or id")
    parser.add_argument(
        "--wait",
        action="store_true",
        help="return only when no box holds a reservation on the worker (default: return at once)",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=types.seconds,
        help="with --wait, fail after this long; the worker goes on draining (default: wait for ever)",
    )
    add_client(parser)


def _add_undrain(commands: Commands) -> None:
    parser = add(commands, "undrain", _run_admin(admin.undrain), "let a worker take new boxes again")
    parser.add_argument("worker", metavar="WORKER", help="the worker's name or id")
    add_client(parser)


def _add_reconcile(commands: Commands) -> None:
    parser = add(
        commands,
        "reconcile",
        _run_admin(admin.reconcile),
        "reconcile the database with the workers now; the coordinator also does it by itself",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the actions without taking them")
    parser.add_argument(
        "--worker", metavar="WORKER", help="reconcile only the worker with this name or id (default: all workers)"
    )
    add_client(parser)
