"""The database: what it promises to hold, and to refuse."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from support.blocking import Blocking

from boxlite_server import errors
from boxlite_server.coordinator.store import Box, Load, Snapshot, Store, Worker

WORKER = Worker("w1", "frosty-meadow-42", "http://h:1", "s", "active", "e", {"zone": "a"}, 2, 4096, None, "", "", 1, 1)


def box(number: int, **changes: object) -> Box:
    row = Box(
        id=f"box{number}",
        prefix="default",
        name=None,
        worker_id="w1",
        generation=1,
        status="configured",
        spec={"image": "alpine"},
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


def opened(path: Path) -> Any:
    return Blocking(asyncio.run(Store.open(path)))


@pytest.fixture
def store(tmp_path: Path) -> Any:
    store = opened(tmp_path / "coordinator.db")
    store.put_worker(WORKER)
    return store


def ids(store: Any, **filters: object) -> list[str]:
    return [row.id for row in store.list_boxes("default", **filters).boxes]


def test_rows_come_back_as_they_went_in(store: Any) -> None:
    row = box(1, name="web", labels={"a": "1"}, spec={"cmd": ["x"], "env": {"K": "ü"}})
    store.insert_box(row)
    assert store.find_box("default", "web") == row == store.find_box("default", "box1")
    assert store.get_worker("w1") == WORKER


def test_everything_survives_a_restart(tmp_path: Path) -> None:
    first = opened(tmp_path / "c.db")
    first.put_worker(WORKER)
    first.insert_box(box(1))
    cluster = first.cluster_id()
    first.close()
    second = opened(tmp_path / "c.db")
    assert second.cluster_id() == cluster
    assert second.get_box("box1") == box(1)
    assert second.list_workers() == [WORKER]


def test_a_name_is_unique_in_its_prefix_alone(store: Any) -> None:
    store.insert_box(box(1, name="web"))
    store.insert_box(box(2, name="web", prefix="other"))
    with pytest.raises(errors.AlreadyExistsError, match="'web'"):
        store.insert_box(box(3, name="web"))
    assert store.find_box("other", "web").id == "box2"
    assert store.find_box("third", "web") is None


def test_an_id_wins_over_the_same_name(store: Any) -> None:
    store.insert_box(box(1))
    store.insert_box(box(2, name="box1"))
    assert store.find_box("default", "box1").id == "box1"


def test_a_failed_transaction_leaves_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        store = await Store.open(tmp_path / "c.db")
        await store.put_worker(WORKER)
        with pytest.raises(RuntimeError):
            async with store.transaction() as tx:
                await tx.insert_box(box(1))
                raise RuntimeError
        assert await store.get_box("box1") is None
        async with store.transaction() as tx:
            await tx.insert_box(box(1))
        assert await store.get_box("box1") == box(1)

    asyncio.run(story())


def test_pages_stay_stable_when_boxes_come_and_go(store: Any) -> None:
    for number in range(1, 7):
        store.insert_box(box(number))
    page = store.list_boxes("default", limit=2)
    assert [row.id for row in page.boxes] == ["box1", "box2"]
    store.delete_box("box2")
    store.delete_box("box3")
    store.insert_box(box(7))
    page = store.list_boxes("default", limit=3, after=page.next_token)
    assert [row.id for row in page.boxes] == ["box4", "box5", "box6"]
    page = store.list_boxes("default", limit=3, after=page.next_token)
    assert [row.id for row in page.boxes] == ["box7"]
    assert page.next_token is None


def test_filters(store: Any) -> None:
    store.insert_box(box(1, status="running", labels={"team": "a", "env": "x"}))
    store.insert_box(box(2, labels={"team": "a"}, name="web"))
    store.insert_box(box(3, labels={"team": "b"}))
    assert ids(store) == ["box1", "box2", "box3"]
    assert ids(store, statuses=("running",)) == ["box1"]
    assert ids(store, name="web") == ["box2"]
    assert ids(store, labels={"team": "a"}) == ["box1", "box2"]
    assert ids(store, labels={"team": "a", "env": "x"}) == ["box1"]


def test_loads_count_what_may_run(store: Any) -> None:
    for number, status in enumerate(("running", "configured", "creating", "stopped", "failed", "paused"), start=1):
        store.insert_box(box(number, status=status))
    assert store.loads() == {"w1": Load(cpus=4, memory_mib=1024, boxes=4, running=1)}


def test_a_workers_name_is_its_own(store: Any) -> None:
    store.put_worker(WORKER._replace(url="http://other:1"))
    assert store.get_worker("w1").url == "http://other:1"
    with pytest.raises(errors.AlreadyExistsError, match="frosty-meadow-42"):
        store.put_worker(WORKER._replace(id="w2"))


def test_a_database_of_the_future_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "c.db") as db:
        db.execute("PRAGMA user_version = 999")
    with pytest.raises(errors.DatabaseError, match="newer"):
        opened(tmp_path / "c.db")


def test_a_path_that_cannot_be_written_is_a_clear_error() -> None:
    with pytest.raises(errors.DatabaseError, match="/proc/nowhere"):
        opened(Path("/proc/nowhere/c.db"))


def test_snapshots_belong_to_their_box(store: Any) -> None:
    store.insert_box(box(1))
    store.insert_box(box(2))
    store.insert_snapshot(Snapshot("s1", "box1", "same", "ready", 1.0, 2, 3))
    store.insert_snapshot(Snapshot("s2", "box2", "same", "creating", 1.0))
    with pytest.raises(errors.AlreadyExistsError, match="'same'"):
        store.insert_snapshot(Snapshot("s3", "box2", "same", "creating", 1.0))
    assert store.list_snapshots("box1") == [Snapshot("s1", "box1", "same", "ready", 1.0, 2, 3)]
    assert store.list_snapshots("box2") == []
    assert store.find_snapshot("box2", "same") is None
    assert store.boxes_with_unfinished_snapshots("w1") == {"box2"}
    store.update_snapshot("s1", state="restoring")
    assert store.is_restoring("box1")
    assert not store.is_restoring("box2")
    assert store.find_snapshot("box1", "same") is not None
    store.delete_box("box1")
    assert store.unfinished_snapshots("box1") == []
    store.delete_snapshot("s2")
    assert store.boxes_with_unfinished_snapshots("w1") == set()
