"""The access to the host that a worker's operator allows to boxes: paths, capabilities, cpus, ports and registries, and
how well boxes are isolated."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import InvalidArgumentError, InvalidStateError, UnsupportedError
from .presets import ENGINE_CAPABILITIES, ISOLATION, Preset, resolve
from .runtime import BoxSpec

CAPABILITIES = ENGINE_CAPABILITIES | frozenset(
    "ALL AUDIT_CONTROL AUDIT_READ BLOCK_SUSPEND BPF CHECKPOINT_RESTORE DAC_READ_SEARCH IPC_LOCK IPC_OWNER LEASE "
    "LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE NET_ADMIN NET_BROADCAST PERFMON SYS_ADMIN SYS_BOOT SYS_MODULE "
    "SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG SYSLOG WAKE_ALARM".split()
)

_OF_KERNEL = ("/proc", "/sys", "/dev")


DEFAULT_PUBLISH_ADDRESS = "127.0.0.1"


@dataclass(frozen=True)
class Policy:
    """What boxes may have. `host_paths`: the directories that boxes may mount from. `capabilities`: the
    capabilities that boxes may add; ALL allows any. `cpus`: the cpus that boxes are pinned to; none: they may run on
    all. `publish_addresses`: the addresses of the host at which boxes may publish ports; `publish_ports`: the ports of
    the host that boxes may ask for, beside those that the engine picks. `registries`: those that images are pulled
    from, see `Registries`. `floor`: the weakest preset of isolation. `runtime`: the engine's runtime for boxes; empty:
    its default."""

    host_paths: tuple[Path, ...] = ()
    capabilities: frozenset[str] = frozenset()
    cpus: tuple[int, ...] = ()
    publish_addresses: tuple[str, ...] = (DEFAULT_PUBLISH_ADDRESS,)
    publish_ports: tuple[range, ...] = ()
    registries: tuple[str, ...] = ()
    floor: Preset = Preset.STANDARD
    runtime: str = ""

    @property
    def has_other_runtime(self) -> bool:
        """Whether boxes run under a runtime that is neither runc nor one like it."""
        return self.runtime not in ("", "runc", "crun")

    def admit(self, spec: BoxSpec) -> BoxSpec:
        """The spec with its host paths resolved, and with the preset that it gets.

        Raises `InvalidArgumentError` for a host path that is not allowed, and `UnsupportedError` for a capability, a
        preset, or a published port's address or number that is not allowed; these errors name the flag that allows it.
        Raises `UnsupportedError` for an unknown capability, and `InvalidArgumentError` for more cpus than boxes can be
        pinned to.
        """
        if self.cpus and spec.cpus > len(self.cpus):
            raise InvalidArgumentError(f"{spec.cpus} cpus: this worker has {len(self.cpus)} for boxes")
        preset = resolve(spec.security, self.floor)
        self._check_capabilities(spec, preset)
        self._check_ports(spec)
        return replace(
            spec,
            security=preset,
            mounts=tuple(
                replace(mount, host_path=self.host_path(mount.host_path)) if mount.host_path else mount
                for mount in spec.mounts
            ),
        )

    def host_path(self, path: str) -> str:
        """The path with all symlinks resolved. Raises `InvalidArgumentError` if that path may not be mounted."""
        try:
            real = Path(os.path.realpath(path, strict=True))
        except (OSError, ValueError):
            real = None
        # One text for both cases: the error must not tell which paths exist outside of the allowed directories.
        if real is None or not any(real.is_relative_to(os.path.realpath(allowed)) for allowed in self.host_paths):
            allowed = ", ".join(map(str, self.host_paths)) or "none"
            raise InvalidArgumentError(
                f"volumes: host path '{path}' is not in a directory that this worker allows ({allowed}); "
                "its operator can allow one with --allow-host-path DIR"
            )
        return str(real)

    def recheck(self, host_paths: Iterable[str], writable: Collection[str]) -> None:
        """Check that paths which were resolved before have not become links since and are still allowed.

        `writable`: the directories that running boxes mount and can write in. Such a box could replace a path
        below its directory by a link, between this check and the engine's mount. Raises `InvalidStateError` for a
        path below one of them, and `InvalidArgumentError` as `host_path` does.
        """
        for path in host_paths:
            for parent in writable:
                if path != parent and Path(path).is_relative_to(parent):
                    raise InvalidStateError(
                        f"volumes: host path '{path}' is inside of '{parent}', where another running box can write; "
                        "stop that box, or mount the same directory in both"
                    )
            if self.host_path(path) != path:
                raise InvalidArgumentError(
                    f"volumes: host path '{path}' has become a link to another place; make the box anew "
                    "(directories are allowed with --allow-host-path DIR)"
                )

    def check_host_paths(self, home: Path, sockets: Iterable[Path]) -> None:
        """Raise `InvalidArgumentError` if a box could reach the worker's home, a socket of the engine or the kernel's
        own files by a directory that boxes may mount from."""
        within = [Path(os.path.realpath(path)) for path in (home, *_OF_KERNEL)]
        for path in self.host_paths:
            real = Path(os.path.realpath(path))
            protected = [*within, *(Path(os.path.realpath(socket)) for socket in sockets)]
            for other in protected:
                if other.is_relative_to(real) or (other in within and real.is_relative_to(other)):
                    raise InvalidArgumentError(
                        f"--allow-host-path {path}: a box that mounts it could reach {other}, and so this host"
                    )

    def _check_capabilities(self, spec: BoxSpec, preset: Preset) -> None:
        for name in (*spec.cap_add, *spec.cap_drop):
            if name not in CAPABILITIES:
                raise UnsupportedError(f"{name} is no Linux capability that this worker knows")
        for name in spec.cap_add:
            if not self.capabilities & {name, "ALL"} and name not in ISOLATION[preset].capabilities:
                raise UnsupportedError(
                    f"capability {name} is not allowed on this worker; its operator can allow it with "
                    f"--allow-cap {name}"
                )

    def _check_ports(self, spec: BoxSpec) -> None:
        for port in spec.ports:
            if port.host_ip not in self.publish_addresses:
                raise UnsupportedError(
                    f"ports: boxes on this worker publish no ports at {port.host_ip} of its host; its operator can "
                    f"allow that with --publish-address {port.host_ip}"
                )
            if port.host_port and not any(port.host_port in ports for ports in self.publish_ports):
                raise UnsupportedError(
                    f"ports: boxes on this worker cannot have port {port.host_port} of its host; leave host_port out "
                    "for a free one, or its operator can allow some with --publish-ports FIRST-LAST"
                )
