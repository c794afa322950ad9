"""The configuration of a container in the engine's terms: what it is made with, what it says of ports and mounts, and
what the engine says against it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from ... import references
from ...errors import EngineError, ExecutionError, InvalidArgumentError, InvalidStateError
from ..commands import DEFAULT_COLS, DEFAULT_ROWS, ExecSpec
from ..prepared import Main
from ..runtime import BoxRef, BoxSpec, Mount, Owner, PortMapping
from ..supervisor.links import MOUNT, PROGRAM_NAME
from .isolation import CPU_SHARES, isolation_config
from .labels import BOX_LABEL, GENERATION_LABEL, IMAGE_LABEL, base_tag, owner_labels, volume_name

MIB = 1024 * 1024
KEEP_ALIVE = ["tail", "-f", "/dev/null"]  # for an image that names no command of its own
# Programs that have to be process 1, or complain when they are not.
_INITS = frozenset(
    "catatonit dinit docker-init dumb-init finit init my_init openrc-init runit runit-init runsvinit s6-svscan "
    "systemd tini tini-static".split()
)
SUPERVISOR = f"{MOUNT}/{PROGRAM_NAME}"
_UNDER_SUPERVISOR = [SUPERVISOR, "--"]
AWAITING = [SUPERVISOR, "--wait"]

# Microseconds in which a box gets its share of the cpus. In the engine's own, five times as long, a box with many
# processes has all cpus of a small host for so long that others notice; in shorter ones a single process is held up.
_CPU_PERIOD = 20_000

_TOLD = "BoxliteTold"  # a key of the descriptions that `as_told` makes
_SPEC_REFUSALS = ("unable to find user", "unable to find group", "is not a directory", "cannot mkdir")
_TAKEN = re.compile(r"port is already allocated|address already in use", re.IGNORECASE)
_NO_ADDRESS = re.compile(r"cannot assign requested address", re.IGNORECASE)
_NO_COMMAND = re.compile(r'exec: ".*|executable file .*')
_ADDRESS = re.compile(r"(?:Bind for|listen (?:tcp|udp)[46]?) (\S+?):? ")


# ---- what a container is made with ----


def container_config(
    box: BoxRef,
    spec: BoxSpec,
    image: Mapping[str, Any],
    owner: Owner,
    directory: str = "",
    *,
    awaits_main: bool = False,
    network: str = "bridge",
) -> dict[str, Any]:
    """What the engine makes the box's container from. `image`: the engine's description of the base for the spec's
    image. `directory`: that of the box's supervisor, on the host; empty: it has none. `awaits_main`: the supervisor
    waits until it is told the main command, and what goes with that (`main_of`). `network`: the engine's network for a
    box that may have one."""
    defaults = image.get("Config") or {}
    command = list(spec.cmd)
    if not (spec.cmd or spec.entrypoint or defaults.get("Cmd") or defaults.get("Entrypoint")):
        command = KEEP_ALIVE
    config: dict[str, Any] = {
        "Hostname": spec.hostname or None,
        "ExposedPorts": {key: {} for key in bindings(spec.ports)},
        "User": spec.user or None,
        "Tty": spec.tty,
        # An open input keeps a box alive whose command is a shell. With `StdinOnce` the input ends when the
        # connection that feeds it ends; without, the engine would pass on no end of input at all.
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "Env": [f"{name}={value}" for name, value in spec.env.items()],
        "Cmd": command or None,
        "Image": base_tag(image) or spec.image,
        "NetworkDisabled": False,
        "Entrypoint": list(spec.entrypoint) or None,
        "WorkingDir": spec.working_dir or None,
        "StopSignal": spec.stop_signal or None,
        "Healthcheck": {"Test": ["NONE"]},  # nobody would read the results, and each check is a command in the box
        "HostConfig": _host_config(spec, _needs_init(spec, defaults), network),
        "Labels": _labels(box, spec, owner),
    }
    if directory:
        _add_supervisor(config, directory, command or list(defaults.get("Cmd") or ()))
    if awaits_main:
        config |= {"Entrypoint": AWAITING, "Cmd": [], "Env": [], "WorkingDir": None}
        config["HostConfig"]["Init"] = False
    return {key: value for key, value in config.items() if value is not None}


def _labels(box: BoxRef, spec: BoxSpec, owner: Owner) -> dict[str, str]:
    return {
        **owner_labels(owner),
        BOX_LABEL: box.box_id,
        GENERATION_LABEL: str(box.generation),
        IMAGE_LABEL: spec.image,
    }


def _add_supervisor(config: dict[str, Any], directory: str, command: list[str]) -> None:
    """Mount the supervisor's directory, and have the supervisor run the main command in place of the engine's init."""
    host = config["HostConfig"]
    host["Mounts"].append({"Type": "bind", "Source": directory, "Target": MOUNT, "ReadOnly": True})
    if host["Init"]:
        # An image's entrypoint is never run under an init, so this replaces none.
        own = config["Entrypoint"] or []
        config["Cmd"] = (config["Cmd"] if own else command) or None
        config["Entrypoint"] = [*_UNDER_SUPERVISOR, *own]
        host["Init"] = False


def main_of(spec: BoxSpec, image: Mapping[str, Any]) -> Main:
    """The main command of a box, and what goes with it, as the engine makes them of the spec and its image. `image`:
    the configuration in the engine's description."""
    entrypoint = spec.entrypoint or tuple(image.get("Entrypoint") or ())
    cmd = spec.cmd or (() if spec.entrypoint else tuple(image.get("Cmd") or ()))
    env = dict(pair.partition("=")[::2] for pair in image.get("Env") or ())
    return Main(
        entrypoint,
        cmd if entrypoint or cmd else tuple(KEEP_ALIVE),
        tuple(f"{name}={value}" for name, value in {**env, **spec.env}.items()),
        spec.working_dir or image.get("WorkingDir") or "",
        as_first=not _needs_init(spec, image),
    )


def image_of(main: Main) -> dict[str, Any]:
    """The configuration of an image that names this main command."""
    return {"Entrypoint": main.entrypoint, "Cmd": main.cmd, "Env": main.env, "WorkingDir": main.working_dir}


def made_of(spec: BoxSpec) -> str:
    """What of a spec an engine cannot change later, as text. The host name is left as it is."""
    image = str(references.parse(spec.image).tagged())
    return repr(replace(spec, image=image, env={}, working_dir="", entrypoint=(), cmd=(), hostname=""))


def _host_config(spec: BoxSpec, init: bool, network: str) -> dict[str, Any]:
    memory = {}
    if size := spec.memory_mib * MIB:
        # /dev/shm as Linux sizes it, half of the memory; the engine would give every box 64 MiB.
        memory = {"ShmSize": size // 2}
    return {
        **memory,
        **size_config(spec.cpus, spec.memory_mib),
        "NetworkMode": network if spec.network_enabled else "none",
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "2"}},
        "Init": init,
        "Mounts": engine_mounts(spec.mounts),
        "PortBindings": bindings(spec.ports),
        **isolation_config(spec),
        **({"ConsoleSize": [DEFAULT_ROWS, DEFAULT_COLS]} if spec.tty else {}),
    }


def size_config(cpus: int, memory_mib: int) -> dict[str, int]:
    """The part of a container's configuration (`HostConfig`) that can be changed later. 0 is no limit."""
    config = {"CpuShares": CPU_SHARES * (cpus or 1)}
    if cpus:
        config |= {"CpuPeriod": _CPU_PERIOD, "CpuQuota": cpus * _CPU_PERIOD}
    if memory_mib:
        config |= {"Memory": memory_mib * MIB, "MemorySwap": memory_mib * MIB}
    return config


def _needs_init(spec: BoxSpec, image: Mapping[str, Any]) -> bool:
    """Whether the main command runs under the engine's init process, which reaps orphans and passes signals on.

    It does not if the command is the entrypoint of the image, which may have to be process 1 itself, or a known init.
    """
    entrypoint = spec.entrypoint or image.get("Entrypoint") or ()
    command = [*entrypoint, *(spec.cmd or (not spec.entrypoint and image.get("Cmd")) or ())]
    if entrypoint and (spec.image_entrypoint or not spec.entrypoint):
        return False
    if command[1:2] == ["-c"]:  # a Dockerfile's `CMD /sbin/init` becomes `/bin/sh -c /sbin/init`
        command = " ".join(command[2:]).removeprefix("exec ").split()
    return not command or PurePosixPath(command[0]).name not in _INITS


def engine_mounts(mounts: Iterable[Mount]) -> list[dict[str, Any]]:
    """The mounts in the engine's form. Unlike its older `Binds`, this form never makes a missing host path."""
    return [
        {
            "Type": "volume" if mount.volume_id else "bind",
            "Source": volume_name(mount.volume_id) if mount.volume_id else mount.host_path,
            "Target": mount.guest_path,
            "ReadOnly": mount.read_only,
        }
        for mount in mounts
    ]


def bindings(ports: Iterable[PortMapping]) -> dict[str, list[dict[str, str]]]:
    """The ports in the engine's form: the host's addresses by the port of the box."""
    wanted: dict[str, list[dict[str, str]]] = {}
    for port in ports:
        at = {"HostIp": port.host_ip, "HostPort": str(port.host_port or "")}
        wanted.setdefault(f"{port.guest_port}/{port.protocol}", []).append(at)
    return wanted


# ---- what the engine says of a container ----


def has_directory(container: Mapping[str, Any]) -> bool:
    """Whether the directory of a supervisor is mounted into the container."""
    return any(mount["Target"] == MOUNT for mount in container["HostConfig"].get("Mounts") or ())


def is_supervised(container: Mapping[str, Any]) -> bool:
    """Whether a supervisor is the container's first process."""
    return has_directory(container) and (container["Config"]["Entrypoint"] or [])[:2] == _UNDER_SUPERVISOR


def as_told(container: Mapping[str, Any], main: Main) -> dict[str, Any]:
    """The engine's description of a container that awaits its main command, as if the engine had been told it."""
    entrypoint = [*([] if main.as_first else _UNDER_SUPERVISOR), *main.entrypoint]
    path, *args = [*entrypoint, *main.cmd]
    told = {"Entrypoint": entrypoint, "Cmd": [*main.cmd], "Env": [*main.env], "WorkingDir": main.working_dir}
    return {**container, "Config": {**container["Config"], **told}, "Path": path, "Args": args, _TOLD: True}


def was_told(container: Mapping[str, Any]) -> bool:
    """Whether the description is one of `as_told`: the engine itself knows nothing of the main command."""
    return _TOLD in container


def with_settings(spec: ExecSpec, container: Mapping[str, Any]) -> ExecSpec:
    """A command for the engine's exec, with what the engine does not know of the box."""
    if not was_told(container):
        return spec
    env = dict(pair.partition("=")[::2] for pair in container["Config"]["Env"])
    return replace(spec, env={**env, **spec.env}, working_dir=spec.working_dir or container["Config"]["WorkingDir"])


def own_entrypoint(container: Mapping[str, Any]) -> list[str]:
    """The entrypoint that the container was asked for, without the supervisor."""
    entrypoint = list(container["Config"]["Entrypoint"] or ())
    return entrypoint[2:] if is_supervised(container) else entrypoint


def own_command(container: Mapping[str, Any]) -> list[str]:
    """The container's main command and its arguments, without the supervisor."""
    command = [container["Path"], *container["Args"]]
    return command[2:] if is_supervised(container) else command


def published(container: Mapping[str, Any]) -> tuple[PortMapping, ...]:
    """The ports of a running container, with the real host ports."""
    found = []
    for key, places in ((container.get("NetworkSettings") or {}).get("Ports") or {}).items():
        guest_port, _, protocol = key.partition("/")
        found += [PortMapping(int(guest_port), int(at["HostPort"]), protocol, at["HostIp"]) for at in places or []]
    return tuple(sorted(found, key=lambda port: (port.guest_port, port.protocol, port.host_ip, port.host_port)))


def volume_ids(container: Mapping[str, Any]) -> list[str]:
    """The volumes that a container mounts."""
    return [name.removeprefix(volume_name("")) for name in _sources(container, "volume")]


def host_paths(container: Mapping[str, Any]) -> list[str]:
    """The paths of the host that a container was asked to mount."""
    return _sources(container, "bind")


def anonymous_volumes(container: Mapping[str, Any]) -> list[str]:
    """Where a container mounts volumes that it was not asked to mount."""
    named = _sources(container, "volume")
    mounted = [mount for mount in container["Mounts"] if mount["Type"] == "volume" and mount["Name"] not in named]
    return sorted(mount["Destination"] for mount in mounted)


def _sources(container: Mapping[str, Any], kind: str) -> list[str]:
    mounts = container["HostConfig"].get("Mounts") or []
    return [mount["Source"] for mount in mounts if mount["Type"] == kind and mount["Target"] != MOUNT]


def writable_paths(listed: Iterable[Mapping[str, Any]]) -> set[str]:
    """The paths of the host that listed containers, whoever made them, can write in."""
    mounts = [mount for container in listed for mount in container["Mounts"]]
    return {mount["Source"] for mount in mounts if mount["Type"] == "bind" and mount["RW"]}


# ---- what the engine says against a configuration ----


@contextmanager
def spec_errors() -> Iterator[None]:
    """Raise `InvalidArgumentError` for a bad user or working directory, which the engine reports as its own fault."""
    try:
        yield
    except EngineError as exc:
        if any(text in exc.message.lower() for text in _SPEC_REFUSALS):
            raise InvalidArgumentError(exc.message) from exc
        raise


@contextmanager
def command_errors(box_id: str) -> Iterator[None]:
    """Raise `ExecutionError` for a main command that the engine cannot execute as process 1."""
    try:
        yield
    except (EngineError, InvalidArgumentError) as exc:
        if match := _NO_COMMAND.search(exc.message):
            raise not_executed(box_id, match[0]) from exc
        raise


def not_executed(box_id: str, reason: str) -> ExecutionError:
    """The error of a start whose main command could not be executed."""
    missing = any(text in reason.lower() for text in ("not found", "no such file"))
    kind = "was not found in the box" if missing else "cannot be executed"
    return ExecutionError(f"the main command of box {box_id} {kind}: {reason}")


@contextmanager
def port_errors(box_id: str) -> Iterator[None]:
    """Raise `InvalidStateError` for a host port that is taken and `InvalidArgumentError` for an address that the host
    does not have; the engine reports both as its own fault."""
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
