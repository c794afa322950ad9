"""What a box gets of its worker's host: mounts, published ports, Linux capabilities.

Requests are checked here as far as that needs no worker. Whether the host gives what is asked for is decided by the
worker, under its operator's policy.
"""

from __future__ import annotations

import ipaddress
import posixpath
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Self

from .. import errors
from .._gen import worker_pb2 as pb

DEFAULT_HOST_IP = "127.0.0.1"  # published ports can be reached from the host alone, unless the client asks for more

_CAPABILITY = re.compile(r"[A-Z]+(_[A-Z]+)*")
_OF_KERNEL = ("/proc", "/sys")


class Mount(NamedTuple):
    """A volume or a path of the host, at `guest_path`. Exactly one of `volume` and `host_path` is given."""

    volume: str | None  # id or name, as the client gave it
    host_path: str | None
    guest_path: str
    read_only: bool
    volume_id: str | None = None  # None: the volume has not been looked up, or there is none

    @classmethod
    def of_json(cls, fields: Mapping[str, Any]) -> Self:
        return cls(**{name: fields[name] for name in cls._fields if name in fields})

    def to_json(self) -> dict[str, Any]:
        fields = self._asdict()
        if self.volume_id is None:
            del fields["volume_id"]
        return fields


class Port(NamedTuple):
    """A port of the box, published at an address of the host. `host_port` 0: any free port."""

    guest_port: int
    host_port: int
    protocol: str  # tcp or udp
    host_ip: str

    @classmethod
    def of_json(cls, fields: Mapping[str, Any]) -> Self:
        return cls(**{name: fields[name] for name in cls._fields})

    def to_json(self) -> dict[str, Any]:
        return self._asdict()


def mounts(asked: Iterable[Mapping[str, Any]] | None) -> tuple[Mount, ...]:
    """The `volumes` of a CreateBoxRequest. Raises InvalidArgumentError."""
    found: list[Mount] = []
    for mount in asked or []:
        volume, host_path = mount.get("managed_volume"), mount.get("host_path")
        if bool(volume) == bool(host_path):
            raise errors.InvalidArgumentError("volumes: give exactly one of 'managed_volume' and 'host_path'")
        if host_path and not host_path.startswith("/"):
            raise errors.InvalidArgumentError(f"volumes: host_path '{host_path}' has to be absolute")
        guest_path = _guest_path(mount["guest_path"])
        if guest_path in [other.guest_path for other in found]:
            raise errors.InvalidArgumentError(f"volumes: guest_path '{guest_path}' is given twice")
        found.append(Mount(volume or None, host_path or None, guest_path, bool(mount.get("read_only"))))
    return tuple(found)


def _guest_path(path: str) -> str:
    if not path.startswith("/") or ".." in path.split("/"):
        raise errors.InvalidArgumentError(f"volumes: guest_path '{path}' has to be absolute and without '..'")
    normal = "/" + posixpath.normpath(path).strip("/")
    if normal == "/":
        raise errors.InvalidArgumentError("volumes: guest_path '/' would hide the whole box")
    if normal.startswith(tuple(f"{root}/" for root in _OF_KERNEL)) or normal in _OF_KERNEL:
        raise errors.InvalidArgumentError(f"volumes: guest_path '{path}' belongs to the kernel")
    return normal


def ports(asked: Iterable[Mapping[str, Any]] | None, *, network: str) -> tuple[Port, ...]:
    """The `ports` of a CreateBoxRequest with the defaults filled in. Raises InvalidArgumentError."""
    found: list[Port] = []
    for port in asked or []:
        full = Port(
            guest_port=port["guest_port"],
            host_port=port.get("host_port") or 0,
            protocol=port.get("protocol") or "tcp",
            host_ip=_host_ip(port.get("host_ip")),
        )
        if full.host_port and any(_same_place(full, other) for other in found):
            raise errors.InvalidArgumentError(f"ports: host port {full.host_port}/{full.protocol} is given twice")
        found.append(full)
    if found and network == "disabled":
        raise errors.InvalidArgumentError("ports: a box with its network disabled cannot publish any")
    return tuple(found)


def _same_place(one: Port, other: Port) -> bool:
    return one._replace(guest_port=0) == other._replace(guest_port=0)


def _host_ip(text: str | None) -> str:
    try:
        return str(ipaddress.ip_address(text or DEFAULT_HOST_IP))
    except ValueError:
        raise errors.InvalidArgumentError(f"ports: host_ip '{text}' is no IP address") from None


def capabilities(names: Iterable[str] | None) -> tuple[str, ...]:
    """Linux capabilities as the engine writes them: upper case, without CAP_, without repetition. Raises
    InvalidArgumentError."""
    found = []
    for name in names or []:
        plain = name.upper().removeprefix("CAP_")
        if not _CAPABILITY.fullmatch(plain):
            raise errors.InvalidArgumentError(f"'{name}' is no Linux capability; give a name like NET_ADMIN")
        found.append(plain)
    return tuple(dict.fromkeys(found))


def published(state: pb.Box, worker_host: str) -> list[dict[str, Any]]:
    """The ports that a worker reports as open, each with the `address` at which clients reach it."""
    return [
        {
            "guest_port": port.guest_port,
            "host_port": port.host_port,
            "protocol": port.protocol,
            "host_ip": port.host_ip,
            "address": _address(port, worker_host),
        }
        for port in state.ports
    ]


def _address(port: pb.PortMapping, worker_host: str) -> str:
    host = worker_host if ipaddress.ip_address(port.host_ip).is_unspecified else port.host_ip
    return f"[{host}]:{port.host_port}" if ":" in host else f"{host}:{port.host_port}"
