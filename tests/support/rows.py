"""Rows for tests of the store, and of what is built on it."""

from __future__ import annotations

from typing import Any

from boxlite_server.coordinator.spec import Spec
from boxlite_server.coordinator.states import BoxStatus, WorkerStatus
from boxlite_server.coordinator.store import Box, Worker

WORKER = Worker(
    "w1", "frosty-meadow-42", "http://h:1", "s", WorkerStatus.ACTIVE, "e", {"zone": "a"}, 2, 4096, None, "", "", 1, 1
)


def box(number: int, **changes: Any) -> Box:
    """A box of WORKER, made at that second."""
    row = Box(
        id=f"box{number}",
        prefix="default",
        name=None,
        worker_id="w1",
        generation=1,
        status=BoxStatus.CONFIGURED,
        spec=Spec(image="alpine"),
        cpus=1,
        memory_mib=256,
        labels={},
        pid=None,
        exit_code=None,
        error=None,
        created_at=float(number),
        updated_at=float(number),
        started_at=None,
        stopped_at=None,
    )
    return row._replace(**changes)
