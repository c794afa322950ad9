"""What the operator of a worker lets boxes have of the host."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import InvalidArgumentError, InvalidStateError, UnsupportedError
from .runtime import BoxSpec

# What a container gets anyway: asking for it changes nothing, unless ALL was dropped.
DEFAULT_CAPABILITIES = frozenset(
    "AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE NET_RAW SETFCAP SETGID SETPCAP "
    "SETUID SYS_CHROOT".split()
)

CAPABILITIES = DEFAULT_CAPABILITIES | frozenset(
    "ALL AUDIT_CONTROL AUDIT_READ BLOCK_SUSPEND BPF CHECKPOINT_RESTORE DAC_READ_SEARCH IPC_LOCK IPC_OWNER LEASE "
    "LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE NET_ADMIN NET_BROADCAST PERFMON SYS_ADMIN SYS_BOOT SYS_MODULE "
    "SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG SYSLOG WAKE_ALARM".split()
)


@dataclass(frozen=True)
class Policy:
    """`host_paths`: directories that boxes may mount from. `capabilities`: that they may add; ALL means any."""

    host_paths: tuple[Path, ...] = ()
    capabilities: frozenset[str] = frozenset()

    def admit(self, spec: BoxSpec) -> BoxSpec:
        """The spec with its host paths resolved.

        Raises `InvalidArgumentError` for a host path and `UnsupportedError` for a capability that are not
        allowed here, both with the flag that allows them; `UnsupportedError` for a capability that nobody knows.
        """
        self._check_capabilities(spec)
        return replace(
            spec,
            mounts=tuple(
                replace(mount, host_path=self.host_path(mount.host_path)) if mount.host_path else mount
                for mount in spec.mounts
            ),
        )

    def host_path(self, path: str) -> str:
        """The path with all symlinks resolved; raises `InvalidArgumentError` where that may not be mounted."""
        try:
            real = Path(os.path.realpath(path, strict=True))
        except (OSError, ValueError):
            real = None
        # One text for both: what exists outside of the allowed directories is nobody's business.
        if real is None or not any(real.is_relative_to(os.path.realpath(allowed)) for allowed in self.host_paths):
            allowed = ", ".join(map(str, self.host_paths)) or "none"
            raise InvalidArgumentError(
                f"volumes: host path '{path}' is not in a directory that this worker allows ({allowed}); "
                "its operator can allow one with --allow-host-path DIR"
            )
        return str(real)

    def recheck(self, host_paths: Iterable[str], writable: Collection[str]) -> None:
        """Paths that were resolved before must still be what they were, still be allowed, and stay so.

        `writable`: what running boxes mount and can write in. One of them could put a link in the place of a path
        below it after this look and before the engine's own. Raises `InvalidStateError` for such a path,
        `InvalidArgumentError` as `host_path` does.
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

    def _check_capabilities(self, spec: BoxSpec) -> None:
        for name in (*spec.cap_add, *spec.cap_drop):
            if name not in CAPABILITIES:
                raise UnsupportedError(f"{name} is no Linux capability that this worker knows")
        for name in spec.cap_add:
            if not self.capabilities & {name, "ALL"} and name not in DEFAULT_CAPABILITIES:
                raise UnsupportedError(
                    f"capability {name} is not allowed on this worker; its operator can allow it with "
                    f"--allow-cap {name}"
                )
