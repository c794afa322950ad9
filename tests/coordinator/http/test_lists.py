"""Lists of boxes as they are answered: whole ones come about bit by bit."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from support.rows import WORKER, box

from boxlite_server.coordinator.core import Core
from boxlite_server.coordinator.http.handlers import boxes, snapshots, volumes, workers
from boxlite_server.coordinator.states import SnapshotState, VolumeState
from boxlite_server.coordinator.store import Snapshot, Volume

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


async def test_volumes_come_in_pages(core: Core) -> None:
    for number in (1, 2, 3):
        await core.store.insert_volume(Volume(f"v{number}", "default", f"v{number}", "w1", VolumeState.READY, 7, 7))
    await core.store.insert_volume(Volume("v0", "acme", "v0", "w1", VolumeState.READY, 8, 8))
    assert await pages(volumes.list_volumes, core, "default") == [["v1", "v2"], ["v3"]]


async def test_snapshots_come_in_pages(core: Core) -> None:
    for number in (1, 2, 3):
        await core.store.insert_snapshot(Snapshot(f"s{number}", "box1", f"s{number}", SnapshotState.READY, number / 10))
    await core.store.insert_snapshot(Snapshot("s0", "box2", "s0", SnapshotState.READY, 1))
    assert await pages(snapshots.list_snapshots, core, "default", "box1") == [["s1", "s2"], ["s3"]]


async def test_workers_come_in_pages(core: Core) -> None:
    for number in (2, 3):
        await core.store.put_worker(WORKER._replace(id=f"w{number}", name=f"w{number}", registered_at=0.1 * number))
    assert await pages(workers.list_workers, core) == [["w2", "w3"], ["w1"]]


async def pages(listing: Callable[..., Any], *arguments: Any) -> list[list[str]]:
    """The ids of a list that is read two by two."""

    async def page(**parameters: Any) -> tuple[list[str], str | None]:
        rows, token = (await listing(*arguments, **parameters)).values()
        return [row["id"] for row in rows], token

    found, token = await page(page_size=2)
    read = [found]
    while token:
        found, token = await page(page_size=2, page_token=token)
        read.append(found)
    assert await page() == ([each for found in read for each in found], None)
    return read
