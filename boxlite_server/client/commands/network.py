"""`network`: who reaches services in boxes, where the server lets clients say so."""

from __future__ import annotations

from argparse import Namespace

from .. import flags
from ..api import ApiClient
from ..parser import Commands


def add_to(commands: Commands) -> None:
    verbs = commands.group(
        "network",
        "Open tunnels to services in boxes, and say who may reach them",
        examples=("boxlite network tunnel web 8080",),
    )
    sub = verbs.add(
        "tunnel",
        tunnel,
        "Open a tunnel to a port of a box, and print its address",
        examples=("boxlite network tunnel web 8080",),
    )
    flags.add_box(sub)
    sub.add_argument("port", metavar="PORT", type=flags.positive, help="the port in the box")

    sub = verbs.add(
        "inbound",
        inbound,
        "Let others reach services in a box, or not, and print the box",
        examples=("boxlite network inbound web disabled",),
    )
    flags.add_box(sub)
    sub.add_argument("mode", metavar="MODE", choices=("enabled", "disabled"), help="enabled or disabled")


def tunnel(api: ApiClient, args: Namespace) -> int:
    print(api.post(f"{api.path('boxes', args.box, 'network', 'tunnel')}?port={args.port}").get("uri", ""))
    return 0


def inbound(api: ApiClient, args: Namespace) -> int:
    api.request("PUT", api.path("boxes", args.box, "network", "inbound"), {"mode": args.mode})
    print(args.box)
    return 0
