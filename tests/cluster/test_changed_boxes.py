"""Boxes that get other limits while they run, as programs in them see it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support.boxes import create, start
from support.cluster import Cluster

# The limits of the box, on either version of cgroups.
LIMITS = (
    "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max 2>/dev/null || "
    "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/cpu/cpu.cfs_quota_us"
)


@pytest.fixture
def box(cluster: Cluster, test_image: str) -> Iterator[str]:
    box = create(cluster, image=test_image, memory_mib=128)
    yield box
    cluster.http("DELETE", f"/v1/boxes/{box}?force=true")


def run(cluster: Cluster, box: str, script: str) -> str:
    status, _, answer = cluster.http("POST", f"/v1/boxes/{box}/run", {"command": "sh", "args": ["-c", script]})
    assert status == 200, answer
    return str(answer["stdout"])


def patch(cluster: Cluster, box: str, headers: Any = None, **fields: Any) -> tuple[int, Any]:
    status, _, answer = cluster.http("PATCH", f"/v1/boxes/{box}", fields, headers=headers)
    return status, answer


def test_a_running_box_has_its_new_limits_at_once(cluster: Cluster, box: str) -> None:
    start(cluster, box)
    assert run(cluster, box, LIMITS).split()[0] == str(128 << 20)
    status, changed = patch(cluster, box, memory_mib=256, name="grown", labels={"a": "b"})
    assert status == 200, changed
    assert (changed["memory_mib"], changed["name"], changed["labels"]) == (256, "grown", {"a": "b"})
    assert run(cluster, "grown", LIMITS).split()[0] == str(256 << 20)
    assert cluster.http("GET", "/v1/boxes/grown")[2]["memory_mib"] == 256
    assert cluster.http("GET", "/v1/boxes?label=a=b")[2]["boxes"][0]["box_id"] == box


def test_a_stopped_box_has_its_new_limits_at_its_next_start(cluster: Cluster, box: str) -> None:
    start(cluster, box)
    assert cluster.http("POST", f"/v1/boxes/{box}/stop")[0] == 200
    assert patch(cluster, box, memory_mib=192)[0] == 200
    start(cluster, box)
    assert run(cluster, box, LIMITS).split()[0] == str(192 << 20)


def test_a_box_that_uses_more_memory_keeps_its_limit(cluster: Cluster, test_image: str) -> None:
    box = create(cluster, image=test_image, memory_mib=512)
    start(cluster, box)
    run(cluster, box, "head -c 200000000 /dev/zero > /dev/shm/f")  # which counts as memory of the box
    status, answer = patch(cluster, box, memory_mib=128, labels={"a": "b"})
    assert (status, answer.get("error", {}).get("code")) == (409, "invalid_state"), answer
    assert run(cluster, box, LIMITS).split()[0] == str(512 << 20)
    shown = cluster.http("GET", f"/v1/boxes/{box}")[2]
    assert (shown["memory_mib"], shown["labels"]) == (512, {})
    assert patch(cluster, box, memory_mib=384)[0] == 200
    assert cluster.http("DELETE", f"/v1/boxes/{box}?force=true")[0] == 204


def test_what_cannot_be_is_refused_and_changes_nothing(cluster: Cluster, box: str) -> None:
    before = cluster.http("GET", f"/v1/boxes/{box}")[2]
    status, answer = patch(cluster, box, image="other", labels={"a": "b"})
    assert (status, answer["error"]["code"]) == (400, "unsupported")
    assert "'image'" in answer["error"]["message"]
    assert patch(cluster, box, memory_mib=1)[0] == 400
    assert patch(cluster, box, cpus=255)[0] == 429
    assert patch(cluster, "nosuchbox", labels={})[0] == 404
    assert cluster.http("GET", f"/v1/boxes/{box}")[2] == before


def test_a_repeated_change_is_made_once(cluster: Cluster, box: str) -> None:
    headers = {"Idempotency-Key": f"change-{box}"}
    first = patch(cluster, box, headers, labels={"a": "1"})
    assert patch(cluster, box, labels={"a": "2"})[0] == 200
    assert patch(cluster, box, headers, labels={"a": "1"}) == first
    assert cluster.http("GET", f"/v1/boxes/{box}")[2]["labels"] == {"a": "2"}
    assert patch(cluster, box, headers, labels={"a": "3"})[0] == 422
