"""What containers use, from the engine's statistics and from their layers."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import threading
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import EngineError
from ...metrics import worker as metrics
from ..kernel.cgroup import Cgroup
from ..runtime import BootTiming, BoxRef, Usage
from .engine import Engine, engine_errors

SAMPLE_SECONDS = 1.0  # between two samples of a box
LAYER_SECONDS = 120.0  # for reading the layer of a box; enough for millions of files

log = logging.getLogger(__name__)


class _Sample(NamedTuple):
    started: datetime  # of the box's run; identifies it
    read: datetime  # when the engine took the sample
    cpu_ns: int  # used since the start
    usage: Usage
    taken: float  # by the worker's monotonic clock


class Meter:
    """Measures boxes. Remembers the last sample and how long the start took, which the next measurement needs.

    The engine would compute a percentage itself, but would take two samples for it, a second apart. Nor does it take
    samples more often than that, so a measurement within `SAMPLE_SECONDS` of the last sample returns that sample.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._samples: dict[str, _Sample] = {}  # by box id
        self._boots: dict[str, BootTiming] = {}  # by box id

    def booted(self, box: BoxRef, **stages: float) -> None:
        """Remember how many seconds stages of `BootTiming` took."""
        for stage, seconds in stages.items():
            metrics.BOX_SECONDS[stage].observe(seconds)
        milliseconds = {f"{stage}_ms": round(seconds * 1000) for stage, seconds in stages.items()}
        with self._lock:
            former = self._boots.get(box.box_id, BootTiming())
            self._boots[box.box_id] = replace(former, **milliseconds)

    def forget(self, box: BoxRef) -> None:
        with self._lock:
            self._boots.pop(box.box_id, None)
            self._samples.pop(box.box_id, None)

    def measure(self, box: BoxRef, container: dict[str, Any]) -> Usage:
        """The usage of the box. `container`: the engine's description of its container."""
        with self._lock:
            boot = self._boots.get(box.box_id, BootTiming())
            before = self._samples.get(box.box_id)
        if not container["State"]["Running"]:
            return Usage(boot=boot)
        started = _time(container["State"]["StartedAt"])
        if before is None or before.started != started:
            before = _Sample(started, started, 0, Usage(), -math.inf)
        if time.monotonic() - before.taken >= SAMPLE_SECONDS:
            before = self._sample(container, before)
            with self._lock:
                self._samples[box.box_id] = before
        return replace(before.usage, boot=boot)

    def _sample(self, container: dict[str, Any], before: _Sample) -> _Sample:
        with engine_errors("the box cannot be measured"):
            stats = self._engine.api.stats(container["Id"], decode=None, stream=False, one_shot=True)
        read = _time(stats["read"])
        cpu_ns = stats.get("cpu_stats", {}).get("cpu_usage", {}).get("total_usage", 0)
        seconds = (read - before.read).total_seconds()
        networks = (stats.get("networks") or {}).values()
        usage = Usage(
            cpu_percent=round(max(cpu_ns - before.cpu_ns, 0) / 1e7 / seconds, 2) if seconds > 0 else 0.0,
            memory_bytes=_memory(stats.get("memory_stats") or {}),
            network_bytes_sent=sum(network["tx_bytes"] for network in networks) if networks else None,
            network_bytes_received=sum(network["rx_bytes"] for network in networks) if networks else None,
            memory_limit_kills=Cgroup.of(container["State"]["Pid"]).kills(),
        )
        return _Sample(before.started, read, cpu_ns, usage, time.monotonic())


def _memory(stats: dict[str, Any]) -> int | None:
    """The bytes that the box uses, without files that the kernel only caches; None: the engine does not tell."""
    if "usage" not in stats:
        return None
    details = stats.get("stats") or {}
    cached = details.get("total_inactive_file", details.get("inactive_file", 0))
    return max(int(stats["usage"]) - int(cached), 0)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def layer_bytes(engine: Engine, container: dict[str, Any]) -> int:
    """How much a container has written to its own layer, in bytes.

    The whole layer is read: by `du` where this process can reach it, else by the engine, which counts the holes of
    sparse files too. Raises `EngineError` when neither tells, or takes longer than `LAYER_SECONDS`.
    """
    path = ((container.get("GraphDriver") or {}).get("Data") or {}).get("UpperDir")
    if path and (size := _du(path)) is not None:
        return size
    with engine_errors("the box's disk cannot be measured"):
        answer = engine.call("GET", f"/containers/{container['Id']}/json", {"size": "1"}, timeout=LAYER_SECONDS)
        return int(json.loads(answer.check().text).get("SizeRw") or 0)


def volume_bytes(container: dict[str, Any]) -> int:
    """How much is in the volumes that a container mounts, in bytes; 0 where this process cannot reach them. Raises
    `EngineError` as `layer_bytes` does."""
    paths = [mount["Source"] for mount in container.get("Mounts") or () if mount.get("Type") == "volume"]
    return sum(_du(path) or 0 for path in paths)


def _du(path: str) -> int | None:
    """How many bytes of the disk a directory takes; None if that cannot be told from here."""
    if os.geteuid() != 0 or not Path(path).is_dir():
        return None
    try:
        command = ["nice", "-n", "19", "du", "-skx", path]
        # Its exit code says only that files vanished while it counted.
        said = subprocess.run(command, capture_output=True, timeout=LAYER_SECONDS, check=False).stdout
        return int(said.split()[0]) * 1024
    except subprocess.TimeoutExpired as exc:
        raise EngineError(f"the box's disk cannot be measured within {LAYER_SECONDS:.0f} s") from exc
    except (OSError, ValueError, IndexError) as exc:
        log.info("du cannot measure %s: %r", path, exc)
        return None
