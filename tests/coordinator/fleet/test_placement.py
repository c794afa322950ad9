"""Placement: who is chosen, and what is said of the others."""

from __future__ import annotations

import pytest

from boxlite_server.coordinator.fleet.placement import NOTHING, Candidate, Need, not_placed, place
from boxlite_server.coordinator.store import Load, Worker
from boxlite_server.errors import UpstreamUnavailableError

NO_LOAD = Load()
SMALL = Need(1, 512)


def candidate(
    name: str,
    load: Load = NO_LOAD,
    *,
    cpus: int = 4,
    memory_mib: int = 8192,
    max_boxes: int | None = None,
    cpu_limit: int | None = None,
    status: str = "active",
    reachable: bool = True,
) -> Candidate:
    worker = Worker(name, name, "http://127.0.0.1:1", "s", status, "e", {}, cpus, memory_mib, max_boxes, "", "", 0, 0)
    return Candidate(worker._replace(cpu_limit=cpu_limit), load, reachable)


def names(candidates: list[Candidate], need: Need = SMALL) -> list[str]:
    return [worker.name for worker in place(need, candidates).workers]


def test_the_least_loaded_comes_first() -> None:
    assert names([candidate("a", Load(2, 1024, 2)), candidate("b", Load(1, 512, 1)), candidate("c")]) == ["c", "b", "a"]


def test_load_is_a_share_of_the_workers_own_size() -> None:
    big, small = candidate("big", Load(4, 0, 4), cpus=32), candidate("small", Load(1, 0, 1), cpus=2)
    assert names([small, big]) == ["big", "small"]


def test_the_scarcer_resource_decides() -> None:
    much_memory_used = candidate("a", Load(1, 7000, 1))
    some_cpus_used = candidate("b", Load(2, 1024, 2))
    assert names([much_memory_used, some_cpus_used]) == ["b", "a"]


def test_equal_workers_share_equally() -> None:
    loads = {"a": Load(), "b": Load()}
    for _ in range(20):
        chosen = names([candidate(name, load) for name, load in loads.items()])[0]
        load = loads[chosen]
        loads[chosen] = Load(load.cpus + 1, load.memory_mib + 128, load.boxes + 1)
    assert [load.boxes for load in loads.values()] == [10, 10]


def test_cpus_may_be_promised_twice_but_memory_may_not() -> None:
    assert names([candidate("a", Load(40, 0, 40))]) == ["a"]
    assert names([candidate("a", Load(0, 7681, 1))]) == []


def why_not(need: Need, candidates: list[Candidate], **failed: str) -> str:
    placement = place(need, candidates)
    assert placement.workers == []
    error = not_placed("box", need, placement, {name: UpstreamUnavailableError(text) for name, text in failed.items()})
    assert isinstance(error, UpstreamUnavailableError)
    return error.message


def test_each_filter_tells_how_many_it_removed() -> None:
    candidates = [
        candidate("d1", status="draining"),
        candidate("d2", status="draining", memory_mib=1),
        candidate("full", Load(memory_mib=7168)),
    ]
    assert why_not(Need(1, 4096), candidates) == (
        "no worker can take the box: 2 draining, 1 lacks memory (needs 4096 MiB, has 1024)"
    )


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        ([candidate("a", reachable=False)], "1 unreachable"),
        ([candidate("a", Load(boxes=3), max_boxes=3)], "1 has no place (allows 3 boxes)"),
        ([candidate("a", max_boxes=0), candidate("b", Load(boxes=4), max_boxes=4)], "2 have no place (allows 4 boxes)"),
        ([candidate("a", cpus=1), candidate("b", cpus=2)], "2 are too small (needs 4 cpus, has 2)"),
        ([candidate("a", Load(62), cpu_limit=64)], "1 lacks cpus (needs 4, may promise 2)"),
        ([candidate("a", Load(99), cpu_limit=64)], "1 lacks cpus (needs 4, may promise 0)"),
        (
            [candidate("a", memory_mib=100), candidate("b", Load(0, 8000), memory_mib=8192)],
            "2 lack memory (needs 512 MiB, has 192)",
        ),
    ],
)
def test_a_reason_has_the_number_of_the_one_that_came_closest(refused: list[Candidate], reason: str) -> None:
    assert why_not(Need(4, 512), refused) == f"no worker can take the box: {reason}"


def test_a_worker_is_counted_once() -> None:
    hopeless = candidate("a", Load(99, 9999, 99), status="draining", reachable=False, max_boxes=1, cpu_limit=1)
    assert why_not(Need(9, 9999), [hopeless]) == "no worker can take the box: 1 draining"


def test_only_the_worker_with_the_volumes_counts() -> None:
    candidates = [candidate("a"), candidate("b"), candidate("c", Load(0, 8192))]
    assert why_not(Need(1, 512, worker_id="c"), candidates) == (
        "no worker can take the box: 2 do not have its volumes, 1 lacks memory (needs 512 MiB, has 0)"
    )


def test_those_that_failed_are_told_by_name_and_not_all_of_them() -> None:
    text = why_not(SMALL, [candidate("a", status="draining")], b="engine says no", c="no")
    assert text == "no worker can take the box: 1 draining, 2 failed (b: engine says no; c: no)"
    assert why_not(SMALL, [], **dict.fromkeys("abcde", "no")).endswith(": 5 failed (a: no; b: no; c: no; ...)")


def test_without_workers_it_says_how_to_start_one() -> None:
    assert why_not(SMALL, []).startswith("no worker is registered; start one")


def test_what_takes_no_place_goes_to_a_full_worker_too() -> None:
    assert names([candidate("a", Load(9, 8192, 9), max_boxes=9)], NOTHING) == ["a"]


def test_cpus_are_promised_up_to_the_limit_and_one_box_gets_no_more_than_the_machine_has() -> None:
    assert names([candidate("a", Load(60), cpu_limit=64)], Need(4, 1)) == ["a"]
    assert names([candidate("a", Load(61), cpu_limit=64)], Need(4, 1)) == []
    assert names([candidate("a", cpus=4, cpu_limit=64)], Need(5, 1)) == []
