"""The flags of a worker about the isolation of its boxes."""

from __future__ import annotations

import argparse

from ..worker.host_access import Policy
from ..worker.presets import Preset
from . import types


def add(parser: argparse.ArgumentParser) -> None:
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
    parser.add_argument(
        "--allow-private",
        metavar="CIDR",
        type=types.network,
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


def policy(arguments: argparse.Namespace) -> Policy:
    """What the flags allow to boxes."""
    return Policy(
        tuple(arguments.allow_host_path),
        frozenset(arguments.allow_cap),
        arguments.cpuset,
        Preset(arguments.security),
        arguments.runtime,
    )
