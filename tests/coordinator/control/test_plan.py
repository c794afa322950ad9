"""What follows from rows and inventories, as tables."""

from __future__ import annotations

from typing import Any

import pytest

from boxlite_server.coordinator.control.plan import Action, Inventory, Rows, Subject, actions
from boxlite_server.coordinator.domain.verdict import GONE, OVER, Kind, Seen, judge
from boxlite_server.coordinator.spec import Spec
from boxlite_server.coordinator.store import Box, BoxState, Volume

NOW, GRACE = 1000.0, 60.0
ID = "AbCdEf123456"


def row(status: str, desired: str = "stopped", **fields: Any) -> BoxState:
    return BoxState(ID, 3, status, desired, None, None, False)._replace(**fields)


def seen(status: str, **fields: Any) -> Seen:
    return Seen(ID, 3, status)._replace(**fields)


def judged(box: BoxState, found: Seen | None, life: str | None = "life-2") -> Kind | None:
    verdict = judge(box, found, life)
    return verdict.kind if verdict else None


# What the row says and wants, under which life it ran, and what the worker sees (None: nothing there).
@pytest.mark.parametrize(
    ("status", "desired", "life", "found", "kind"),
    [
        # Row and container agree.
        ("configured", "stopped", None, "configured", None),
        ("stopped", "stopped", None, "stopped", None),
        ("stopped", "stopped", "life-1", "stopped", None),
        ("running", "running", "life-2", "running", None),
        ("paused", "running", "life-2", "paused", None),
        # The row adopts what the container is.
        ("running", "running", None, "running", Kind.ADOPT),
        ("running", "running", "life-1", "running", Kind.ADOPT),
        ("configured", "running", None, "running", Kind.ADOPT),
        ("stopping", "running", "life-2", "running", Kind.ADOPT),
        ("running", "running", "life-2", "paused", Kind.ADOPT),
        ("paused", "running", "life-2", "running", Kind.ADOPT),
        ("failed", "running", None, "running", Kind.ADOPT),
        ("stopping", "stopped", "life-2", "stopped", Kind.ADOPT),
        ("stopping", "stopped", None, "configured", Kind.ADOPT),
        ("configured", "stopped", None, "stopped", Kind.ADOPT),
        ("configured", "stopped", None, "failed", Kind.ADOPT),
        # A stop was broken off, or somebody else started the box.
        ("stopping", "stopped", "life-2", "running", Kind.FINISH_STOP),
        ("stopping", "stopped", "life-2", "paused", Kind.FINISH_STOP),
        ("stopped", "stopped", "life-2", "running", Kind.FINISH_STOP),
        ("configured", "stopped", None, "running", Kind.FINISH_STOP),
        ("creating", "stopped", None, "running", Kind.FINISH_STOP),
        # The box should run and does not.
        ("running", "running", "life-2", "stopped", Kind.SETTLE),
        ("running", "running", None, "stopped", Kind.SETTLE),
        ("configured", "running", None, "stopped", Kind.SETTLE),
        ("configured", "running", None, "failed", Kind.SETTLE),
        ("running", "running", "life-1", "failed", Kind.SETTLE),
        ("running", "running", "life-1", "stopped", Kind.RESTART),
        ("paused", "running", "life-1", "stopped", Kind.RESTART),
        ("configured", "running", OVER, "stopped", Kind.RESTART),
        ("configured", "running", None, "configured", Kind.RESTART),
        ("failed", "running", OVER, "stopped", Kind.RESTART),
        # An operation was broken off.
        ("creating", "stopped", None, "configured", Kind.FINISH_CREATE),
        ("creating", "stopped", None, None, Kind.UNDO_CREATE),
        ("removing", "stopped", None, None, Kind.FINISH_REMOVE),
        ("removing", "stopped", None, "stopped", Kind.FINISH_REMOVE),
        ("removing", "running", "life-2", "running", Kind.FINISH_REMOVE),
        # The container is gone.
        ("running", "running", "life-2", None, Kind.MARK_GONE),
        ("stopped", "stopped", None, None, Kind.MARK_GONE),
        ("configured", "running", OVER, None, Kind.MARK_GONE),
        ("stopping", "stopped", None, None, Kind.MARK_GONE),
        ("failed", "stopped", None, None, Kind.MARK_GONE),
        # What was given up stays failed until somebody starts it.
        ("failed", "stopped", None, "stopped", None),
        ("failed", "stopped", None, "failed", None),
    ],
)
def test_verdicts(status: str, desired: str, life: str | None, found: str | None, kind: Kind | None) -> None:
    box = row(status, desired, engine_life=life)
    assert judged(box, seen(found) if found else None) is kind


def test_a_box_that_was_killed_is_started_again_whatever_the_engines_life() -> None:
    box = row("running", "running", engine_life="life-2")
    assert judged(box, seen("stopped", interrupted=True)) is Kind.RESTART
    assert judged(box._replace(desired="stopped"), seen("stopped", interrupted=True)) is Kind.ADOPT


def test_without_a_known_life_nothing_counts_as_restarted() -> None:
    box = row("running", "running", engine_life="life-1")
    assert judged(box, seen("stopped"), None) is Kind.SETTLE
    assert judged(box, seen("running"), None) is None
    assert judged(box._replace(engine_life=OVER), seen("stopped"), None) is Kind.RESTART


def test_a_box_that_goes_with_its_stop_is_removed_only_when_it_stays_stopped() -> None:
    once = {"auto_remove": True, "engine_life": "life-2"}
    assert judged(row("stopped", **once), seen("stopped")) is Kind.FINISH_REMOVE
    assert judged(row("running", "running", **once), seen("stopped")) is Kind.SETTLE
    assert judged(row("running", "running", **once), seen("stopped"), "life-3") is Kind.RESTART


def test_a_container_that_was_gone_and_is_back_counts_again() -> None:
    box = row("failed", "stopped", error=GONE)
    assert judged(box, seen("stopped")) is Kind.ADOPT
    assert judged(box, None) is None


# ---- whole inventories -----------------------------------------------------------------------------------


def planned(rows: Rows, *boxes: Seen, volumes: tuple[str, ...] = (), due: dict[Any, float] | None = None) -> Any:
    inventory = Inventory("w1", "life-2", boxes, volumes)
    return actions(rows, inventory, NOW, grace=GRACE, due=due or {})


def full_row(worker_id: str, generation: int) -> Box:
    return Box(ID, "p", None, worker_id, generation, "stopped", Spec(), 1, 1, {}, None, None, None, 0, 0, None, None)


def test_all_in_order_is_nothing_to_do() -> None:
    assert planned(Rows([row("stopped")]), seen("stopped")) == []


def test_a_container_without_a_row_waits_for_its_grace() -> None:
    (action,) = planned(Rows([]), seen("stopped"))
    assert action == Action(Kind.REMOVE_ORPHAN, "w1", ID, 3, "no box has it", NOW + GRACE)
    (action,) = planned(Rows([]), seen("stopped"), due={Subject("w1", ID, 3, ""): 960.0})
    assert action.due_at == 960.0
    (action,) = planned(Rows([]), seen("stopped"), due={Subject("w1", ID, 2, ""): 960.0})
    assert action.due_at == NOW + GRACE


def test_the_container_of_a_box_that_is_elsewhere_is_an_orphan_unless_it_is_newer() -> None:
    (action,) = planned(Rows([], {ID: full_row("w2", 4)}), seen("running"))
    assert (action.kind, action.reason) == (Kind.REMOVE_ORPHAN, "the box is on another worker")
    (action,) = planned(Rows([], {ID: full_row("w2", 2)}), seen("running"))
    assert action.kind is Kind.UNKNOWN


def test_another_generation_here_is_an_orphan_only_if_it_is_older() -> None:
    rows = Rows([row("stopped")])
    actions = planned(rows, seen("stopped"), seen("stopped", generation=2))
    assert [(a.kind, a.generation) for a in actions] == [(Kind.REMOVE_ORPHAN, 2)]
    actions = planned(rows, seen("stopped"), seen("stopped", generation=4))
    assert [(a.kind, a.generation) for a in actions] == [(Kind.UNKNOWN, 4)]
    actions = planned(rows, seen("stopped", generation=4))
    assert [a.kind for a in actions] == [Kind.UNKNOWN, Kind.MARK_GONE]


def test_a_box_that_is_being_put_back_has_no_orphans() -> None:
    rows = Rows([row("configured")], unfinished=frozenset({ID}))
    for found in ((), (seen("configured"),), (seen("stopped"), seen("configured", generation=4))):
        assert [a.kind for a in planned(rows, *found)] == [Kind.FINISH_SNAPSHOT]


def test_a_snapshot_without_a_row_is_removed_at_once() -> None:
    inventory = Inventory("w1", "life-2", (seen("stopped"),), snapshots=((ID, "s1"), (ID, "s2")))
    rows = Rows([row("stopped")], snapshots={"s1"})
    (action,) = actions(rows, inventory, NOW, grace=GRACE, due={})
    assert (action.kind, action.box_id, action.snapshot_id) == (Kind.REMOVE_ORPHAN, ID, "s2")
    assert action.due_at == NOW
    (action,) = actions(rows, inventory, NOW, grace=GRACE, due={action.subject: 1050.0})
    assert action.due_at == 1050.0  # it was tried before


def test_the_snapshots_of_a_box_that_goes_as_a_whole_go_with_it() -> None:
    inventory = Inventory("w1", "life-2", (seen("stopped"),), snapshots=((ID, "s1"),))
    (action,) = actions(Rows([]), inventory, NOW, grace=GRACE, due={})
    assert (action.kind, action.generation, action.snapshot_id, action.due_at) == (
        Kind.REMOVE_ORPHAN,
        3,
        "",
        NOW + GRACE,
    )


def test_a_snapshot_of_a_box_with_a_later_generation_is_left_alone() -> None:
    inventory = Inventory("w1", "life-2", (seen("stopped", generation=4),), snapshots=((ID, "s1"),))
    found = actions(Rows([row("stopped")]), inventory, NOW, grace=GRACE, due={})
    assert [(a.kind, a.snapshot_id) for a in found] == [
        (Kind.UNKNOWN, ""),
        (Kind.MARK_GONE, ""),
        (Kind.UNKNOWN, "s1"),
    ]


def test_volumes() -> None:
    def volume(volume_id: str, state: str) -> Volume:
        return Volume(volume_id, "p", volume_id, "w1", state, 0, 0)

    rows = Rows([], volumes=[volume("v1", "ready"), volume("v2", "creating"), volume("v3", "deleting")])
    actions = planned(rows, volumes=("v1", "v2", "v9"))
    assert [(a.kind, a.volume_id, a.box_id) for a in actions] == [
        (Kind.FINISH_VOLUME, "v2", ""),
        (Kind.FINISH_VOLUME, "v3", ""),
        (Kind.UNKNOWN, "v9", ""),
    ]
