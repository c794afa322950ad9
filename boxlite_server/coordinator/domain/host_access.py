"""Checks what a client asks of the host for a box: mounts, published ports, Linux capabilities.

The worker knows what its operator allows and refuses the rest; here is checked what does not depend on that.
"""

from __future__ import annotations

import ipaddress
import posixpath
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ... import errors
from ..._gen import worker_pb2 as pb

DEFAULT_HOST_IP = "127.0.0.1"  # the services of a box are public only when the client says so

_CAPABILITY = re.compile(r"[A-Z]+(_[A-Z]+)*")
_KERNELS_OWN = ("/proc", "/sys")


def mounts(asked: Iterable[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """The `volumes` of a CreateBoxRequest, as `volume` (id or name) or `host_path`, `guest_path`, `read_only`."""
    found: list[dict[str, Any]] = []
    for mount in asked or []:
        volume, host_path = mount.get("managed_volume"), mount.get("host_path")
        if bool(volume) == bool(host_path):
            raise errors.InvalidArgumentError("volumes: give exactly one of 'managed_volume' and 'host_path'")
        if host_path and not host_path.startswith("/"):
            raise errors.InvalidArgumentError(f"volumes: host_path '{host_path}' has to be absolute")
        guest_path = _guest_path(mount["guest_path"])
        if guest_path in [other["guest_path"] for other in found]:
            raise errors.InvalidArgumentError(f"volumes: two of them at guest_path '{guest_path}'")
        found.append(
            {
                "volume": volume or None,
                "host_path": host_path or None,
                "guest_path": guest_path,
                "read_only": bool(mount.get("read_only")),
            }
        )
    return found


def _guest_path(path: str) -> str:
    if not path.startswith("/") or ".." in path.split("/"):
        raise errors.InvalidArgumentError(f"volumes: guest_path '{path}' has to be absolute and without '..'")
    normal = "/" + posixpath.normpath(path).strip("/")
    if normal == "/":
        raise errors.InvalidArgumentError("volumes: guest_path '/' would hide the whole box")
    if normal.startswith(tuple(f"{own}/" for own in _KERNELS_OWN)) or normal in _KERNELS_OWN:
        raise errors.InvalidArgumentError(f"volumes: guest_path '{path}' is the kernel's")
    return normal


def ports(asked: Iterable[Mapping[str, Any]] | None, *, network: str) -> list[dict[str, Any]]:
    """The `ports` of a CreateBoxRequest with the defaults filled in; host port 0 means any free one."""
    found: list[dict[str, Any]] = []
    for port in asked or []:
        full = {
            "guest_port": port["guest_port"],
            "host_port": port.get("host_port") or 0,
            "protocol": port.get("protocol") or "tcp",
            "host_ip": _host_ip(port.get("host_ip")),
        }
        if full["host_port"] and any(_same_place(full, other) for other in found):
            raise errors.InvalidArgumentError(f"ports: host port {full['host_port']}/{full['protocol']} is given twice")
        found.append(full)
    if found and network == "disabled":
        raise errors.InvalidArgumentError("ports: a box with its network disabled cannot publish any")
    return found


def _same_place(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one[key] == other[key] for key in ("host_port", "protocol", "host_ip"))


def _host_ip(text: str | None) -> str:
    try:
        return str(ipaddress.ip_address(text or DEFAULT_HOST_IP))
    except ValueError:
        raise errors.InvalidArgumentError(f"ports: host_ip '{text}' is no IP address") from None


def capabilities(names: Iterable[str] | None) -> list[str]:
    """Linux capabilities in the engine's form: upper case, without CAP_, each once."""
    found = []
    for name in names or []:
        plain = name.upper().removeprefix("CAP_")
        if not _CAPABILITY.fullmatch(plain):
            raise errors.InvalidArgumentError(f"'{name}' is no Linux capability; one is called like NET_ADMIN")
        found.append(plain)
    return list(dict.fromkeys(found))


def as_request(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a spec that a CreateBoxRequest calls by other names. Mounts are left out: their data is not the
    box's."""
    return {"advanced": {"capabilities": {"add": spec.get("cap_add", []), "drop": spec.get("cap_drop", [])}}}


def depends_on_operator(spec: Mapping[str, Any]) -> bool:
    """Whether the operator of one worker may refuse the spec while that of another one allows it."""
    return bool(spec["cap_add"]) or any(mount["host_path"] for mount in spec["mounts"])


def to_proto(spec: Mapping[str, Any], message: pb.BoxSpec) -> None:
    """Add the mounts, ports and capabilities of a spec to the worker's message. Old specs lack these keys."""
    for mount in spec.get("mounts", []):
        message.mounts.add(
            volume_id=mount.get("volume_id") or "",
            host_path=mount["host_path"] or "",
            guest_path=mount["guest_path"],
            read_only=mount["read_only"],
        )
    for port in spec.get("ports", []):
        message.ports.add(**port)
    message.cap_add.extend(spec.get("cap_add", []))
    message.cap_drop.extend(spec.get("cap_drop", []))


def published(state: pb.Box, worker_host: str) -> list[dict[str, Any]]:
    """The ports that a worker has published, with the address at which each can be reached."""
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
