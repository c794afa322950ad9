"""What a container is made with, as the engine takes it: ports and mounts; and what it says of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ...errors import EngineError, InvalidArgumentError, InvalidStateError
from ..runtime import Mount, PortMapping
from .labels import volume_name

_TAKEN = re.compile(r"port is already allocated|address already in use", re.IGNORECASE)
_NO_ADDRESS = re.compile(r"cannot assign requested address", re.IGNORECASE)
_ADDRESS = re.compile(r"(?:Bind for|listen (?:tcp|udp)[46]?) (\S+?):? ")


def bindings(ports: Iterable[PortMapping]) -> dict[str, list[dict[str, str]]]:
    """As the engine takes them, by the port of the box."""
    wanted: dict[str, list[dict[str, str]]] = {}
    for port in ports:
        at = {"HostIp": port.host_ip, "HostPort": str(port.host_port or "")}
        wanted.setdefault(f"{port.guest_port}/{port.protocol}", []).append(at)
    return wanted


def published(container: dict[str, Any]) -> tuple[PortMapping, ...]:
    """The ports of a running container, with the real host ports."""
    found = []
    for key, places in ((container.get("NetworkSettings") or {}).get("Ports") or {}).items():
        guest_port, _, protocol = key.partition("/")
        found += [PortMapping(int(guest_port), int(at["HostPort"]), protocol, at["HostIp"]) for at in places or []]
    return tuple(sorted(found, key=lambda port: (port.guest_port, port.protocol, port.host_ip, port.host_port)))


@contextmanager
def port_errors(box_id: str) -> Iterator[None]:
    """The engine reports a port that it cannot have as a fault of its own."""
    try:
        yield
    except EngineError as exc:
        where = match[1] if (match := _ADDRESS.search(exc.message)) else "a port"
        if _TAKEN.search(exc.message):
            raise InvalidStateError(
                f"box {box_id} cannot be started: {where} is taken on the worker; free it and start again, "
                "or leave host_port out to get any free one"
            ) from exc
        if _NO_ADDRESS.search(exc.message):
            raise InvalidArgumentError(
                f"box {box_id} cannot be started: the worker has no such address: {where}"
            ) from exc
        raise


def engine_mounts(mounts: Iterable[Mount]) -> list[dict[str, Any]]:
    """As the engine takes them: unlike its older `Binds`, this form never makes a missing host path."""
    return [
        {
            "Type": "volume" if mount.volume_id else "bind",
            "Source": volume_name(mount.volume_id) if mount.volume_id else mount.host_path,
            "Target": mount.guest_path,
            "ReadOnly": mount.read_only,
        }
        for mount in mounts
    ]


def host_paths(container: dict[str, Any]) -> list[str]:
    """The paths of the host that a container mounts."""
    return _sources(container, "bind")


def writable_paths(listed: Iterable[dict[str, Any]]) -> set[str]:
    """The paths of the host that listed containers, whoever made them, can write in."""
    mounts = [mount for container in listed for mount in container["Mounts"]]
    return {mount["Source"] for mount in mounts if mount["Type"] == "bind" and mount["RW"]}


def volume_ids(container: dict[str, Any]) -> list[str]:
    """The volumes that a container mounts."""
    return [name.removeprefix(volume_name("")) for name in _sources(container, "volume")]


def _sources(container: dict[str, Any], kind: str) -> list[str]:
    return [mount["Source"] for mount in container["HostConfig"].get("Mounts") or [] if mount["Type"] == kind]
