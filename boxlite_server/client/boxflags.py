"""The flags of `create` and `run` by which a box gets something of its worker's host."""

from __future__ import annotations

import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace

from .api import Json

_PORT = re.compile(
    r"(?:(?:(?P<ip>\[[0-9a-fA-F:]+\]|\d+(?:\.\d+){3}):)?(?P<host>\d*):)?(?P<guest>\d+)(?:/(?P<protocol>tcp|udp))?",
    re.ASCII,
)


def add_flags(parser: ArgumentParser) -> None:
    """The flags of `create` and `run`."""
    parser.add_argument(
        "-v",
        "--volume",
        type=volume_flag,
        action="append",
        default=[],
        metavar="SOURCE:PATH[:ro]",
        help="mount a volume, or a path of the worker's host (repeatable)",
    )
    parser.add_argument(
        "-p",
        "--publish",
        type=port_flag,
        action="append",
        default=[],
        metavar="[[IP:]PORT:]PORT[/PROTO]",
        help="publish a port of the box on the worker's host, at 127.0.0.1 unless told otherwise (repeatable)",
    )
    for flag, text in (("--cap-add", "give the box"), ("--cap-drop", "take from the box")):
        parser.add_argument(
            flag, action="append", default=[], metavar="CAP", help=f"{text} a Linux capability, or ALL (repeatable)"
        )


def box_fields(args: Namespace) -> Json:
    """What those flags add to the body of `POST boxes`."""
    capabilities = {"add": args.cap_add, "drop": args.cap_drop}
    capabilities = {key: names for key, names in capabilities.items() if names}
    return {
        "volumes": args.volume,
        "ports": args.publish,
        "advanced": {"capabilities": capabilities} if capabilities else {},
    }


def volume_flag(text: str) -> Json:
    """`VOLUME:PATH[:ro|rw]` or `/HOST/PATH:PATH[:ro|rw]`."""
    source, *rest = text.split(":")
    if not source or len(rest) not in (1, 2) or not rest[0].startswith("/"):
        raise ArgumentTypeError(f"'{text}' is not VOLUME:/PATH or /HOST/PATH:/PATH, with :ro behind it if wanted")
    if len(rest) == 2 and rest[1] not in ("ro", "rw"):
        raise ArgumentTypeError(f"'{text}': the option '{rest[1]}' is unknown; there are ro and rw")
    if source[0] in ".~":
        raise ArgumentTypeError(f"'{text}': a path of the worker's host has to be absolute")
    key = "host_path" if source.startswith("/") else "managed_volume"
    return {key: source, "guest_path": rest[0], "read_only": rest[1:] == ["ro"]}


def port_flag(text: str) -> Json:
    """`[[IP:]HOST_PORT:]BOX_PORT[/tcp|/udp]`."""
    match = _PORT.fullmatch(text)
    if not match:
        raise ArgumentTypeError(f"'{text}' is not [[IP:]HOST_PORT:]BOX_PORT[/tcp|/udp]")
    ports = {"guest_port": int(match["guest"]), "host_port": int(match["host"] or 0)}
    if not 1 <= ports["guest_port"] <= 65535 or ports["host_port"] > 65535:
        raise ArgumentTypeError(f"'{text}': ports are 1 to 65535")
    optional = {"host_ip": (match["ip"] or "").strip("[]"), "protocol": match["protocol"]}
    return {**{key: port for key, port in ports.items() if port}, **{k: v for k, v in optional.items() if v}}
