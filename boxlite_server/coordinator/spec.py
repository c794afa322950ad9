"""The spec of a box: what its client asked for, with every default filled in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from .. import errors
from .._gen import worker_pb2 as pb
from . import host_access
from .host_access import Mount, Port
from .limits import Policy

DEFAULT_IMAGE = "alpine:latest"
DEFAULT_CPUS = 1
DEFAULT_MEMORY_MIB = 512
DEFAULT_SECURITY = "standard"
SECURITY_PRESETS = ("development", DEFAULT_SECURITY, "maximum")  # the schema enforces it
MAX_TIMEOUT_SECONDS = 604_800  # of a command; the schema enforces it
MAX_DISK_SIZE_GB = 65_536  # the schema enforces it
MAX_CPUS = 255  # of a box; the schema enforces it
MAX_MEMORY_MIB = 1_048_576  # of a box; the schema enforces it

# Fields of a CreateBoxRequest that this server cannot honour yet, with the values that ask for nothing.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "rootfs_path": (None, ""),
    "secrets": (None, []),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What a client asked for when it created a box. An empty `working_dir`, `entrypoint`, `cmd` or `user` means: as
    the image has it."""

    name: str | None = None
    image: str = DEFAULT_IMAGE
    cpus: int = DEFAULT_CPUS
    memory_mib: int = DEFAULT_MEMORY_MIB
    disk_size_gb: int | None = None  # None: no limit
    env: Mapping[str, str] = field(default_factory=dict)
    working_dir: str = ""
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    user: str = ""
    network: str = "enabled"  # or disabled
    security: str = ""  # the preset of isolation; empty: the default, or more where the worker's operator wants it
    tty: bool = False
    mounts: tuple[Mount, ...] = ()
    ports: tuple[Port, ...] = ()
    cap_add: tuple[str, ...] = ()  # upper case, without CAP_
    cap_drop: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    detach: bool = True
    auto_remove: bool = False
    auto_stop: int = 0  # seconds, 0 for never
    auto_delete: int = 0  # seconds, 0 for never
    auto_resume: bool = True
    # Fields that the version of the server that stored the spec did not know. `to_json` leaves them out.
    absent: frozenset[str] = field(default=frozenset(), compare=False, repr=False)

    @classmethod
    def of_request(cls, request: Mapping[str, Any], policy: Policy) -> Self:
        """The spec of a CreateBoxRequest that fits the schema. Every known field is honoured or refused.

        Raises UnsupportedError for a known field that would have to be ignored, and InvalidArgumentError for
        fields that contradict each other.
        """
        for name, harmless in _REFUSED.items():
            if request.get(name) not in harmless:
                raise errors.UnsupportedError(f"'{name}' is not supported by this server; leave it out")
        security = request.get("security") or DEFAULT_SECURITY
        network = _network_mode(request.get("network"), "disabled" if security == "maximum" else "enabled")
        capabilities = (request.get("advanced") or {}).get("capabilities") or {}
        return cls(
            name=request.get("name"),
            image=request.get("image") or DEFAULT_IMAGE,
            cpus=request.get("cpus") or DEFAULT_CPUS,
            memory_mib=request.get("memory_mib") or DEFAULT_MEMORY_MIB,
            disk_size_gb=request.get("disk_size_gb"),
            env=checked_env(request.get("env")),
            working_dir=request.get("working_dir") or "",
            entrypoint=tuple(request.get("entrypoint") or ()),
            cmd=_command(request.get("cmd")),
            user=request.get("user") or "",
            network=network,
            security="" if security == DEFAULT_SECURITY else security,
            tty=bool(request.get("tty")),
            mounts=host_access.mounts(request.get("volumes")),
            ports=host_access.ports(request.get("ports"), network=network),
            cap_add=host_access.capabilities(capabilities.get("add")),
            cap_drop=host_access.capabilities(capabilities.get("drop")),
            labels=request.get("labels") or {},
            detach=request.get("detach") is not False,
            auto_remove=bool(request.get("auto_remove")),
            auto_stop=_either(request, "auto_stop", "auto_pause", policy.default_auto_stop),
            auto_delete=_either(request, "auto_delete", None, policy.default_auto_delete),
            auto_resume=request.get("auto_resume") is not False,
        )

    @classmethod
    def of_json(cls, fields: Mapping[str, Any]) -> Self:
        """The spec that `to_json` wrote, in this version of the server or in an earlier one."""
        known = {name: fields[name] for name in _NAMES if name in fields}
        for name, make in _SEQUENCES.items():
            if items := known.get(name):
                known[name] = tuple(map(make, items))
            else:
                known.pop(name, None)
        return cls(**known, absent=_ALL_NAMES.difference(fields))

    def to_json(self) -> dict[str, Any]:
        """The spec as it is stored."""
        fields: dict[str, Any] = {}
        for name in _NAMES:
            value = getattr(self, name)
            if name in self.absent and value == getattr(_DEFAULT, name):
                continue
            if name in _SEQUENCES:
                value = [item if isinstance(item, str) else item.to_json() for item in value]
            fields[name] = value
        return fields

    def to_request(self) -> dict[str, Any]:
        """A CreateBoxRequest for the same box without its mounts: what they hold does not belong to the box."""
        capabilities = {"add": list(self.cap_add), "drop": list(self.cap_drop)}
        advanced = {"capabilities": capabilities}
        return {**self.to_json(), "security": self.security or DEFAULT_SECURITY, "advanced": advanced}

    def to_proto(self, box_id: str) -> pb.BoxSpec:
        """The spec as a worker gets it."""
        return pb.BoxSpec(
            image=self.image,
            cpus=self.cpus,
            memory_mib=self.memory_mib,
            disk_size_gb=self.disk_size_gb or 0,
            env=self.env,
            working_dir=self.working_dir,
            entrypoint=self.entrypoint,
            cmd=self.cmd,
            user=self.user,
            network_enabled=self.network == "enabled",
            tty=self.tty,
            hostname=_hostname(self.name or box_id),
            mounts=[
                pb.Mount(
                    volume_id=mount.volume_id or "",
                    host_path=mount.host_path or "",
                    guest_path=mount.guest_path,
                    read_only=mount.read_only,
                )
                for mount in self.mounts
            ],
            ports=[pb.PortMapping(**port.to_json()) for port in self.ports],
            cap_add=self.cap_add,
            cap_drop=self.cap_drop,
            security=self.security,
        )

    def is_same(self, other: Spec) -> bool:
        """Whether two specs ask for the same. Volumes that were looked up are compared by what the client wrote."""
        return self._as_asked() == other._as_asked()

    def _as_asked(self) -> Spec:
        return dataclasses.replace(self, mounts=tuple(mount._replace(volume_id=None) for mount in self.mounts))

    @property
    def depends_on_operator(self) -> bool:
        """Whether one worker may refuse what another worker allows."""
        return bool(self.cap_add or self.disk_size_gb or self.security) or any(mount.host_path for mount in self.mounts)


_NAMES = tuple(each.name for each in dataclasses.fields(Spec) if each.name != "absent")  # in the order of the JSON
_ALL_NAMES = frozenset(_NAMES)
_DEFAULT = Spec()
_SEQUENCES: dict[str, Callable[[Any], Any]] = {
    "entrypoint": str,
    "cmd": str,
    "mounts": Mount.of_json,
    "ports": Port.of_json,
    "cap_add": str,
    "cap_drop": str,
}


CHANGEABLE = (
    "name",
    "labels",
    "auto_remove",
    "auto_stop",
    "auto_delete",
    "auto_resume",
    "cpus",
    "memory_mib",
)
# What else a box is made of, by the names that requests and answers have for it.
_FIXED = _ALL_NAMES.difference(CHANGEABLE, ("mounts", "cap_add", "cap_drop")) | {
    "advanced",
    "box_id",
    "rootfs_path",
    "secrets",
    "start",
    "status",
    "volumes",
    "worker",
}


def changes(request: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a spec that an UpdateBoxRequest, which fits the schema, changes. A field that is null stays as it
    is.

    Raises UnsupportedError for a field that cannot be changed.
    """
    for name in _FIXED.intersection(request):
        raise errors.UnsupportedError(
            f"'{name}' of a box cannot be changed; what can be is {', '.join(CHANGEABLE)}. Leave it out"
        )
    given = {name: request[name] for name in CHANGEABLE if request.get(name) is not None}
    if request.get("auto_pause") is not None:
        given["auto_stop"] = _either(request, "auto_stop", "auto_pause", 0)
    return given


def _either(request: Mapping[str, Any], name: str, other_name: str | None, default: int) -> int:
    """A field that may have a second name. 0 is a value like any other; null or absence means the default."""
    given = {key: request[key] for key in (name, other_name) if key and request.get(key) is not None}
    if len(set(given.values())) > 1:
        raise errors.InvalidArgumentError(f"'{name}' and '{other_name}' are one setting; give one of them")
    return next(iter(given.values()), default)


def _command(words: Sequence[str] | None) -> tuple[str, ...]:
    """The main command. Upstream's own `boxlite run IMAGE -- COMMAND` sends the separator as the first word."""
    return tuple(words or ())[1 if words and words[0] == "--" else 0 :]


def checked_env(env: Mapping[str, str] | None) -> dict[str, str]:
    """Environment variables with valid names, which a schema cannot check for the keys of a map. Raises
    InvalidArgumentError."""
    for name in env or {}:
        if not name or "=" in name or "\0" in name:
            raise errors.InvalidArgumentError(f"env: {name!r} cannot be the name of an environment variable")
    return dict(env or {})


def _network_mode(network: Any, default: str) -> str:
    """``enabled`` or ``disabled``, from any of the three forms that clients send.

    An inbound policy is accepted and has no effect: nothing reaches a box from outside before a client asks for a
    tunnel, and the request for a tunnel has its own answer.
    """
    if network is None:
        return default
    if isinstance(network, str):
        return network
    if network.get("outbound") and (network.get("mode") or network.get("allow_net")):
        raise errors.InvalidArgumentError("network: give either 'outbound' or the older 'mode' and 'allow_net'")
    outbound = network.get("outbound") or network
    if outbound.get("allow_net"):
        raise errors.UnsupportedError("'allow_net' is not supported by this server; leave it out")
    return str(outbound.get("mode") or default)


def _hostname(name: str) -> str:
    """A name as a host name of at most 63 characters: other characters than letters, digits and hyphens become
    hyphens."""
    return "".join(c if c.isalnum() or c == "-" else "-" for c in name)[:63].strip("-") or "box"
