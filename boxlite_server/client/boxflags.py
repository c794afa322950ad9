"""The flags of `create` and `run` that say what a box is, and the body of `POST boxes` that they make."""

from __future__ import annotations

import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace

from . import flags
from .api import Json

# The networks that docker's users name.
NETWORKS = {"enabled": "enabled", "disabled": "disabled", "none": "disabled", "bridge": "enabled"}

_PORT = re.compile(
    r"(?:(?:(?P<ip>\[[0-9a-fA-F:]+\]|\d+(?:\.\d+){3}):)?(?P<host>\d*):)?(?P<guest>\d+)(?:/(?P<protocol>tcp|udp))?",
    re.ASCII,
)


def add_flags(parser: ArgumentParser) -> None:
    """Add the flags, the image and the command to the parser of `create` or `run`."""
    flags.add_process(parser)
    parser.add_argument("--name", help="name the box (default: no name)")
    parser.add_argument("--entrypoint", metavar="EXEC", help="replace the image's entrypoint")
    add_size(parser)
    parser.add_argument(
        "--disk-size",
        type=flags.positive,
        metavar="GB",
        help="let the box write at most this much to its disk, in GB (default: no limit)",
    )
    _add_network(parser)
    add_labels(parser)
    _add_host_access(parser)
    add_lifetimes(parser)
    parser.add_argument(
        "--no-auto-resume",
        action="store_true",
        help="do not start the stopped box when a command is to run in it (default: start it)",
    )
    parser.add_argument(
        "--rootfs", action="store_true", help="take IMAGE as the path of a root file system on the worker's host"
    )
    parser.add_argument("image", metavar="IMAGE", help="the image's reference, such as alpine:latest")
    flags.add_command(parser, "replace the image's command by this one")


def add_size(parser: ArgumentParser, default: str | None = None) -> None:
    """`default`: what holds without the flags, here and below; None: what the server has for new boxes."""
    parser.add_argument(
        "--cpus", type=flags.positive, metavar="N", help=f"give the box N cpus ({_default(default, '1')})"
    )
    parser.add_argument(
        "-m",
        "--memory",
        type=flags.memory,
        metavar="SIZE",
        help=f"give the box this much memory: 512m, 2g, or a number of MiB ({_default(default, '512')})",
    )


def add_labels(parser: ArgumentParser) -> None:
    parser.add_argument(
        "-l",
        "--label",
        action=flags.Pairs,
        metavar="KEY[=VALUE]",
        help="attach this label to the box (repeatable)",
    )


def add_lifetimes(parser: ArgumentParser, default: str | None = None) -> None:
    never = _default(default, "never")
    parser.add_argument(
        "--auto-stop",
        type=flags.duration,
        metavar="DURATION",
        help=f"stop the box when it is idle for this long: seconds, or 30s, 15m, 2h, 7d ({never})",
    )
    parser.add_argument(
        "--auto-delete",
        type=flags.duration,
        metavar="DURATION",
        help=f"remove the box this long after it stops: seconds, or 30s, 15m, 2h, 7d ({never})",
    )


def _default(given: str | None, of_server: str) -> str:
    return f"default: {given}" if given else f"server default: {of_server}"


def _add_network(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--network",
        "--net",
        choices=tuple(NETWORKS),
        metavar="MODE",
        help="give the box a network, or none: enabled or bridge, disabled or none "
        "(default: enabled, but disabled with --security maximum)",
    )
    parser.add_argument(
        "--allow-net", action="append", metavar="HOST", help="let the box reach this host and no other (repeatable)"
    )
    parser.add_argument("--inbound", choices=("enabled", "disabled"), help="let others reach services in the box")


def _add_host_access(parser: ArgumentParser) -> None:
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


def create_body(args: Namespace) -> Json:
    """The body of `POST boxes` for the flags that `create` and `run` share. Absent flags are left out. Raises
    InvalidArgumentError for an --env-file that cannot be used."""
    capabilities = {"add": args.cap_add, "drop": args.cap_drop}
    capabilities = {key: names for key, names in capabilities.items() if names}
    optional = {
        "name": args.name,
        "cpus": args.cpus,
        "memory_mib": args.memory,
        "disk_size_gb": args.disk_size,
        "working_dir": args.workdir,
        "env": flags.environment(args),
        "entrypoint": [args.entrypoint] if args.entrypoint is not None else None,
        "cmd": flags.command(args),
        "user": args.user,
        "labels": dict(args.label),
        "volumes": args.volume,
        "ports": args.publish,
        "advanced": {"capabilities": capabilities} if capabilities else {},
        "security": args.security,
        "auto_stop": args.auto_stop,
        "auto_delete": args.auto_delete,
        "auto_resume": False if args.no_auto_resume else None,
    }
    source = "rootfs_path" if args.rootfs else "image"
    body: Json = {source: args.image, "network": _network(args), "detach": args.detach}
    return body | {key: value for key, value in optional.items() if value not in (None, {}, [])}


def _network(args: Namespace) -> Json:
    default = "disabled" if args.security == "maximum" else "enabled"
    outbound: Json = {"mode": NETWORKS[args.network] if args.network else default}
    if args.allow_net:
        outbound["allow_net"] = args.allow_net
    return {"outbound": outbound, "inbound": {"mode": args.inbound}} if args.inbound else outbound


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
