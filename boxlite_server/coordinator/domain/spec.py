"""What a client asks for when it creates a box: defaults filled in, and every known field honoured or refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ... import errors
from ..._gen import worker_pb2 as pb
from ..limits import Policy
from . import host_access

DEFAULT_IMAGE = "alpine:latest"
DEFAULT_CPUS = 1
DEFAULT_MEMORY_MIB = 512
DEFAULT_SECURITY = "standard"  # the one preset
MAX_TIMEOUT_SECONDS = 604_800  # of a command; the schema enforces it

# Fields of the contract that this server cannot honour yet, with the values that ask for nothing.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "rootfs_path": (None, ""),
    "disk_size_gb": (None,),
    "secrets": (None, []),
    "security": (None, DEFAULT_SECURITY),
}


def normalise(request: Mapping[str, Any], policy: Policy) -> dict[str, Any]:
    """The full spec of a box from a CreateBoxRequest that fits the schema.

    Raises UnsupportedError for a known field that would have to be dropped, and InvalidArgumentError for
    fields that contradict each other.
    """
    for field, harmless in _REFUSED.items():
        if request.get(field) not in harmless:
            raise errors.UnsupportedError(f"'{field}' is not supported by this server; leave it out")
    network = _network_mode(request.get("network"))
    capabilities = (request.get("advanced") or {}).get("capabilities") or {}
    return {
        "name": request.get("name"),
        "image": request.get("image") or DEFAULT_IMAGE,
        "cpus": request.get("cpus") or DEFAULT_CPUS,
        "memory_mib": request.get("memory_mib") or DEFAULT_MEMORY_MIB,
        "env": checked_env(request.get("env")),
        "working_dir": request.get("working_dir") or "",
        "entrypoint": request.get("entrypoint") or [],
        "cmd": request.get("cmd") or [],
        "user": request.get("user") or "",
        "network": network,
        "tty": bool(request.get("tty")),
        "mounts": host_access.mounts(request.get("volumes")),
        "ports": host_access.ports(request.get("ports"), network=network),
        "cap_add": host_access.capabilities(capabilities.get("add")),
        "cap_drop": host_access.capabilities(capabilities.get("drop")),
        "labels": request.get("labels") or {},
        "detach": request.get("detach") is not False,
        "auto_remove": bool(request.get("auto_remove")),
        "auto_stop": _either(request, "auto_stop", "auto_pause", policy.default_auto_stop),
        "auto_delete": _either(request, "auto_delete", None, policy.default_auto_delete),
        "auto_resume": request.get("auto_resume") is not False,
    }


def _either(request: Mapping[str, Any], name: str, other_name: str | None, default: int) -> int:
    """A field that may have a second name; 0 is a value like any other, only null means the default."""
    given = {key: request[key] for key in (name, other_name) if key and request.get(key) is not None}
    if len(set(given.values())) > 1:
        raise errors.InvalidArgumentError(f"'{name}' and '{other_name}' are one setting; give one of them")
    return next(iter(given.values()), default)


def checked_env(env: Mapping[str, str] | None) -> dict[str, str]:
    """Environment variables whose names can be ones; a schema cannot say that of the keys of a map."""
    for name in env or {}:
        if not name or "=" in name or "\0" in name:
            raise errors.InvalidArgumentError(f"env: {name!r} cannot be the name of an environment variable")
    return dict(env or {})


def _network_mode(network: Any) -> str:
    """``enabled`` or ``disabled``, from any of the three shapes that clients send.

    An inbound policy is accepted as it is: nothing reaches a box from outside before a tunnel is asked for,
    and that request has its own answer.
    """
    if network is None:
        return "enabled"
    if isinstance(network, str):
        return network
    if network.get("outbound") and (network.get("mode") or network.get("allow_net")):
        raise errors.InvalidArgumentError("network: give either 'outbound' or the older 'mode' and 'allow_net'")
    outbound = network.get("outbound") or network
    if outbound.get("allow_net"):
        raise errors.UnsupportedError("'allow_net' is not supported by this server; leave it out")
    return str(outbound.get("mode") or "enabled")


def is_same(spec: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two full specs ask for the same, whether or not the ids of their volumes are known already."""
    return {**spec, "mounts": _without_ids(spec)} == {**other, "mounts": _without_ids(other)}


def _without_ids(spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{key: value for key, value in mount.items() if key != "volume_id"} for mount in spec.get("mounts", [])]


def to_proto(spec: Mapping[str, Any], box_id: str) -> pb.BoxSpec:
    """The spec as its worker gets it."""
    message = pb.BoxSpec(
        image=spec["image"],
        cpus=spec["cpus"],
        memory_mib=spec["memory_mib"],
        env=spec["env"],
        working_dir=spec["working_dir"],
        entrypoint=spec["entrypoint"],
        cmd=spec["cmd"],
        user=spec["user"],
        network_enabled=spec["network"] == "enabled",
        tty=spec["tty"],
        hostname=_hostname(spec["name"] or box_id),
    )
    host_access.to_proto(spec, message)
    return message


def _hostname(name: str) -> str:
    """A name as a host name: what is not allowed there becomes a hyphen, at most 63 characters."""
    return "".join(c if c.isalnum() or c == "-" else "-" for c in name)[:63].strip("-") or "box"
