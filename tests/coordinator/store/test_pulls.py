"""The tables of what prefixes have pulled, and are pulling with credentials, in both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.rows import open_store

from boxlite_server.coordinator.store import Pulled, Store

pytestmark = pytest.mark.anyio


@pytest.fixture
async def store(database: Path | str) -> AsyncIterator[Store]:
    async with open_store(database) as store:
        yield store


async def test_a_repository_is_private_from_the_beginning_of_a_private_pull(store: Store) -> None:
    await store.note_pull("r/app", "other", is_private=False)
    for pull_id in ("1", "2"):
        await store.begin_private_pull(pull_id, "r/app", "acme")
    await store.begin_private_pull("3", "r/none", "acme")
    hidden = Pulled(frozenset({"other"}), True)
    assert await store.pulled() == {"r/app": hidden, "r/none": Pulled(frozenset(), True)}
    await store.end_private_pull("3")
    await store.end_private_pull("1")
    assert await store.pulled("r/app") == await store.pulled() == {"r/app": hidden}


async def test_a_noted_pull_makes_up_for_those_whose_end_nobody_saw(store: Store) -> None:
    for pull_id, prefix in (("1", "acme"), ("2", "acme"), ("3", "other")):
        await store.begin_private_pull(pull_id, "r/app", prefix)
    await store.note_pull("r/app", "acme", is_private=True)
    await store.note_pull("r/app", "other", is_private=False)  # by a host without credentials: the other pull may come
    await store.note_pull("r/app", "acme", is_private=False)
    assert await store.pulled() == {"r/app": Pulled(frozenset({"acme", "other"}), True)}
    await store.end_private_pull("3")
    assert await store.pulled() == {"r/app": Pulled(frozenset({"acme", "other"}), False)}
