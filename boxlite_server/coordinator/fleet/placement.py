"""Chooses the worker for a box: filters, each of which says why it refuses a worker, and a score.

Pure functions over what the registry says is reserved, so that a placement counts at once and not only with the next
report. More CPUs may be promised than exist, because sandboxes mostly wait, but only as many as the worker's operator
allows. Memory may not be overcommitted, because a host without memory kills processes. A box that is stopped or
failed holds neither CPUs nor memory nor a place among a worker's `max_boxes`: it has to find room when it is started
again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple, Protocol

from ... import errors
from ...metrics import coordinator as metrics
from ..states import WorkerStatus
from ..store import Load, Worker


class Need(NamedTuple):
    """What a box, a volume or an image needs of a worker."""

    cpus: int
    memory_mib: int
    worker_id: str | None = None  # the one worker that has the box's volumes
    disk_limit: bool = False  # the box's disk has to be limited
    boxes: int = 1  # places among a worker's boxes; volumes and images take none


NOTHING = Need(0, 0, boxes=0)
DISK_LIMITS = ("enforced", "watched")  # what a worker that limits the disks of boxes says of that


class Candidate(NamedTuple):
    worker: Worker
    load: Load
    reachable: bool


class Filter(Protocol):
    """One reason for which a worker may be unable to take a box, a volume or an image."""

    public: str  # what tenants read of the workers that it has removed
    metric: str  # the reason as a label of metrics

    def lets_pass(self, need: Need, candidate: Candidate) -> bool: ...

    def tell(self, need: Need, removed: list[Candidate]) -> str:
        """What is wrong with the candidates that the filter has removed: ``lacks memory (needs 4096 MiB, has
        1024)``. The number is that of the candidate that came closest."""


class Placement(NamedTuple):
    """The workers that can take the box, best first, and the others by the filter that removed them."""

    workers: list[Worker]
    removed: dict[Filter, list[Candidate]]


class Holding:
    public = "without its volumes"
    metric = "volumes"

    def lets_pass(self, need: Need, candidate: Candidate) -> bool:
        return need.worker_id in (None, candidate.worker.id)

    def tell(self, need: Need, removed: list[Candidate]) -> str:
        return f"{_verb(removed, 'does', 'do')} not have its volumes"


class DiskLimit:
    public = "without a limit for the disk of a box (disk_size_gb)"
    metric = "disk_limit"

    def lets_pass(self, need: Need, candidate: Candidate) -> bool:
        return not need.disk_limit or candidate.worker.disk_limit in DISK_LIMITS

    def tell(self, need: Need, removed: list[Candidate]) -> str:
        return f"{_verb(removed, 'does', 'do')} not limit the disk of a box (disk_size_gb)"


class Active:
    public = "draining"
    metric = "draining"

    def lets_pass(self, need: Need, candidate: Candidate) -> bool:
        return candidate.worker.status == WorkerStatus.ACTIVE

    def tell(self, need: Need, removed: list[Candidate]) -> str:
        return "draining"


class Reachable:
    public = "unreachable"
    metric = "unreachable"

    def lets_pass(self, need: Need, candidate: Candidate) -> bool:
        return candidate.reachable

    def tell(self, need: Need, removed: list[Candidate]) -> str:
        return "unreachable"


class Places:
    public = "without a place"
    metric = "places"

    def lets_pass(self, need: Need, candidate: Candidate) -> bool:
        limit = candidate.worker.max_boxes
        return limit is None or candidate.load.boxes + need.boxes <= limit

    def tell(self, need: Need, removed: list[Candidate]) -> str:
        return (
            f"{_verb(removed, 'has', 'have')} no place (allows {max(c.worker.max_boxes or 0 for c in removed)} boxes)"
        )


class MachineCpus:
    """Refuses a box more cpus than the machine has, however many may be promised to all boxes together."""

    public = "too small for its cpus"
    metric = "machine_cpus"

    def lets_pass(self, need: Need, candidate: Candidate) -> bool:
        return need.cpus <= candidate.worker.cpus

    def tell(self, need: Need, removed: list[Candidate]) -> str:
        has = max(c.worker.cpus for c in removed)
        return f"{_verb(removed, 'is', 'are')} too small (needs {need.cpus} cpus, has {has})"


class PromisedCpus:
    public = "short of cpus"
    metric = "promised_cpus"

    def lets_pass(self, need: Need, candidate: Candidate) -> bool:
        limit = candidate.worker.cpu_limit
        return limit is None or candidate.load.cpus + need.cpus <= limit

    def tell(self, need: Need, removed: list[Candidate]) -> str:
        has = max((c.worker.cpu_limit or 0) - c.load.cpus for c in removed)
        return f"{_verb(removed, 'lacks', 'lack')} cpus (needs {need.cpus}, may promise {max(has, 0)})"


class Memory:
    public = "short of memory"
    metric = "memory"

    def lets_pass(self, need: Need, candidate: Candidate) -> bool:
        return need.memory_mib <= candidate.worker.memory_mib - candidate.load.memory_mib

    def tell(self, need: Need, removed: list[Candidate]) -> str:
        has = max(c.worker.memory_mib - c.load.memory_mib for c in removed)
        return f"{_verb(removed, 'lacks', 'lack')} memory (needs {need.memory_mib} MiB, has {max(has, 0)})"


ROOM: tuple[Filter, ...] = (Places(), MachineCpus(), PromisedCpus(), Memory())
_LASTING: tuple[Filter, ...] = (Holding(), DiskLimit())  # a worker that these remove will not do later either
FILTERS = (*_LASTING, Active(), Reachable(), *ROOM)  # the first that removes a worker tells why

_TOLD = 3  # how many failures a message spells out


def place(need: Need, candidates: Iterable[Candidate], last: Collection[str] = ()) -> Placement:
    """Filter the candidates for a new box and order them: the least loaded first, equals by name. `last`: ids of
    workers that come behind all others."""
    fitting: list[Candidate] = []
    removed: defaultdict[Filter, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        for test in FILTERS:
            if not test.lets_pass(need, candidate):
                removed[test].append(candidate)
                break
        else:
            fitting.append(candidate)
    fitting.sort(key=lambda c: (c.worker.id in last, _load_after(need, c), c.load.boxes, c.worker.name))
    return Placement([c.worker for c in fitting], dict(removed))


def choose(
    what: str,
    need: Need,
    candidates: Iterable[Candidate],
    failed: Mapping[str, errors.BoxliteError],
    last: Collection[str] = (),
) -> Worker:
    """The best of the candidates for `what`, see `place`. Raises the error of `not_placed` where there is none."""
    placement = place(need, candidates, last)
    metrics.PLACEMENTS[what, "placed" if placement.workers else "refused"].inc()
    if placement.workers:
        return placement.workers[0]
    reasons = [test.metric for test in placement.removed] + ["failed"] * bool(failed)
    for reason in reasons or ["no_worker"]:
        metrics.NOT_PLACED[reason].inc()
    raise not_placed(what, need, placement, failed)


def no_room(need: Need, candidate: Candidate) -> str | None:
    """Why the candidate has no room for a box of that size now; None when it has."""
    for test in ROOM:
        if not test.lets_pass(need, candidate):
            return test.tell(need, [candidate])
    return None


def not_placed(
    what: str, need: Need, placement: Placement, failed: Mapping[str, errors.BoxliteError]
) -> errors.BoxliteError:
    """The error to raise when no worker takes `what`; its text tells the client why. `failed`: by name of a worker
    that was asked in vain, what it said. The error is one of the image or of a full disk if the workers agree. Tenants
    read neither names nor numbers of workers."""
    removed = ((test, placement.removed[test]) for test in FILTERS if test in placement.removed)
    reasons = [f"{len(candidates)} {test.tell(need, candidates)}" for test, candidates in removed]
    if failed:
        told = [f"{name}: {error.message}" for name, error in failed.items()]
        told[_TOLD:] = ["..."] * (len(told) > _TOLD)
        reasons.append(f"{len(failed)} failed ({'; '.join(told)})")
    if not reasons:
        return errors.UpstreamUnavailableError(
            "no worker is registered; start one with 'boxlite-server worker --coordinator URL'"
        )
    public = [f"some are {test.public}" for test in FILTERS if test in placement.removed]
    public += dict.fromkeys(error.public for error in failed.values())
    return _kind(need, placement, failed)(
        f"no worker can take the {what}: {', '.join(reasons)}", f"no worker can take the {what}: {'; '.join(public)}"
    )


def _kind(need: Need, placement: Placement, failed: Mapping[str, errors.BoxliteError]) -> type[errors.BoxliteError]:
    said = failed.values()
    if said and all(isinstance(error, errors.ResourceExhaustedError) for error in said):
        return errors.ResourceExhaustedError
    if said and all(isinstance(error, errors.ResourceExhaustedError | errors.ImageError) for error in said):
        return errors.ImageError
    if need.disk_limit and not said and all(test in _LASTING for test in placement.removed):
        return errors.UnsupportedError
    return errors.UpstreamUnavailableError


def _verb(removed: list[Candidate], one: str, several: str) -> str:
    return one if len(removed) == 1 else several


def _load_after(need: Need, candidate: Candidate) -> float:
    """The scarcer of cpus and memory, as the share that would be reserved."""
    worker, load, _ = candidate
    return max(
        (load.cpus + need.cpus) / max(worker.cpus, 1),
        (load.memory_mib + need.memory_mib) / max(worker.memory_mib, 1),
    )
