"""The counters of commands, which no command waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from support.coordinator_site import CoordinatorSite

from boxlite_server import errors
from boxlite_server.coordinator.store import Counters

RUN = {"command": "true"}


def test_counts_are_read_at_once_and_outlive_the_coordinator(tell: Callable[..., None]) -> None:
    async def story(site: CoordinatorSite) -> None:
        await site.put(site.one)
        box = await site.running()
        for _ in range(3):
            await site.core.executions.run("default", box.id, RUN)
        assert (await site.core.counting.counters("default")).commands_executed == 3
        await site.core.executions.run("default", box.id, RUN)
        await site.reopen()
        assert (await site.core.counting.counters("default")).commands_executed == 4
        assert await site.core.counting.counters("other") == Counters()

    tell(story)


def test_a_run_writes_nothing_before_its_answer(tell: Callable[..., None], monkeypatch: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        await site.put(site.one)
        box = await site.running()
        backend, writes = site.core.store._backend, []
        write = backend.write

        async def noted(sql: str, parameters: Any = ()) -> Any:
            writes.append(sql)
            return await write(sql, parameters)

        monkeypatch.setattr(backend, "write", noted)
        await site.core.executions.run("default", box.id, RUN)
        assert writes == []
        await site.core.counting.counters("default")
        assert len(writes) == 1

    tell(story)


def test_counts_that_cannot_be_written_are_written_later(tell: Callable[..., None], monkeypatch: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        counting, store = site.core.counting, site.core.store

        async def refuse(*_: Any) -> None:
            raise errors.DatabaseUnavailableError("the disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(store, "count", refuse)
            counting.add("default", "exec_errors")
            assert (await counting.counters("default")).exec_errors == 0
        counting.add("default", "exec_errors")
        both = await asyncio.gather(counting.counters("default"), counting.counters("default"))
        assert [counters.exec_errors for counters in both] == [2, 2]

    tell(story)
