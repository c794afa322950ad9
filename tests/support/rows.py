"""Rows, stores that hold them, and what any store must do, for tests of the store and of what is built on it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from boxlite_server import errors
from boxlite_server.coordinator.spec import Spec
from boxlite_server.coordinator.states import BoxStatus, WorkerStatus
from boxlite_server.coordinator.store import Box, Store, Worker

WORKER = Worker(
    "w1", "frosty-meadow-42", "http://h:1", "s", WorkerStatus.ACTIVE, "e", {"zone": "a"}, 2, 4096, None, "", "", 1, 1
)


def box(number: int, **changes: Any) -> Box:
    """A box on WORKER, created at Unix time `number`."""
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


@asynccontextmanager
async def open_store(database: Path | str) -> AsyncIterator[Store]:
    """A store with one worker in it."""
    store = await Store.open(database)
    await store.put_worker(WORKER)
    yield store
    await store.close()


async def check_read_only(store: Store) -> None:
    """Assert that the store, whose database cannot be written, says so of each write, and can be read."""
    with pytest.raises(errors.DatabaseUnavailableError, match="read-only"):
        await store.insert_box(box(1))
    with pytest.raises(errors.DatabaseUnavailableError, match="read-only"):
        async with store.transaction() as tx:
            await tx.insert_box(box(1))
    assert await store.get_worker("w1") == WORKER
