"""Two coordinators, one database: what must be true of both together. A coordinator dies by never going on. The
clock is the test's; nobody renews a lease here, so whoever holds one for longer than it lasts is dead to others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from boxlite_server import errors
from boxlite_server._gen import worker_pb2 as pb
from boxlite_server.coordinator.core import Core
from boxlite_server.coordinator.http.app import create_app
from boxlite_server.coordinator.leases import TTL_SECONDS
from boxlite_server.coordinator.limits import REQUEST_SECONDS
from boxlite_server.coordinator.store import Store, Worker

P = "default"
KEY = "anonymous default/k"


class FakeWorker:
    """Does what it is told. `hold` stops calls of a method before they are carried out, or (`after`) after that."""

    def __init__(self) -> None:
        self.states: dict[str, int] = {}
        self.calls: list[str] = []
        self.made = 0
        self._gates: dict[tuple[str, str], tuple[asyncio.Event, asyncio.Event]] = {}

    def hold(self, method: str, *, after: bool = False) -> tuple[asyncio.Event, asyncio.Event]:
        """The next such call sets the first event, and waits for the second one."""
        gate = asyncio.Event(), asyncio.Event()
        self._gates[method, "after" if after else "before"] = gate
        return gate

    async def _pass(self, method: str, when: str) -> None:
        if gate := self._gates.pop((method, when), None):
            gate[0].set()
            await gate[1].wait()

    async def unary(self, method: str, request: Any, *, timeout: float) -> Any:
        self.calls.append(method)
        await self._pass(method, "before")
        answer = self._answer(method, request)
        await self._pass(method, "after")
        return answer

    async def close(self) -> None:
        pass

    def _answer(self, method: str, request: Any) -> Any:
        if method in ("CreateVolume", "RemoveVolume"):
            return pb.Empty()
        if method == "CreateSnapshot":
            return pb.Snapshot(size_bytes=1)
        box_id = request.box_id if isinstance(request, pb.BoxRef) else request.box.box_id
        match method:
            case "CreateBox" | "CloneBox":
                self.made += box_id not in self.states
                self.states[box_id] = pb.BOX_STATUS_CONFIGURED
            case "StartBox":
                self.states[box_id] = pb.BOX_STATUS_RUNNING
            case "StopBox":
                self.states[box_id] = pb.BOX_STATUS_STOPPED
            case "RemoveBox":
                self.states.pop(box_id, None)
                return pb.Empty()
            case "StartExecution":
                return pb.Execution(execution_id=request.execution_id)
        if box_id not in self.states:
            raise errors.NotFoundError(box_id)
        return pb.Box(box_id=box_id, generation=1, status=self.states[box_id])  # type: ignore[arg-type]


class Site:
    def __init__(self, one: Store, two: Store) -> None:
        self.now = 1_000_000.0
        self.store = one
        self.worker = FakeWorker()
        self.one, self.two = self._coordinator(one), self._coordinator(two)

    def _coordinator(self, store: Store) -> Core:
        return Core.over(store, None, clock=lambda: self.now, connect=lambda row: self.worker)

    async def pass_time(self, seconds: float) -> None:
        """The worker goes on beating."""
        self.now += seconds
        await self.store.update_worker("w1", last_heartbeat=self.now)

    async def boxes(self) -> int:
        return len((await self.store.list_boxes(P)).boxes)


Story = Callable[[Site], Awaitable[None]]


@pytest.fixture(params=["sqlite", "postgresql"])
def tell(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Story], None]:
    """Over SQLite the two coordinators share a store: its file is one process's alone."""
    where = tmp_path / "c.db" if request.param == "sqlite" else request.getfixturevalue("postgresql").new_database()

    def tell(story: Story) -> None:
        async def run() -> None:
            one = await Store.open(where)
            two = one if request.param == "sqlite" else await Store.open(where)
            site = Site(one, two)
            row = Worker("w1", "one", "http://127.0.0.1:1", "s", "active", "e", {}, 8, 10_000, None, "", "", 0, 0)
            await one.put_worker(row._replace(last_heartbeat=site.now))
            try:
                await story(site)
            finally:
                others = asyncio.all_tasks() - {asyncio.current_task()}
                for task in others:
                    task.cancel()
                await asyncio.gather(*others, return_exceptions=True)
                await one.close()
                await two.close()

        asyncio.run(run())

    return tell


# ---- boxes ------------------------------------------------------------------------------------------------


def test_of_two_boxes_with_one_name_one_is_made(tell: Callable[[Story], None]) -> None:
    async def story(site: Site) -> None:
        results = await asyncio.gather(
            *(core.creation.create(P, {"name": "web"}) for core in (site.one, site.two)), return_exceptions=True
        )
        assert sorted(type(result).__name__ for result in results) == ["AlreadyExistsError", "Box"]
        assert site.worker.made == 1

    tell(story)


def test_operations_on_a_box_come_in_turn(tell: Callable[[Story], None]) -> None:
    async def story(site: Site) -> None:
        box = await site.one.creation.create(P, {})
        await site.one.boxes.start(P, box.id)
        begun, go = site.worker.hold("StopBox")
        stopping = asyncio.create_task(site.one.boxes.stop(P, box.id, None))
        await begun.wait()
        assert await site.two.turns.is_busy(box.id)
        starting = asyncio.create_task(site.two.boxes.start(P, box.id))
        await asyncio.wait([starting], timeout=0.1)
        assert site.worker.calls[-1] == "StopBox"
        go.set()
        assert (await stopping).status == "stopped"
        assert (await starting).status == "running"
        assert not await site.two.turns.is_busy(box.id)

    tell(story)


def test_one_that_was_held_up_writes_nothing_after_another_took_over(tell: Callable[[Story], None]) -> None:
    async def story(site: Site) -> None:
        box = await site.one.creation.create(P, {})
        begun, go = site.worker.hold("StartBox")
        starting = asyncio.create_task(site.one.boxes.start(P, box.id))
        await begun.wait()
        await site.pass_time(TTL_SECONDS)
        await site.two.boxes.remove(P, box.id, force=True)
        site.worker.states[box.id] = pb.BOX_STATUS_STOPPED  # the worker is no matter here
        go.set()
        with pytest.raises(errors.LeaseLostError):
            await starting
        assert await site.boxes() == 0

    tell(story)


def test_two_boxes_cannot_take_the_same_room_again(tell: Callable[[Story], None]) -> None:
    async def story(site: Site) -> None:
        made = []
        for _ in range(2):
            box = await site.one.creation.create(P, {"memory_mib": 6000})
            await site.one.boxes.start(P, box.id)
            made.append(await site.one.boxes.stop(P, box.id, None))
        starts = [core.boxes.start(P, box.id) for core, box in zip((site.one, site.two), made, strict=True)]
        results = await asyncio.gather(*starts, return_exceptions=True)
        assert sorted(type(result).__name__ for result in results) == ["Box", "ResourceExhaustedError"]

    tell(story)


# ---- requests that come again ----------------------------------------------------------------------------------


def test_a_box_that_was_made_before_a_crash_is_found_by_its_key(tell: Callable[[Story], None]) -> None:
    async def story(site: Site) -> None:
        request = {"name": "web", "env": {"A": "1"}, "ports": [{"guest_port": 80}], "labels": {"a": "b"}}
        box = await site.one.creation.create(P, request, request_key=KEY)
        assert await site.two.creation.create(P, request, request_key=KEY) == box
        with pytest.raises(errors.KeyReusedError):
            await site.two.creation.create(P, {**request, "env": {}}, request_key=KEY)
        with pytest.raises(errors.AlreadyExistsError):
            await site.two.creation.create(P, request, request_key="another")
        assert site.worker.made == 1

    tell(story)


def test_a_box_with_volumes_is_found_by_its_key(tell: Callable[[Story], None]) -> None:
    async def story(site: Site) -> None:
        await site.one.volumes.create(P, "data")
        request = {"volumes": [{"managed_volume": "data", "guest_path": "/d"}]}
        box = await site.one.creation.create(P, request, request_key=KEY)
        assert await site.two.creation.create(P, request, request_key=KEY) == box

    tell(story)


@pytest.mark.parametrize("after", [False, True])
def test_a_box_that_a_crash_left_half_made_is_made_once(tell: Callable[[Story], None], after: bool) -> None:
    async def story(site: Site) -> None:
        begun, go = site.worker.hold("CreateBox", after=after)
        first = asyncio.create_task(site.one.creation.create(P, {}, request_key=KEY))
        await begun.wait()
        await site.pass_time(TTL_SECONDS)
        box = await site.two.creation.create(P, {}, request_key=KEY)
        assert box.status == "configured"
        assert await site.boxes() == 1
        if after:
            assert site.worker.made == 1
            go.set()
            with pytest.raises(errors.LeaseLostError):  # it was only held up
                await first
        assert list(site.worker.states) == [box.id]
        assert await site.boxes() == 1

    tell(story)


def test_two_attempts_at_once_make_one_box(tell: Callable[[Story], None]) -> None:
    """As it must not be while the key's lease holds: then the row of the first one stands."""

    async def story(site: Site) -> None:
        attempts = [core.creation.create(P, {}, request_key=KEY) for core in (site.one, site.two)]
        results = await asyncio.gather(*attempts, return_exceptions=True)
        boxes = [result for result in results if not isinstance(result, BaseException)]
        assert len({box.id for box in boxes}) == 1
        assert all(isinstance(result, errors.LeaseLostError) for result in results if result not in boxes)
        assert site.worker.made == 1

    tell(story)


def test_a_key_is_free_again_after_a_day(tell: Callable[[Story], None]) -> None:
    async def story(site: Site) -> None:
        old = await site.one.creation.create(P, {}, request_key=KEY)
        old_volume = await site.one.volumes.create(P, None, request_key=KEY)
        await site.pass_time(REQUEST_SECONDS)
        new = await site.one.creation.create(P, {"cpus": 2}, request_key=KEY)
        assert new.id != old.id
        assert await site.two.creation.create(P, {"cpus": 2}, request_key=KEY) == new
        assert (await site.one.volumes.create(P, None, request_key=KEY)).id != old_volume.id

    tell(story)


def test_a_create_that_is_broken_off_leaves_its_row(tell: Callable[[Story], None]) -> None:
    async def story(site: Site) -> None:
        begun, _ = site.worker.hold("CreateBox", after=True)
        first = asyncio.create_task(site.one.creation.create(P, {"name": "web"}, request_key=KEY))
        await begun.wait()
        first.cancel()
        await asyncio.wait([first])
        (left,) = (await site.store.list_boxes(P)).boxes
        assert left.status == "creating"
        assert not await site.two.turns.is_busy(left.id)
        await site.two.observer.refresh(left.id)  # as with the next heartbeat
        assert (await site.two.creation.create(P, {"name": "web"}, request_key=KEY)).id == left.id
        assert (await site.two.boxes.get(P, left.id)).status == "configured"

    tell(story)


def test_a_clone_is_made_once(tell: Callable[[Story], None]) -> None:
    async def story(site: Site) -> None:
        source = await site.one.creation.create(P, {})
        clone = await site.one.snapshots.clone(P, source.id, "k", request_key=KEY)
        assert await site.two.snapshots.clone(P, source.id, "k", request_key=KEY) == clone
        with pytest.raises(errors.KeyReusedError):
            await site.two.snapshots.clone(P, source.id, "l", request_key=KEY)
        assert site.worker.made == 2

    tell(story)


def test_a_volume_is_made_once(tell: Callable[[Story], None]) -> None:
    async def story(site: Site) -> None:
        volume = await site.one.volumes.create(P, None, request_key=KEY)
        assert await site.two.volumes.create(P, None, request_key=KEY) == volume
        with pytest.raises(errors.KeyReusedError):
            await site.two.volumes.create(P, "named", request_key=KEY)
        begun, _ = site.worker.hold("CreateVolume")
        asyncio.create_task(site.one.volumes.create(P, "other", request_key="k2"))  # noqa: RUF006 - it dies
        await begun.wait()
        await site.pass_time(TTL_SECONDS)
        assert (await site.two.volumes.create(P, "other", request_key="k2")).state == "ready"
        assert len(await site.store.list_volumes(P)) == 2

    tell(story)


def test_a_command_is_started_once(tell: Callable[[Story], None]) -> None:
    async def story(site: Site) -> None:
        box = await site.one.creation.create(P, {})
        request = {"command": "true", "args": ["a"]}

        async def start(core: Core, **fields: Any) -> str:
            _, execution = await core.executions.start(P, box.id, {**request, **fields}, request_key=KEY)
            return str(execution.execution_id)

        first = await start(site.one)
        assert await start(site.two) == first  # the worker takes the same id for the same command
        assert await start(site.two, args=["b"]) != first
        _, other = await site.one.executions.start(P, box.id, request, request_key="another")
        assert other.execution_id != first

    tell(story)


def test_a_snapshot_is_made_once(tell: Callable[[Story], None]) -> None:
    async def story(site: Site) -> None:
        box = await site.one.creation.create(P, {})
        snapshot = await site.one.snapshots.create(P, box.id, "s", request_key=KEY)
        assert await site.two.snapshots.create(P, box.id, "s", request_key=KEY) == snapshot
        with pytest.raises(errors.AlreadyExistsError):
            await site.two.snapshots.create(P, box.id, "s", request_key="another")
        await site.pass_time(REQUEST_SECONDS)
        with pytest.raises(errors.AlreadyExistsError):
            await site.two.snapshots.create(P, box.id, "s", request_key=KEY)

    tell(story)


async def ask(app: Any, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """One request to an ASGI application."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        return messages.pop() if messages else {"type": "http.disconnect"}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 1),
        "headers": [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *((name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()),
        ],
    }
    await app(scope, receive, send)
    answer = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], answer, b"".join(message.get("body", b"") for message in sent[1:])


@pytest.mark.parametrize(
    ("path", "body"), [("boxes", b'{"image": "alpine"}'), ("boxes/source/clone", b"{}"), ("volumes", b"{}")]
)
def test_one_key_at_both(tell: Callable[[Story], None], path: str, body: bytes) -> None:
    """Over HTTP: one execution and one answer; and after a crash that lost the answer, the same thing again."""

    async def story(site: Site) -> None:
        await site.one.creation.create(P, {"name": "source"})
        apps = [create_app(core) for core in (site.one, site.two)]
        method = {"boxes": "CreateBox", "volumes": "CreateVolume"}.get(path, "CloneBox")
        begun, go = site.worker.hold(method)
        tasks = [asyncio.create_task(ask(app, "POST", f"/v1/{path}", body, idempotency_key="k")) for app in apps]
        await begun.wait()
        await asyncio.wait(tasks, timeout=0.1)
        go.set()
        (status, _, first), (other_status, _, second) = await asyncio.gather(*tasks)
        assert (status, first) == (other_status, second)
        assert status == 201, first
        assert site.worker.calls.count(method) == 1 + (method == "CreateBox")
        await site.store.purge_answers(site.now + REQUEST_SECONDS)
        status, _, third = await ask(apps[1], "POST", f"/v1/{path}", body, idempotency_key="k")
        assert (status, third) == (201, first)
        assert site.worker.calls.count(method) == 1 + (method == "CreateBox")

    tell(story)


def test_a_crash_frees_the_key(tell: Callable[[Story], None]) -> None:
    async def story(site: Site) -> None:
        apps = [create_app(core) for core in (site.one, site.two)]
        begun, go = site.worker.hold("CreateBox", after=True)
        first = asyncio.create_task(ask(apps[0], "POST", "/v1/boxes", b"{}", idempotency_key="k"))
        await begun.wait()
        await site.pass_time(TTL_SECONDS)
        status, _, body = await ask(apps[1], "POST", "/v1/boxes", b"{}", idempotency_key="k")
        assert status == 201
        go.set()
        assert (await first)[0] == 503  # it was not dead; whoever still listens there is told to ask again
        assert (await ask(apps[0], "POST", "/v1/boxes", b"{}", idempotency_key="k"))[0::2] == (201, body)
        assert await site.boxes() == 1

    tell(story)


# ---- use, attachment, volumes ------------------------------------------------------------------------------


def test_a_box_in_use_at_the_one_is_not_stopped_by_the_other(tell: Callable[[Story], None]) -> None:
    async def story(site: Site) -> None:
        box = await site.one.creation.create(P, {"auto_stop": 10})
        box = await site.one.boxes.start(P, box.id)
        async with site.one.schedule.use(box):
            assert await site.two.schedule.is_used(box.id)
            site.worker.calls.clear()
            await site.pass_time(10)
            await look(site.two)
            assert site.worker.calls == []
            assert (await site.two.boxes.get(P, box.id)).status == "running"
            await site.pass_time(TTL_SECONDS)  # the one is dead
            await look(site.two)
            assert (await site.two.boxes.get(P, box.id)).status == "stopped"
        assert not await site.two.schedule.is_used(box.id)

    tell(story)


async def look(core: Core) -> None:
    await core.lifetimes.look()
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others)


def test_boxes_without_lifetimes_cost_no_lease(tell: Callable[[Story], None]) -> None:
    async def story(site: Site) -> None:
        box = await site.one.creation.create(P, {})
        async with site.one.schedule.use(box):
            assert not await site.store.is_leased("use/", site.now)

    tell(story)


def test_one_client_is_attached_wherever_it_came(tell: Callable[[Story], None]) -> None:
    async def story(site: Site) -> None:
        async with site.one.executions.attachment("e1") as lease:
            for core in (site.one, site.two):
                with pytest.raises(errors.AlreadyExistsError):
                    async with core.executions.attachment("e1"):
                        raise AssertionError
            async with site.two.executions.attachment("e2"):
                pass
            site.now += TTL_SECONDS
            async with site.two.executions.attachment("e1"):  # the one is dead
                await site.one.leases.renew()
                assert lease.lost.is_set()
        async with site.one.executions.attachment("e1"):
            pass

    tell(story)


def test_a_volume_that_the_one_makes_is_not_removed_by_the_other(tell: Callable[[Story], None]) -> None:
    async def story(site: Site) -> None:
        begun, go = site.worker.hold("CreateVolume")
        making = asyncio.create_task(site.one.volumes.create(P, "data"))
        await begun.wait()
        with pytest.raises(errors.InvalidStateError, match="try again"):
            await site.two.volumes.remove(P, "data", force=True)
        with pytest.raises(errors.AlreadyExistsError):
            await site.two.volumes.create(P, "data")
        go.set()
        assert (await making).state == "ready"
        await site.two.volumes.remove(P, "data", force=False)
        assert await site.store.list_volumes(P) == []

    tell(story)


def test_closing_one_leaves_nothing_locked(tell: Callable[[Story], None]) -> None:
    async def story(site: Site) -> None:
        box = await site.one.creation.create(P, {})
        begun, _ = site.worker.hold("StartBox")
        starting = asyncio.create_task(site.one.boxes.start(P, box.id))
        await begun.wait()
        starting.cancel()
        await site.one.leases.close()
        async with site.two.leases.try_hold(f"box/{box.id}") as lease:
            assert lease

    tell(story)
