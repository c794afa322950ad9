"""Registration and heartbeats against a small coordinator that answers as told."""

from __future__ import annotations

import json
import queue
import random
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.sites import Site, in_thread

from boxlite_server import signatures
from boxlite_server.errors import AlreadyExistsError, EngineError, InvalidArgumentError
from boxlite_server.worker.membership import registration as registration_module
from boxlite_server.worker.membership.coordinator import CoordinatorClient, local_address, split_url
from boxlite_server.worker.membership.identity import Identity
from boxlite_server.worker.membership.inventory import inventory
from boxlite_server.worker.membership.registration import Registration, default_reserve

Answer = tuple[int, dict[str, Any]]

REGISTERED: Answer = (
    200,
    {"id": "w", "name": "n", "cluster_id": "cluster12345", "heartbeat_interval_seconds": 3600},
)
BEAT: Answer = (200, {"heartbeat_interval_seconds": 3600})


def error(status: int, kind: str) -> Answer:
    return status, {"error": {"message": "because", "type": kind, "code": "x"}}


@dataclass
class Call:
    path: str
    body: dict[str, Any]
    authorization: str | None


@dataclass
class Coordinator:
    """Answers with what `answers` holds for the path, then with success."""

    server: ThreadingHTTPServer
    calls: queue.Queue[Call] = field(default_factory=queue.Queue)
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    secret: Callable[[], str] = lambda: ""  # of the worker, as this coordinator knows it
    asked_to_prove: list[Call] = field(default_factory=list)

    def proof(self, body: dict[str, Any]) -> Answer:
        return 200, {"proof": signatures.of_coordinator(self.secret(), body["worker_id"], body["nonce"])}

    def check_signature(self, path: str, beat: dict[str, Any]) -> None:
        """Check a heartbeat's signature, and take it away with the number."""
        expected = signatures.of_heartbeat(self.secret(), path.split("/")[-2], beat)
        assert beat.pop("signature") == expected
        self.numbers.append(beat.pop("number"))

    numbers: list[int] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/base/"

    def next(self) -> Call:
        return self.calls.get(timeout=60)


@pytest.fixture
def coordinator() -> Iterator[Coordinator]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            kind = self.path.rpartition("/")[2]
            told = stub.answers.get("register" if kind == "workers" else kind)
            usual = {"heartbeat": BEAT, "workers": REGISTERED, "proof": None}[kind]
            status, answer = told.pop(0) if told else usual or stub.proof(body)
            data = json.dumps(answer).encode()
            call = Call(self.path, body, self.headers["Authorization"])
            if kind == "proof":
                stub.asked_to_prove.append(call)
            else:
                if kind == "heartbeat":
                    stub.check_signature(self.path, body)
                stub.calls.put(call)  # before the next request can come
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stub = Coordinator(server)
    in_thread(server.serve_forever)
    yield stub
    server.shutdown()
    server.server_close()


NewRegistration = Callable[..., Registration]


class NoWaiting(random.Random):
    """Jitter that never waits before another attempt, and never shortens a heartbeat's interval."""

    def uniform(self, a: float, b: float) -> float:
        return 0.0 if a == 0 else b


@pytest.fixture
def new_registration(fake_site: Site, tmp_path: Path, coordinator: Coordinator) -> Iterator[NewRegistration]:
    """Makes a registration and runs it; all are stopped, and must then end."""
    made: list[tuple[Registration, threading.Thread]] = []

    def new(
        *, name: str | None = None, url: str | None = None, api_key: str | None = None, rejoin: bool = False
    ) -> Registration:
        registration = Registration(
            client=CoordinatorClient(url or coordinator.url, api_key),
            identity=Identity.load(tmp_path, name, random.Random(3)),
            runtime=fake_site.runtime,
            url="http://10.0.0.5:9100",
            epoch="epoch",
            labels={"k": "v"},
            max_boxes=None,
            rng=NoWaiting(),
            cpu_overcommit=16,
            rejoin=rejoin,
        )
        coordinator.secret = lambda: registration.identity.secret
        made.append((registration, in_thread(registration.run)))
        return registration

    yield new
    for registration, thread in made:
        registration.stop()
        thread.join(60)
        assert not thread.is_alive()
        assert not registration.registered.is_set()


def test_introduction_and_first_heartbeat(
    new_registration: NewRegistration, coordinator: Coordinator, fake_site: Site
) -> None:
    registration = new_registration(api_key="key")
    call = coordinator.next()
    identity = registration.identity
    assert (call.path, call.authorization) == ("/base/v1/admin/workers", "Bearer key")
    capacity = call.body.pop("capacity")
    assert capacity["cpus"] > 0
    whole = fake_site.runtime.capacity().memory_mib
    assert capacity["memory_mib"] == whole - default_reserve(whole)
    assert capacity["max_boxes"] is None
    assert capacity["cpu_limit"] == capacity["cpus"] * 16
    assert call.body.pop("version")
    assert call.body.pop("started_at") == registration.started_at
    assert call.body.pop("heartbeats") == 0
    assert call.body == {
        "id": identity.id,
        "name": identity.name,
        "url": "http://10.0.0.5:9100",
        "secret": identity.secret,
        "epoch": "epoch",
        "labels": {"k": "v"},
        "warm_images": {},
        "disk_limit": "watched",
        "network": "unfiltered",
        "engine_version": "fake",
        "engine_life": fake_site.runtime.life(),
        "boxes": [],
    }
    beat = coordinator.next()
    assert beat.path == f"/base/v1/admin/workers/{identity.id}/heartbeat"
    assert len(beat.body.pop("inventory")) >= 16
    assert beat.body == {"epoch": "epoch", "engine_life": fake_site.runtime.life(), "boxes": []}
    assert registration.registered.is_set()
    assert identity.cluster_id == "cluster12345"


def test_a_change_is_reported_at_once(
    new_registration: NewRegistration, coordinator: Coordinator, fake_site: Site
) -> None:
    registration = new_registration()
    coordinator.next(), coordinator.next()
    box = fake_site.running_box()
    registration.report_change()
    (entry,) = coordinator.next().body["boxes"]
    assert entry.pop("pid") > 0
    assert entry == {
        "box_id": box.box_id,
        "generation": 1,
        "status": "running",
        "exit_code": None,
        "interrupted": False,
    }
    fake_site.runtime.stop(box, 5)
    registration.report_change()
    (entry,) = coordinator.next().body["boxes"]
    assert (entry["status"], entry["pid"], entry["exit_code"]) == ("stopped", None, 143)
    fake_site.runtime.remove(box, force=True)


def test_it_tries_until_the_coordinator_is_there(new_registration: NewRegistration, coordinator: Coordinator) -> None:
    coordinator.answers["register"] = [
        error(500, "InternalError"),
        error(401, "AuthError"),
        error(403, "AuthError"),
        (502, {}),
    ]
    registration = new_registration()
    for _ in range(5):
        assert coordinator.next().path == "/base/v1/admin/workers"
    assert registration.registered.wait(60)


@pytest.mark.parametrize("status", [404, 409])
def test_it_registers_again_when_told(new_registration: NewRegistration, coordinator: Coordinator, status: int) -> None:
    coordinator.answers["heartbeat"] = [error(status, "NotFoundError")]
    new_registration()
    kinds = [coordinator.next().path.rpartition("/")[2] for _ in range(4)]
    assert kinds == ["workers", "heartbeat", "workers", "heartbeat"]


def test_a_failing_heartbeat_is_no_reason_to_register_again(
    new_registration: NewRegistration, coordinator: Coordinator
) -> None:
    coordinator.answers["heartbeat"] = [error(500, "InternalError"), error(401, "AuthError")]
    registration = new_registration()
    coordinator.next()
    for _ in range(3):
        assert coordinator.next().path.endswith("/heartbeat")
        registration.report_change()


def test_a_generated_name_that_is_taken_is_replaced(
    new_registration: NewRegistration, coordinator: Coordinator
) -> None:
    coordinator.answers["register"] = [error(409, "AlreadyExistsError")]
    registration = new_registration()
    first, second = coordinator.next().body, coordinator.next().body
    assert first["name"] != second["name"]
    assert first["id"] == second["id"]
    assert registration.identity.name == second["name"]


def test_a_given_name_that_is_taken_ends_the_worker(
    new_registration: NewRegistration, coordinator: Coordinator
) -> None:
    coordinator.answers["register"] = [error(409, "AlreadyExistsError")]
    registration = new_registration(name="mine")
    assert registration.ended.wait(60)
    assert isinstance(registration.fatal, AlreadyExistsError)
    assert "mine" in registration.fatal.message


def test_boxes_are_told_when_they_have_changed_and_when_they_are_asked_for(
    new_registration: NewRegistration, coordinator: Coordinator, fake_site: Site
) -> None:
    asked: Answer = (200, {"heartbeat_interval_seconds": 3600, "send_inventory": True})
    coordinator.answers["heartbeat"] = [BEAT, BEAT, asked]
    registration = new_registration()
    coordinator.next()
    first = coordinator.next().body
    assert "boxes" in first, "a registration before the cluster was known told nothing"
    registration.report_change()
    second = coordinator.next().body
    assert second == {key: value for key, value in first.items() if key != "boxes"}
    registration.report_change()
    third, fourth = coordinator.next().body, coordinator.next().body
    assert (third, fourth) == (second, first), "what was asked for comes at once"
    box = fake_site.running_box()
    registration.report_change()
    fifth = coordinator.next().body
    assert fifth["inventory"] != first["inventory"]
    assert [entry["box_id"] for entry in fifth["boxes"]] == [box.box_id]
    fake_site.runtime.remove(box, force=True)
    registration.report_change()
    assert coordinator.next().body == first


def test_boxes_that_a_coordinator_did_not_take_are_told_again(
    new_registration: NewRegistration, coordinator: Coordinator
) -> None:
    coordinator.answers["heartbeat"] = [error(500, "InternalError")]
    registration = new_registration()
    coordinator.next()
    for _ in range(2):
        assert "boxes" in coordinator.next().body
        registration.report_change()
    assert "boxes" not in coordinator.next().body


def test_boxes_are_told_once_a_minute_whatever_happens(
    new_registration: NewRegistration, coordinator: Coordinator
) -> None:
    registration = new_registration()
    coordinator.next(), coordinator.next()
    now = registration.clock()
    for passed, expected in ((30, False), (95, True), (96, False), (160, True)):
        registration.clock = lambda passed=passed: now + passed  # type: ignore[misc]
        registration.report_change()
        assert ("boxes" in coordinator.next().body) == expected


def test_a_new_life_of_the_engine_is_a_change(
    new_registration: NewRegistration, coordinator: Coordinator, fake_site: Site
) -> None:
    registration = new_registration()
    coordinator.next()
    before = coordinator.next().body
    box = fake_site.running_box()
    fake_site.runtime.restart()  # type: ignore[attr-defined]
    registration.report_change()
    after = coordinator.next().body
    assert after["engine_life"] != before["engine_life"]
    (entry,) = after["boxes"]
    assert (entry["status"], entry["interrupted"]) == ("stopped", True)
    fake_site.runtime.remove(box, force=True)


def test_without_the_engine_there_is_no_word_of_boxes_but_of_the_engine(
    new_registration: NewRegistration,
    coordinator: Coordinator,
    fake_site: Site,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registration = new_registration()
    coordinator.next(), coordinator.next()
    box = fake_site.running_box()
    monkeypatch.setattr(fake_site.runtime, "down", True)
    for _ in range(2):
        registration.report_change()
        beat = coordinator.next().body
        assert set(beat) == {"epoch", "engine_error"}
        assert "does not answer" in beat["engine_error"]
    monkeypatch.setattr(fake_site.runtime, "down", False)
    registration.report_change()
    # An empty inventory in between would have come first.
    assert [entry["box_id"] for entry in coordinator.next().body["boxes"]] == [box.box_id]
    fake_site.runtime.remove(box, force=True)


def test_an_engine_that_hangs_does_not_silence_the_worker(
    new_registration: NewRegistration,
    coordinator: Coordinator,
    fake_site: Site,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registration_module, "INVENTORY_PATIENCE", 0.05)
    registration = new_registration()
    coordinator.next(), coordinator.next()
    release, life = threading.Event(), fake_site.runtime.life
    asked: list[int] = []

    def hanging() -> str:
        asked.append(1)
        assert release.wait(60)
        return life()

    monkeypatch.setattr(fake_site.runtime, "life", hanging)
    for _ in range(3):
        registration.report_change()
        assert "has not answered" in coordinator.next().body["engine_error"]
    assert len(asked) == 2, "for the boxes, and whether it is there at all; no question twice"
    release.set()
    while "engine_error" in (beat := coordinator_beat(registration, coordinator)):
        pass
    assert "inventory" in beat


def test_an_engine_that_is_busy_with_a_box_is_no_trouble(
    new_registration: NewRegistration, coordinator: Coordinator, fake_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registration_module, "INVENTORY_PATIENCE", 0.05)
    registration = new_registration()
    coordinator.next(), coordinator.next()
    release, list_boxes = threading.Event(), fake_site.runtime.list_boxes

    def waiting() -> list[Any]:
        assert release.wait(60)
        return list_boxes()

    monkeypatch.setattr(fake_site.runtime, "list_boxes", waiting)
    for _ in range(2):
        assert coordinator_beat(registration, coordinator) == {"epoch": "epoch"}
    release.set()
    while "inventory" not in coordinator_beat(registration, coordinator):
        pass


def coordinator_beat(registration: Registration, coordinator: Coordinator) -> dict[str, Any]:
    registration.report_change()
    return coordinator.next().body


def test_a_restart_of_the_engine_in_the_midst_of_an_inventory(fake_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    lives = iter(["one", "two", "three", "three"])
    monkeypatch.setattr(fake_site.runtime, "life", lambda: next(lives))
    with pytest.raises(EngineError, match="restarted just now"):
        inventory(fake_site.runtime)
    assert inventory(fake_site.runtime).engine_life == "three"


def test_goodbye_is_the_last_word(new_registration: NewRegistration, coordinator: Coordinator) -> None:
    registration = new_registration()
    coordinator.next(), coordinator.next()
    registration.leave()
    assert coordinator.next().body == {"epoch": "epoch", "leaving": True}
    assert registration.ended.is_set()
    registration.leave()
    assert coordinator.calls.empty(), "nobody says it twice, or without being known"


def test_a_disk_that_is_full_only_delays_the_registration(
    new_registration: NewRegistration, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    joins = iter([OSError(28, "No space left on device")])
    join = Identity.join

    def full_once(self: Identity, cluster_id: str) -> None:
        for failure in joins:
            raise failure
        join(self, cluster_id)

    monkeypatch.setattr(Identity, "join", full_once)
    registration = new_registration()
    for _ in range(2):
        assert coordinator.next().path.endswith("/workers")
    assert registration.registered.wait(60)


def test_stop_does_not_wait_for_a_coordinator_that_is_away(new_registration: NewRegistration) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and not listening
        new_registration(url=f"http://127.0.0.1:{taken.getsockname()[1]}")


def test_local_address() -> None:
    assert local_address(split_url("http://127.0.0.1:1")) == "127.0.0.1"


@pytest.mark.parametrize("url", ["", "coordinator:8200", "ftp://x", "http://", "http://x:0", "http://x:99999"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(InvalidArgumentError, match="coordinator's address"):
        split_url(url)


def known_worker(home: Path) -> Identity:
    """The identity of a worker that was registered before."""
    identity = Identity.load(home, None, random.Random(3))
    identity.join("cluster12345")
    return identity


def test_a_worker_tells_an_impostor_nothing(
    new_registration: NewRegistration, coordinator: Coordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = known_worker(tmp_path)
    refused = threading.Event()
    impostures: list[Answer] = [
        (200, {"proof": signatures.of_coordinator("another secret", identity.id, "nonce")}),
        (200, {"proof": None}),
        (200, {}),
        error(404, "NotFoundError"),
        error(401, "AuthError"),
        error(500, "InternalError"),
        (200, {"proof": "é"}),
    ]
    coordinator.answers["proof"] = impostures
    monkeypatch.setattr(Registration, "_pause", lambda *_: refused.wait(0.01) if impostures else refused.set())
    registration = new_registration(api_key="key")
    assert coordinator.next().path.endswith("/workers"), "it registers as soon as the coordinator is the right one"
    assert registration.registered.wait(60)
    assert len(coordinator.asked_to_prove) == 8
    for call in coordinator.asked_to_prove:
        assert call.authorization is None
        assert identity.secret not in json.dumps(call.body)
    assert len({call.body["nonce"] for call in coordinator.asked_to_prove}) == 8


def test_an_old_proof_proves_nothing(
    new_registration: NewRegistration, coordinator: Coordinator, tmp_path: Path
) -> None:
    identity = known_worker(tmp_path)
    recorded = signatures.of_coordinator(identity.secret, identity.id, "a nonce that was used")
    coordinator.answers["proof"] = [(200, {"proof": recorded})]
    new_registration()
    coordinator.next()
    assert len(coordinator.asked_to_prove) == 2


def test_a_worker_joins_another_cluster_when_it_is_told_to(
    new_registration: NewRegistration, coordinator: Coordinator, tmp_path: Path
) -> None:
    known_worker(tmp_path)
    registration = new_registration(rejoin=True)
    assert coordinator.next().path.endswith("/workers")
    assert registration.registered.wait(60)
    assert not coordinator.asked_to_prove


def test_heartbeats_are_numbered(new_registration: NewRegistration, coordinator: Coordinator) -> None:
    registration = new_registration()
    coordinator.next(), coordinator.next()
    coordinator_beat(registration, coordinator)
    registration.leave()
    coordinator.next()
    assert coordinator.numbers == [1, 2, 3]


@pytest.mark.parametrize(
    ("memory_mib", "reserve"), [(400, 200), (1024, 256), (8192, 819), (65_536, 6553), (1_000_000, 8192)]
)
def test_a_part_of_the_memory_is_promised_to_no_box(memory_mib: int, reserve: int) -> None:
    assert default_reserve(memory_mib) == reserve


@pytest.mark.parametrize(("reserve", "promised"), [(0, 16_384), (1000, 15_384), (16_384, 0), (99_999, 0)])
def test_the_operator_says_how_much(
    fake_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reserve: int, promised: int
) -> None:
    capacity = replace(fake_site.runtime.capacity(), memory_mib=16_384)
    monkeypatch.setattr(fake_site.runtime, "capacity", lambda: capacity)
    registration = Registration(
        client=CoordinatorClient("http://127.0.0.1:9", None),
        identity=Identity.load(tmp_path, None, random.Random(3)),
        runtime=fake_site.runtime,
        url="http://10.0.0.5:9100",
        epoch="epoch",
        labels={},
        max_boxes=None,
        rng=random.Random(3),
        reserve_memory_mib=reserve,
    )
    assert registration._introduction(None)["capacity"]["memory_mib"] == promised
