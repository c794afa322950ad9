"""What containers use, from the engine's statistics."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import datetime
from typing import Any

from .docker_engine import Engine, engine_errors
from .runtime import BoxRef
from .usage import BootTiming, Usage


class Meter:
    """Remembers what a measurement needs from before: the last sample, and how long the start took.

    The engine would compute a percentage itself, but takes two samples for it, a second apart.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._samples: dict[str, tuple[datetime, int]] = {}  # by box id: when, and cpu time in ns
        self._boots: dict[str, BootTiming] = {}  # by box id

    def booted(self, box: BoxRef, **stages: float) -> None:
        """Note the seconds that stages of `BootTiming` took."""
        milliseconds = {f"{stage}_ms": round(seconds * 1000) for stage, seconds in stages.items()}
        with self._lock:
            former = self._boots.get(box.box_id, BootTiming())
            self._boots[box.box_id] = replace(former, **milliseconds)

    def forget(self, box: BoxRef) -> None:
        with self._lock:
            self._boots.pop(box.box_id, None)
            self._samples.pop(box.box_id, None)

    def measure(self, box: BoxRef, container: dict[str, Any]) -> Usage:
        """The usage of a container that the engine describes so."""
        with self._lock:
            boot = self._boots.get(box.box_id, BootTiming())
        if not container["State"]["Running"]:
            return Usage(boot=boot)
        with engine_errors(f"box {box.box_id} cannot be measured"):
            stats = self._engine.api.stats(container["Id"], decode=None, stream=False, one_shot=True)
        networks = (stats.get("networks") or {}).values()
        return Usage(
            cpu_percent=self._cpu_percent(box, container, stats),
            memory_bytes=_memory(stats.get("memory_stats") or {}),
            network_bytes_sent=sum(network["tx_bytes"] for network in networks) if networks else None,
            network_bytes_received=sum(network["rx_bytes"] for network in networks) if networks else None,
            boot=boot,
        )

    def _cpu_percent(self, box: BoxRef, container: dict[str, Any], stats: dict[str, Any]) -> float | None:
        used = stats.get("cpu_stats", {}).get("cpu_usage", {}).get("total_usage")
        if used is None:
            return None
        now, started = _time(stats["read"]), _time(container["State"]["StartedAt"])
        with self._lock:
            before, used_before = self._samples.get(box.box_id, (started, 0))
            self._samples[box.box_id] = now, used
        if before < started:  # of a former run
            before, used_before = started, 0
        seconds = (now - before).total_seconds()
        return round(max(used - used_before, 0) / 1e7 / seconds, 2) if seconds > 0 else 0.0


def _memory(stats: dict[str, Any]) -> int | None:
    """What the box holds, without files that the kernel only caches."""
    if "usage" not in stats:
        return None
    details = stats.get("stats") or {}
    cached = details.get("total_inactive_file", details.get("inactive_file", 0))
    return max(int(stats["usage"]) - int(cached), 0)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
