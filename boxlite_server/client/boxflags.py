"""The flags of `create` and `run` that give a box access to its worker's host: mounts, ports and capabilities."""

from __future__ import annotations

import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace

from .api import Json

_PORT = re.compile(
    r"(?:(?:(?P<ip>\[[0-9a-fA-F:]+\]|\d+(?:\.\d+){3}):)?(?P<host>\d*):)?(?P<guest>\d+)(?:/(?P<protocol>tcp|udp))?",
    re.ASCII,
)


def add_flags(parser: ArgumentParser) -> None:
    """Add the flags to the parser of `create` or `run`."""
    parser.add_argument(
        "-v",
        "--volume",
        type=volume_flag,
        action="append",
        default=[],
        metavar="SOURCE:PATH[:ro]",
        help="mount SOURCE, a volume or an absolute path of the worker's host, at PATH in the box; "
        "read-only with :ro (repeatable)",
    )
    parser.add_argument(
        "-p",
        "--publish",
        type=port_flag,
        action="append",
        default=[],
        metavar="[[IP:]PORT:]PORT[/PROTO]",
        help="publish a port of the box on the worker's host, by default at 127.0.0.1, on any free port and for tcp "
        "(repeatable)",
    )
    parser.add_argument(
        "--security",
        choices=("development", "standard", "maximum"),
        help="isolate the box this well (default: standard, or more where the worker's operator demands more)",
    )
    for flag, text in (("--cap-add", "add"), ("--cap-drop", "drop")):
        parser.add_argument(
            flag,
            action="append",
            default=[],
            metavar="CAP",
            help=f"{text} a Linux capability of the box, such as NET_ADMIN, or ALL (repeatable)",
        )


def box_fields(args: Namespace) -> Json:
    """The fields that these flags set in the body of `POST boxes`."""
    capabilities = {"add": args.cap_add, "drop": args.cap_drop}
    capabilities = {key: names for key, names in capabilities.items() if names}
    return {
        "volumes": args.volume,
        "ports": args.publish,
        "advanced": {"capabilities": capabilities} if capabilities else {},
        "security": args.security,
    }


def volume_flag(text: str) -> Json:
    """Parse `VOLUME:PATH[:ro|rw]` or `/HOST/PATH:PATH[:ro|rw]`. Raises ArgumentTypeError."""
    source, *rest = text.split(":")
    if not source or len(rest) not in (1, 2) or not rest[0].startswith("/"):
        raise ArgumentTypeError(f"'{text}' is not VOLUME:/PATH[:ro] or /HOST/PATH:/PATH[:ro]")
    if len(rest) == 2 and rest[1] not in ("ro", "rw"):
        raise ArgumentTypeError(f"'{text}': the option '{rest[1]}' is unknown; the options are ro and rw")
    if source[0] in ".~":
        raise ArgumentTypeError(f"'{text}': a path of the worker's host must be absolute")
    key = "host_path" if source.startswith("/") else "managed_volume"
    return {key: source, "guest_path": rest[0], "read_only": rest[1:] == ["ro"]}


def port_flag(text: str) -> Json:
    """Parse `[[IP:]HOST_PORT:]BOX_PORT[/tcp|/udp]`. Raises ArgumentTypeError."""
    match = _PORT.fullmatch(text)
    if not match:
        raise ArgumentTypeError(f"'{text}' is not [[IP:]HOST_PORT:]BOX_PORT[/tcp|/udp]")
    ports = {"guest_port": int(match["guest"]), "host_port": int(match["host"] or 0)}
    if not 1 <= ports["guest_port"] <= 65535 or ports["host_port"] > 65535:
        raise ArgumentTypeError(f"'{text}': ports are 1 to 65535")
    optional = {"host_ip": (match["ip"] or "").strip("[]"), "protocol": match["protocol"]}
    return {**{key: port for key, port in ports.items() if port}, **{k: v for k, v in optional.items() if v}}
