"""What a scrape reads of a worker: slots, bytes on its disk, starts that wait, and whether boxes get supervisors."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import Metric

from ...metrics.registry import gauge_of, gauges_of
from ..docker.runtime import DockerRuntime
from ..docker.supervised import SupervisorState
from ..executions.registry import Executions
from ..files.spool import Spool
from ..service.servicer import WorkerService
from ..shares import Shares


def read(
    runtime: DockerRuntime,
    executions: Executions,
    spool: Spool,
    service: WorkerService,
    is_registered: Callable[[], bool],
) -> Iterator[Metric]:
    """Read all of it. No call goes to the engine."""
    yield gauge_of("boxlite_worker_registered", "Whether a coordinator knows this process.", float(is_registered()))
    yield from _of_shares(
        ("boxlite_worker_slots_used", "What is under way, by kind."),
        ("boxlite_worker_slots", "How much of each kind may be under way at once."),
        "kind",
        {"executions": executions.slots, **service.slots},
    )
    yield from _of_shares(
        ("boxlite_worker_spool_bytes", "Bytes on the worker's disk: files on their way, and output that is kept."),
        ("boxlite_worker_spool_limit_bytes", "How many bytes of each there may be."),
        "content",
        {"transfers": spool.shares, **({"output": executions.logs.budget} if executions.logs.budget else {})},
    )
    starts = {"running": runtime.starts.inside, "waiting": runtime.starts.waiting}
    yield gauges_of("boxlite_worker_starts", "Boxes that are being made or started, or wait for that.", "state", starts)
    states = {state: float(state is runtime.supervisors.state) for state in SupervisorState}
    yield gauges_of("boxlite_worker_supervisors", "1 for what new boxes get of a supervisor.", "state", states)
    connected = runtime.supervisors.connected
    yield gauge_of("boxlite_worker_supervised_boxes", "Boxes whose supervisor is connected.", connected)


def _of_shares(
    taken: tuple[str, str], total: tuple[str, str], label: str, shares: dict[str, Shares]
) -> Iterator[Metric]:
    yield gauges_of(*taken, label, {value: share.taken for value, share in shares.items()})
    yield gauges_of(*total, label, {value: share.total for value, share in shares.items()})
