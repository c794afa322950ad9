"""The limit of a box's disk, as far as the engine's storage enforces it; where it does not, a label tells the limit.

A limit counts what the box writes to its own layer, not its image, its volumes and the host's paths. On btrfs the
image counts too.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from .... import ids
from ....errors import BoxliteError, NotFoundError, UnsupportedError
from ...runtime import BoxSpec, DiskLimit
from ..engine import Engine, engine_errors, refusal
from ..labels import DISK_LIMIT_LABEL

GB = 1024**3
# Storage drivers that can honour `size`. Others refuse it, but not all: containerd's snapshotters, which carry some of
# the same names, accept it and do nothing.
_DRIVERS = ("overlay2", "btrfs", "zfs")
_EMPTY_TAR = bytes(1024)

log = logging.getLogger(__name__)


class Quota:
    """Limits the disks of containers. `enforce`: a box is refused where the engine does not enforce its limit.
    `gb`: bytes in a GB."""

    def __init__(self, engine: Engine, *, enforce: bool = False, gb: int = GB) -> None:
        self._engine = engine
        self._enforce = enforce
        self._gb = gb
        self._lock = threading.Lock()
        self._can: bool | None = None  # None: not asked yet

    @property
    def kind(self) -> DiskLimit:
        """What becomes of a limit here. Raises `EngineError` when the engine does not answer at the first use."""
        with self._lock:
            if self._can is None:
                self._can = self._has_quotas()
        if self._can:
            return DiskLimit.ENFORCED
        return DiskLimit.UNSUPPORTED if self._enforce else DiskLimit.WATCHED

    def admit(self, spec: BoxSpec) -> None:
        """Raise `UnsupportedError` for a box whose disk has to be limited and cannot be."""
        if spec.disk_size_gb and self.kind is DiskLimit.UNSUPPORTED:
            raise UnsupportedError(
                "'disk_size_gb' is not supported by this worker: its engine's storage has no quotas, and its operator "
                "wants limits enforced (--disk-limit enforce)"
            )

    def apply(self, config: dict[str, Any], spec: BoxSpec) -> None:
        """Add the limit of an admitted spec to the configuration of its container."""
        watched = ""  # set in any case: a container gets the labels of its image
        if spec.disk_size_gb:
            size = spec.disk_size_gb * self._gb
            if self.kind is DiskLimit.ENFORCED:
                config["HostConfig"]["StorageOpt"] = {"size": str(size)}
            else:
                watched = str(size)
        config["Labels"][DISK_LIMIT_LABEL] = watched

    def _has_quotas(self) -> bool:
        """Whether the engine makes a container of limited size. Only the attempt tells: of overlay2 it depends on
        the options with which its file system is mounted."""
        with engine_errors("cannot ask the engine for its storage"):
            info = self._engine.api.info()
        if info.get("Driver") not in _DRIVERS or _is_containerd(info):
            return False
        name = f"boxlite-probe-{ids.new_id().lower()}"
        config = {"Image": name, "Cmd": ["none"], "HostConfig": {"StorageOpt": {"size": str(GB)}}}
        try:
            with engine_errors("cannot probe the engine's storage"):
                self._engine.api.import_image_from_data(_EMPTY_TAR, repository=name, tag="latest")
                self._engine.api.create_container_from_config(config, name)
        except BoxliteError as exc:
            if refusal(exc.__cause__) is None:
                raise
            log.info("disks are not limited by the engine: %s", exc)
            return False
        finally:
            self._remove(name)
        return True

    def _remove(self, name: str) -> None:
        with suppress(BoxliteError), engine_errors("cannot remove the probe"):
            with suppress(NotFoundError), engine_errors("cannot remove the probe"):
                self._engine.api.remove_container(name, v=True, force=True)
            self._engine.api.remove_image(name)


def _is_containerd(info: Mapping[str, Any]) -> bool:
    return any("containerd" in str(value) for pair in info.get("DriverStatus") or () for value in pair)
