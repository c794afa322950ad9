"""Where a box goes: filters that say why not, and a score.

Pure functions over what the registry says is reserved, so that a placement counts at once and not only with
the next report. CPUs may be promised more often than they exist, because sandboxes mostly wait; memory may
not, because a host without memory kills.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from .. import errors
from .store import Load, Worker


class Need(NamedTuple):
    cpus: int
    memory_mib: int
    worker_id: str | None = None  # of the one worker that has the box's volumes


class Candidate(NamedTuple):
    worker: Worker
    load: Load
    reachable: bool


class Placement(NamedTuple):
    """Workers that can take the box, best first; and for each of the others why it cannot."""

    workers: list[Worker]
    refusals: dict[str, str]


def place(need: Need, candidates: list[Candidate]) -> Placement:
    """Order the candidates for a new box: the least loaded first, the name deciding between equals."""
    refusals = {c.worker.name: reason for c in candidates if (reason := refusal(need, c))}
    fitting = [c for c in candidates if c.worker.name not in refusals]
    fitting.sort(key=lambda c: (_load_after(need, c), c.load.boxes, c.worker.name))
    return Placement([c.worker for c in fitting], refusals)


def refusal(need: Need, candidate: Candidate) -> str | None:
    """Why this worker takes no new box of that size; None when it does."""
    worker, load, reachable = candidate
    if worker.status != "active":
        return f"is {worker.status}"
    if need.worker_id not in (None, worker.id):
        return "does not have its volumes"
    if not reachable:
        return "sends no heartbeat"
    if worker.max_boxes is not None and load.boxes >= worker.max_boxes:
        return f"holds {load.boxes} boxes, its limit"
    return no_room(need, candidate)


def no_room(need: Need, candidate: Candidate) -> str | None:
    """Why a box of that size cannot run there now; None when it can."""
    worker, load, _ = candidate
    if need.cpus > worker.cpus:
        return f"has {worker.cpus} cpus, the box needs {need.cpus}"
    free = worker.memory_mib - load.memory_mib
    if need.memory_mib > free:
        return f"has {max(free, 0)} MiB of memory free, the box needs {need.memory_mib}"
    return None


def not_placed(
    what: str, candidates: list[Candidate], reasons: Mapping[str, str], any_tried: bool
) -> errors.BoxliteError:
    """Why no worker takes it: for the client to read, and to raise."""
    if not candidates:
        return errors.UpstreamUnavailableError(
            "no worker is registered; start one with 'boxlite-server worker --coordinator URL'"
        )
    text = f"no worker can take the {what}: " + "; ".join(f"{name} {reason}" for name, reason in reasons.items())
    return errors.UpstreamUnavailableError(text) if any_tried else errors.ResourceExhaustedError(text)


def _load_after(need: Need, candidate: Candidate) -> float:
    """The scarcer of cpus and memory, as the share that would be reserved."""
    worker, load, _ = candidate
    return max(
        (load.cpus + need.cpus) / max(worker.cpus, 1),
        (load.memory_mib + need.memory_mib) / max(worker.memory_mib, 1),
    )
