"""Counts and measures gRPC calls, at either end."""

from __future__ import annotations

from .registry import LONG, counters, histograms


class Calls:
    """The calls of one end. `name` begins the names of its metrics, `what` says which calls they are."""

    def __init__(self, name: str, what: str) -> None:
        self._ended = counters(f"{name}_calls", f"{what}, by what became of them.", "method", "code")
        self._seconds = histograms(f"{name}_duration_seconds", f"{what}: how long.", "method", buckets=LONG)

    def ended(self, method: str, code: str, seconds: float) -> None:
        """Note the end of a call. `code`: that of its error, "ok" or "cancelled"; `seconds`: it took."""
        self._ended[method, code].inc()
        self._seconds[method].observe(seconds)
