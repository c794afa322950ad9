"""What containers use, from the engine's statistics."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple

from ..kernel.cgroup import Cgroup
from ..runtime import BootTiming, BoxRef, Usage
from .engine import Engine, engine_errors

SAMPLE_SECONDS = 1.0  # between two samples of a box


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
