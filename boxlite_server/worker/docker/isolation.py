"""A box's preset in the engine's terms, and whether the engine can give it."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import InvalidArgumentError, UnsupportedError
from ..host_access import Policy
from ..kernel import cgroup
from ..presets import ISOLATION, Preset, filters_system_calls
from ..runtime import BoxSpec
from .engine import Engine, engine_errors

_ASK_AGAIN = 60.0  # seconds after which the engine may have been started with other options

# The weight of a box's cpu against those of its siblings: an eighth of what the engine gives to any container.
CPU_SHARES = 128
# The same for access to disks, in the engine's scale. Of the kernel's, where groups weigh 100, it makes 11 as well.
_IO_WEIGHT = 11
_OOM_SCORE = 1000  # when the host's own memory ends, the kernel kills what has the highest first

# What a box with a read-only root file system can write in besides its volumes. Its size counts as memory of the box.
_WRITABLE = {
    "/tmp": "rw,exec,nosuid,nodev,mode=1777",
    "/var/tmp": "rw,exec,nosuid,nodev,mode=1777",
    "/run": "rw,noexec,nosuid,nodev,mode=755",
}


def isolation_config(spec: BoxSpec) -> dict[str, Any]:
    """The part of a container's configuration (`HostConfig`) that isolates the box. `spec` was admitted."""
    isolation = ISOLATION[Preset(spec.security or Preset.STANDARD)]
    config: dict[str, Any] = {"PidsLimit": isolation.processes, **_capabilities(spec, isolation.capabilities)}
    # Without a capability that a box does not have, its ports below 1024 would be closed to it.
    # Where the host has too little for all, the engine and the worker come before boxes.
    config["OomScoreAdj"] = _OOM_SCORE
    config["Sysctls"] = {"net.ipv4.ip_unprivileged_port_start": "0"}
    if not isolation.new_privileges:
        config["SecurityOpt"] = ["no-new-privileges"]
    limits = {"nofile": isolation.open_files, "core": None if isolation.core_dumps else 0}
    config["Ulimits"] = [
        {"Name": name, "Soft": limit, "Hard": limit} for name, limit in limits.items() if limit is not None
    ]
    if isolation.read_only:
        mounted = {mount.guest_path for mount in spec.mounts}
        size = f",size={spec.memory_mib // 2}m" if spec.memory_mib else ""
        config["ReadonlyRootfs"] = True
        config["Tmpfs"] = {path: options + size for path, options in _WRITABLE.items() if path not in mounted}
    return config


def _capabilities(spec: BoxSpec, given: frozenset[str]) -> dict[str, list[str]]:
    if "ALL" in spec.cap_add:
        return {"CapAdd": ["ALL"], "CapDrop": [name for name in spec.cap_drop if name != "ALL"]}
    kept = set() if "ALL" in spec.cap_drop else set(given)
    return {"CapAdd": sorted(kept.union(spec.cap_add).difference(spec.cap_drop)), "CapDrop": ["ALL"]}


class Isolator:
    """Gives containers the isolation of their boxes, as far as that takes more than a configuration."""

    def __init__(self, engine: Engine, policy: Policy, cgroups: Path = cgroup.ROOT) -> None:
        """`cgroups`: where the host's control groups are."""
        self._cgroups = cgroups
        self._engine = engine
        self._policy = policy
        self._lock = threading.Lock()
        self._told: Mapping[str, Any] = {}  # what the engine says of itself
        self._told_at = -_ASK_AGAIN

    def admit(self, spec: BoxSpec) -> None:
        """Raise `UnsupportedError` for an admitted spec whose isolation this engine cannot give, and
        `InvalidArgumentError` for more cpus than it has, which it would refuse only as a number of cpus."""
        self.check_cpus(spec.cpus)
        info = self._info()
        runtime = self._policy.runtime
        if runtime and runtime not in (info.get("Runtimes") or {}):
            raise UnsupportedError(
                f"this worker's engine has no runtime {runtime!r}, which its operator wants for boxes"
            )
        if spec.security == Preset.DEVELOPMENT or self._policy.has_other_runtime:
            return  # other runtimes keep system calls from the host's kernel by means of their own
        if not filters_system_calls(info.get("SecurityOptions") or ()):
            raise UnsupportedError(
                f"the security preset {spec.security} is not supported by this worker: its engine runs containers "
                "without a seccomp profile"
            )

    def check_cpus(self, cpus: int) -> None:
        """Raise `InvalidArgumentError` for more cpus than the engine has."""
        if cpus > (has := int(self._info().get("NCPU") or cpus)):
            raise InvalidArgumentError(f"this worker's engine has {has} cpus, and the box is to have {cpus}")

    def apply(self, config: dict[str, Any]) -> None:
        """Add the runtime that the operator wants, and the weight of the box for access to disks where that can be."""
        if self._policy.runtime:
            config["HostConfig"]["Runtime"] = self._policy.runtime
        if not self._policy.has_other_runtime and self._weighs_io():
            config["HostConfig"]["BlkioWeight"] = _IO_WEIGHT

    def _weighs_io(self) -> bool:
        info = self._info()
        warned = any("io.weight" in text or "blkio weight" in text for text in info.get("Warnings") or ())
        return not warned and cgroup.weighs_io(str(info.get("CgroupVersion") or "1"), self._cgroups)

    def _info(self) -> Mapping[str, Any]:
        with self._lock:
            if time.monotonic() - self._told_at >= _ASK_AGAIN:
                with engine_errors("cannot ask the engine for its security options"):
                    self._told, self._told_at = self._engine.api.info(), time.monotonic()
            return self._told
