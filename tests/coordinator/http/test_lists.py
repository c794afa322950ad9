"""Lists of boxes as they are answered: whole ones come about bit by bit."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.rows import WORKER, box

from boxlite_server.coordinator.core import Core
from boxlite_server.coordinator.http.handlers import boxes

pytestmark = pytest.mark.anyio


@pytest.fixture
async def core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Core]:
    """A coordinator with five boxes, which it lists two at a time."""
    monkeypatch.setattr(boxes, "_AT_ONCE", 2)
    core = await Core.open(tmp_path / "coordinator.db", None)
    await core.store.put_worker(WORKER)
    for number in (1, 2, 3, 4, 5):
        await core.store.insert_box(box(number, name=f"é{number}", labels={"odd": str(number % 2)}))
    yield core
    await core.close()


async def listed(core: Core, **parameters: Any) -> tuple[list[str], str | None]:
    answer = await boxes.list_boxes(core, "default", **parameters)
    assert answer.headers["content-type"] == "application/json"
    page = json.loads(answer.body)
    return [each["name"] for each in page["boxes"]], page["next_page_token"]


async def test_a_whole_list_has_them_all_once_and_in_order(core: Core) -> None:
    assert await listed(core) == (["é1", "é2", "é3", "é4", "é5"], None)
    assert await listed(core, label=["odd=1"]) == (["é1", "é3", "é5"], None)
    assert await listed(core, name="nobody") == ([], None)


async def test_a_page_is_as_large_as_was_asked(core: Core) -> None:
    first, token = await listed(core, page_size=3)
    assert (first, bool(token)) == (["é1", "é2", "é3"], True)
    assert await listed(core, page_size=3, page_token=token) == (["é4", "é5"], None)
    assert await listed(core, page_token=token) == (["é4", "é5"], None)


async def test_others_have_their_turn_while_a_whole_list_comes_about(core: Core) -> None:
    listing = asyncio.create_task(listed(core))
    turns = 0
    while not listing.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 2, "the list was made in one piece"


async def test_a_box_that_goes_meanwhile_hides_no_other(core: Core) -> None:
    listing = asyncio.create_task(listed(core))
    await asyncio.sleep(0)
    await core.store.delete_box("box1")
    names, _ = await listing
    assert names[-4:] == ["é2", "é3", "é4", "é5"]
