"""`boxlite-server doctor`: its flags."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from . import certs, types
from .flags import Commands, add, add_api_key, add_ca_cert, add_database, add_debug, add_home


def add_doctor(commands: Commands) -> None:
    """Add the command."""
    parser = add(
        commands,
        "doctor",
        run,
        "say what is wrong with this host, and with its way to the coordinator, and what mends it; the exit code is 1 "
        "if there is a problem",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument(
        "--coordinator",
        metavar="URL",
        type=types.http_url,
        default=os.environ.get("BOXLITE_COORDINATOR_URL"),
        help="examine the way to the coordinator at this address too [BOXLITE_COORDINATOR_URL] (default: none)",
    )
    add_api_key(parser, "examine this API key, or join token")
    add_ca_cert(parser)
    add_home(parser, "examine this directory of a worker")
    add_database(parser)
    parser.add_argument(
        "--certs", metavar="DIR", type=Path, default=certs.DEFAULT_DIRECTORY, help="examine the certificates in here"
    )
    parser.add_argument(
        "--coordinator-port", metavar="PORT", type=types.port, default=8200, help="of a coordinator here"
    )
    parser.add_argument("--worker-port", metavar="PORT", type=types.port, default=9100, help="of a worker here")
    parser.add_argument("--health-port", metavar="PORT", type=types.port, default=9101, help="of a worker here")
    add_debug(parser)


def run(arguments: argparse.Namespace) -> int:
    """Examine, and print what was found."""
    from ..coordinator.store.connection import is_url
    from ..local.doctor import report
    from ..local.doctor.fleet import Coordinator

    url, database = arguments.coordinator, arguments.database
    options = report.Options(
        coordinator=Coordinator(url, arguments.api_key, arguments.ca_cert) if url else None,
        home=arguments.home.expanduser().absolute(),
        certs=arguments.certs.expanduser(),
        database=None if is_url(database) else Path(database).expanduser(),
        key_file=arguments.api_key_file,
        ports={
            "coordinator": arguments.coordinator_port,
            "worker": arguments.worker_port,
            "worker's monitoring": arguments.health_port,
        },
    )
    return report.run(options, as_json=arguments.json)
