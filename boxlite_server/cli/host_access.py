"""The flags by which a worker's operator says what boxes may have of the host."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from . import types

if TYPE_CHECKING:
    from ..worker.host_access import Policy


def policy(arguments: argparse.Namespace) -> Policy:
    """The policy that the flags tell."""
    from ..worker.host_access import DEFAULT_PUBLISH_ADDRESS, Policy
    from ..worker.presets import Preset

    return Policy(
        tuple(arguments.allow_host_path),
        frozenset(arguments.allow_cap),
        arguments.cpuset,
        publish_addresses=tuple(arguments.publish_address or [DEFAULT_PUBLISH_ADDRESS]),
        publish_ports=tuple(arguments.publish_ports),
        registries=tuple(arguments.allow_registry),
        floor=Preset(arguments.security),
        runtime=arguments.runtime,
    )


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cpuset",
        metavar="CPUS",
        type=types.cpus,
        default=(),
        help="pin each box to as many of these cpus as it asks for, such as 2-7,9, so that programs in it see that "
        "number of cpus (default: a box may run on all cpus, for its share of the time)",
    )
    parser.add_argument(
        "--allow-host-path",
        metavar="DIR",
        type=types.directory,
        action="append",
        default=[],
        help="let boxes mount DIR and paths below it; may be repeated (default: no host paths)",
    )
    parser.add_argument(
        "--allow-cap",
        metavar="CAP",
        type=types.capability,
        action="append",
        default=[],
        help="let boxes add this Linux capability, or ALL for any; may be repeated "
        "(default: only those of the preset of the box)",
    )
    _add_isolation_flags(parser)
    _add_network_flags(parser)


def _add_isolation_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--security",
        choices=("development", "standard", "maximum"),
        default="standard",
        help="refuse boxes with a weaker preset of isolation than this one; a box that asks for no other than standard "
        "gets the stronger of the two (SECURITY.md has a table of the presets)",
    )
    parser.add_argument(
        "--runtime",
        metavar="NAME",
        default="",
        help="have the engine run all boxes under this runtime, such as runsc (default: the engine's default)",
    )


def _add_network_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--publish-address",
        metavar="ADDRESS",
        type=types.address,
        action="append",
        default=[],
        help="let boxes publish ports at this address of the host, such as 10.0.0.5, or 0.0.0.0 for all; may be "
        "repeated (default: 127.0.0.1)",
    )
    parser.add_argument(
        "--publish-ports",
        metavar="FIRST-LAST",
        type=types.port_range,
        action="append",
        default=[],
        help="let boxes ask for these ports of the host; may be repeated "
        "(default: only free ports that the engine picks)",
    )
    parser.add_argument(
        "--allow-registry",
        metavar="HOST[:PORT]",
        type=types.registry,
        action="append",
        default=[],
        help="pull images from this registry, wherever it is, or with 'public' from all at public addresses; may be "
        "repeated (default: public)",
    )
    parser.add_argument(
        "--allow-private",
        metavar="CIDR",
        type=types.network_of_boxes,
        action="append",
        default=[],
        help="let boxes reach these addresses though they are not the public internet, such as 10.1.0.0/16; may be "
        "repeated (default: none; name servers of the host are reached for DNS)",
    )
    parser.add_argument(
        "--unfiltered-network",
        action="store_true",
        help="let boxes reach each other, the host and all that it reaches, without a packet filter (nftables), which "
        "takes root; without this flag a worker that cannot filter refuses boxes with a network",
    )
