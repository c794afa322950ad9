"""Placement: who is chosen, and what is said of the others."""

from __future__ import annotations

from boxlite_server.coordinator.scheduler import Candidate, Need, place
from boxlite_server.coordinator.store import Load, Worker

NO_LOAD = Load()
SMALL = Need(1, 512)


def candidate(
    name: str,
    load: Load = NO_LOAD,
    *,
    cpus: int = 4,
    memory_mib: int = 8192,
    max_boxes: int | None = None,
    status: str = "active",
    reachable: bool = True,
) -> Candidate:
    worker = Worker(name, name, "http://127.0.0.1:1", "s", status, "e", {}, cpus, memory_mib, max_boxes, "", "", 0, 0)
    return Candidate(worker, load, reachable)


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


def test_each_refusal_has_its_reason() -> None:
    placement = place(
        Need(8, 512),
        [
            candidate("draining", status="draining", cpus=8),
            candidate("silent", reachable=False, cpus=8),
            candidate("counted", Load(boxes=3), max_boxes=3, cpus=8),
            candidate("small"),
            candidate("full", Load(memory_mib=8000), cpus=8),
        ],
    )
    assert placement.workers == []
    assert placement.refusals == {
        "draining": "is draining",
        "silent": "sends no heartbeat",
        "counted": "holds 3 boxes, its limit",
        "small": "has 4 cpus, the box needs 8",
        "full": "has 192 MiB of memory free, the box needs 512",
    }
