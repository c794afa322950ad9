"""The judge of a chaotic run is told of runs that went wrong: each must be found out."""

from __future__ import annotations

from random import Random
from typing import Any

from chaos.check import oversold, structure
from chaos.faults import plan
from chaos.history import ACKNOWLEDGED, REFUSED, UNKNOWN, Record
from chaos.model import Model
from chaos.traffic import LOG

BOX = "AbCdEf123456"


def told(*said: tuple[str, dict[str, Any], str, dict[str, Any]], status: int | None = None) -> list[Record]:
    """Records one after the other: operation, arguments, outcome and result."""
    return [
        Record("c1", op, args, begin=float(at), end=at + 0.5, outcome=outcome, status=status, result=result)
        for at, (op, args, outcome, result) in enumerate(said)
    ]


def created(outcome: str = ACKNOWLEDGED, box_id: str = BOX) -> tuple[str, dict[str, Any], str, dict[str, Any]]:
    return ("create", {"mark": "m"}, outcome, {"box_id": box_id} if outcome == ACKNOWLEDGED else {})


def done(op: str, outcome: str = ACKNOWLEDGED, **args: Any) -> tuple[str, dict[str, Any], str, dict[str, Any]]:
    result = args.pop("result", {})
    return (op, {"box": BOX, **args}, outcome, result)


def row(status: str = "configured", box_id: str = BOX, name: str | None = None) -> dict[str, Any]:
    return {"box_id": box_id, "name": name, "status": status, "labels": {"mark": "m"}, "worker": "worker-1"}


def found(boxes: list[dict[str, Any]], *containers: tuple[str, str, str], **more: Any) -> dict[str, Any]:
    """A survey; containers are given as worker, box and state."""
    engines: dict[str, Any] = {
        host: {"containers": [], "images": [], "volumes": [], **more} for host in ("worker-1", "worker-2")
    }
    for host, box_id, state in containers:
        engines[host]["containers"].append({"name": "n", "state": state, "labels": {"boxlite.box": box_id}})
    return {"boxes": boxes, "workers": [{"name": "worker-1", "status": "active"}], "engines": engines}


def kinds(flaws: list[Any]) -> list[str]:
    return [flaw.kind for flaw in flaws]


def test_an_acknowledged_box_is_there_and_a_removed_one_is_not() -> None:
    assert kinds(Model(told(created())).compare([row()])) == []
    assert kinds(Model(told(created())).compare([])) == ["lost"]
    assert kinds(Model(told(created(), done("remove"))).compare([])) == []
    assert kinds(Model(told(created(), done("remove"))).compare([row()])) == ["lost"]


def test_what_was_left_open_may_be_there_or_not() -> None:
    perhaps_removed = told(created(), done("remove", UNKNOWN))
    assert kinds(Model(perhaps_removed).compare([row()]) + Model(perhaps_removed).compare([])) == []
    assert kinds(Model(told(created(UNKNOWN))).compare([row()])) == []
    assert kinds(Model(told(created(UNKNOWN))).compare([row(), row(box_id="another12345")])) == ["doubled"]
    refused = told(created(REFUSED), status=409)
    assert kinds(Model(refused).compare([row()])) == ["ghost"]


def test_one_box_for_all_attempts_with_one_key() -> None:
    assert kinds(Model(told(created(UNKNOWN), created(), created())).flaws) == []
    assert kinds(Model(told(created(), created(box_id="another12345"))).flaws) == ["doubled"]


def test_a_box_that_was_only_found_may_be_undone_until_it_is_used() -> None:
    found_it = [created(UNKNOWN), ("find", {"mark": "m"}, ACKNOWLEDGED, {"ids": [BOX]})]
    assert kinds(Model(told(*found_it)).compare([])) == []
    assert kinds(Model(told(*found_it, done("start"))).compare([])) == ["lost"]


def test_a_box_is_never_missing_in_between() -> None:
    shown = ("list", {}, ACKNOWLEDGED, {"boxes": [[BOX, "running", "worker-1", 128]], "whole": True})
    missing = ("list", {}, ACKNOWLEDGED, {"boxes": [], "whole": True})
    assert kinds(Model(told(missing, created(), shown, done("remove"), missing)).flaws) == []
    assert kinds(Model(told(created(), missing, done("remove"))).flaws) == ["lost"]
    not_found = Record("c1", "start", {"box": BOX}, 5.0, 6.0, REFUSED, 404)
    assert kinds(Model([*told(created()), not_found]).flaws) == ["lost"]
    assert kinds(Model([*told(created(), done("remove", UNKNOWN)), not_found]).flaws) == []


def test_what_was_started_runs_and_what_was_stopped_does_not() -> None:
    assert kinds(Model(told(created(), done("start"))).compare([row("running")])) == []
    assert kinds(Model(told(created(), done("start"))).compare([row("stopped")])) == ["state"]
    assert kinds(Model(told(created(), done("start"), done("stop"))).compare([row("running")])) == ["state"]
    assert kinds(Model(told(created(), done("start"), done("stop", UNKNOWN))).compare([row("stopped")])) == []


def test_a_file_holds_what_was_written_last() -> None:
    first, second = done("put", path="/a", content="1"), done("put", path="/a", content="2")
    one, two = done("read", path="/a", result={"content": "1"}), done("read", path="/a", result={"content": "2"})
    assert kinds(Model(told(created(), first, one, second, two)).flaws) == []
    assert kinds(Model(told(created(), first, second, one)).flaws) == ["lost"]
    perhaps = done("put", UNKNOWN, path="/a", content="2")
    assert kinds(Model(told(created(), first, perhaps, one)).flaws) == []
    kept = done("snapshot", name="s")
    assert kinds(Model(told(created(), first, kept, second, done("restore", name="s"), one)).flaws) == []
    assert kinds(Model(told(created(), first, kept, second, done("restore", name="s"), two)).flaws) == ["lost"]


def test_a_command_runs_once() -> None:
    ran = [done("exec", nonce="n"), done("output", nonce="n", result={"exit_code": 0, "stdout": "n\n"})]
    for content, flaws in (("n\n", []), ("", ["lost"]), ("n\nn\n", ["doubled"]), ("n\nx\n", ["content"])):
        assert kinds(Model(told(created(), *ran, done("read", path=LOG, result={"content": content}))).flaws) == flaws


def test_each_box_has_one_container_in_its_state_and_nothing_else_is_there() -> None:
    assert kinds(structure(found([row("running")], ("worker-1", BOX, "running")))) == []
    assert kinds(structure(found([row("running")], ("worker-1", BOX, "exited")))) == ["state"]
    assert kinds(structure(found([row("running")], ("worker-2", BOX, "running")))) == ["state"]
    assert kinds(structure(found([row("running")]))) == ["lost"]
    twice = (("worker-1", BOX, "running"), ("worker-2", BOX, "running"))
    assert kinds(structure(found([row("running")], *twice))) == ["doubled"]
    assert kinds(structure(found([], ("worker-1", BOX, "running")))) == ["orphan"]
    image = [{"tags": ["boxlite/box:x"], "labels": {"boxlite.box": BOX}}]
    assert kinds(structure(found([], images=image))) == ["orphan", "orphan"]
    named = [row(name="web"), row(name="web", box_id="another12345")]
    both = (("worker-1", BOX, "created"), ("worker-1", "another12345", "created"))
    assert kinds(structure(found(named, *both))) == ["doubled"]


def test_no_worker_promises_more_than_it_has() -> None:
    capacity = {"max_boxes": 1, "memory_mib": 1024}
    workers = {"workers": [{"name": "w", "capacity": capacity, "reserved": {"boxes": 1, "memory_mib": 128}}]}
    fits = [["a", "running", "w", 128], ["b", "stopped", "w", 128]]
    full = [["a", "running", "w", 128], ["b", "configured", "w", 128]]
    asked = told(("workers", {}, ACKNOWLEDGED, workers))
    assert kinds(oversold([*asked, *told(("list", {}, ACKNOWLEDGED, {"boxes": fits}))])) == []
    assert kinds(oversold([*asked, *told(("list", {}, ACKNOWLEDGED, {"boxes": full}))])) == ["oversold"]


def test_a_seed_is_a_plan_in_which_each_fault_ends() -> None:
    plans = [plan(Random(seed), 900, hosts=3, coordinators=2, database=True) for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]
    assert len(plans[0]) > 50
    assert all(fault.at <= fault.until <= 900 for fault in plans[0])
