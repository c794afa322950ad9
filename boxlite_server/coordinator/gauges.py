"""What a scrape reads of a coordinator: the state of the fleet, from the database, and of this process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import Metric

from .. import errors
from ..metrics.registry import counter_of, counters_of, gauge_of, gauges_of
from .core import Core
from .fleet.placement import Candidate
from .states import BoxStatus, WorkerStatus
from .store import Counters
from .tenants.authenticator import Refusal

_COUNTED = {  # by the field of `Counters`: the name of the metric, and what it counts
    "boxes_created": ("boxlite_boxes_created", "Boxes that were made."),
    "boxes_failed": ("boxlite_boxes_failed", "Boxes that could not be made."),
    "boxes_stopped": ("boxlite_boxes_stopped", "Times that a box stopped."),
    "commands_executed": ("boxlite_commands", "Commands that were started."),
    "exec_errors": ("boxlite_command_errors", "Commands that could not be started."),
    "warm_claims": ("boxlite_warm_claims", "Requests that got a warm box."),
    "warm_misses": ("boxlite_warm_misses", "Requests that got none, of a kind that is kept."),
    "warm_made": ("boxlite_warm_made", "Warm boxes that were made."),
    "warm_given_up": ("boxlite_warm_given_up", "Warm boxes that were removed to make room for others."),
}
_MIB = 2**20


async def read(core: Core) -> list[Metric]:
    """Read all of it. Where the database does not answer, what is in it is left out."""
    try:
        of_database = await _of_database(core)
    except errors.DatabaseError:
        of_database = []
    is_up = gauge_of("boxlite_database_up", "Whether the database answers.", float(bool(of_database)))
    return [is_up, *of_database, *_of_process(core)]


async def _of_database(core: Core) -> list[Metric]:
    status = await core.store.boxes_by_status()
    boxes = {state: status.get(state, 0) for state in BoxStatus if state is not BoxStatus.UNKNOWN}
    pools = await core.pools.ready()
    return [
        gauges_of("boxlite_boxes", "Boxes by the state that their rows have.", "state", boxes),
        gauge_of("boxlite_warm_boxes_wanted", "Warm boxes that pools ask for.", sum(w.pool.boxes for w, _ in pools)),
        gauge_of("boxlite_warm_boxes_ready", "Warm boxes that wait for a request.", sum(ready for _, ready in pools)),
        *_of_totals(await core.counting.totals()),
        *_of_workers(core, await core.fleet.candidates()),
    ]


def _of_totals(totals: Counters) -> Iterator[Metric]:
    for field, (name, documentation) in _COUNTED.items():
        yield counter_of(name, documentation, getattr(totals, field))


def _of_workers(core: Core, candidates: list[Candidate]) -> Iterator[Metric]:
    workers = [candidate.worker for candidate in candidates]
    states = Counter(core.fleet.status(worker) for worker in workers)
    yield gauges_of("boxlite_workers", "Workers by state.", "state", {state: states[state] for state in WorkerStatus})
    broken = sum(bool(worker.engine_error) for worker in workers)
    yield gauge_of("boxlite_workers_without_engine", "Workers that say that their engine does not answer.", broken)
    refused = sum(core.reconciler.orphans(worker.id).refused for worker in workers)
    yield gauge_of("boxlite_orphans_refused", "Orphans that their workers do not remove.", refused)
    usable = [c for c in candidates if c.reachable and c.worker.status == WorkerStatus.ACTIVE]
    cpus = sum(c.worker.cpu_limit or c.worker.cpus for c in usable)
    yield gauge_of("boxlite_cpus_offered", "Cpus that workers which take boxes may promise.", cpus)
    yield gauge_of(
        "boxlite_cpus_reserved", "Cpus that boxes there have been promised.", sum(c.load.cpus for c in usable)
    )
    memory, reserved = (sum(c.worker.memory_mib for c in usable), sum(c.load.memory_mib for c in usable))
    yield gauge_of("boxlite_memory_offered_bytes", "Memory of workers which take boxes.", memory * _MIB)
    yield gauge_of("boxlite_memory_reserved_bytes", "Memory that boxes there have been promised.", reserved * _MIB)


def _of_process(core: Core) -> Iterator[Metric]:
    refused = core.authenticator.refused
    yield counters_of(
        "boxlite_refused_requests",
        "Requests that were refused for their credential, by what is wrong with it.",
        "reason",
        {reason: refused[reason] for reason in Refusal},
    )
    yield gauge_of("boxlite_leases", "Leases that this coordinator holds.", core.leases.held)
    queues = {
        "audit": core.audit.unwritten,
        "counts": core.counting.unwritten,
        "reconcile": core.reconciler.under_way,
    }
    yield gauges_of("boxlite_queue_length", "What waits in this coordinator to be written or done.", "queue", queues)
