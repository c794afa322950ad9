"""A box that hits its memory limit: who is told."""

from __future__ import annotations

from collections.abc import Callable

from support import boxes
from support.attach import Attached, attached
from support.cluster import Cluster, wait_until

SAID = "memory limit of 128 MiB"


def complaints(client: Attached) -> list[str]:
    return [complaint["message"] for complaint in client.complaints]


def test_a_command_that_is_killed_for_want_of_memory_says_so(cluster: Cluster, running_box: str) -> None:
    execution = boxes.execute(cluster, running_box, "exec tail /dev/zero")
    with attached(cluster, f"{running_box}/executions/{execution}/attach") as client:
        assert client.to_the_end() == 137
    assert len(client.complaints) == 1
    assert SAID in complaints(client)[0]
    assert SAID in boxes.state(cluster, running_box, execution)["error_message"]
    status, _, metrics = cluster.http("GET", f"/v1/boxes/{running_box}/metrics")
    assert (status, metrics["memory_limit_kills_total"]) == (200, 1)
    assert boxes.status_of(cluster, running_box) == "running"


def test_a_shell_that_loses_its_child_says_so(cluster: Cluster, running_box: str) -> None:
    execution = boxes.execute(cluster, running_box, "tail /dev/zero; exit 3")
    with attached(cluster, f"{running_box}/executions/{execution}/attach") as client:
        assert client.to_the_end() == 3
    assert SAID in boxes.state(cluster, running_box, execution)["error_message"]


def test_no_other_end_is_taken_for_want_of_memory(cluster: Cluster, running_box: str) -> None:
    first = boxes.execute(cluster, running_box, "tail /dev/zero")
    with attached(cluster, f"{running_box}/executions/{first}/attach") as client:
        client.to_the_end()
    for script in ("kill -9 $$", "exit 1", "exit 0"):
        execution = boxes.execute(cluster, running_box, script)
        with attached(cluster, f"{running_box}/executions/{execution}/attach") as client:
            client.to_the_end()
        assert client.complaints == []
        assert boxes.state(cluster, running_box, execution)["error_message"] is None


def test_a_main_command_that_is_killed_for_want_of_memory_says_so(
    cluster: Cluster, new_box: Callable[..., str]
) -> None:
    box = new_box(cmd=["sh", "-c", "test -e /again && exec sleep 1000; touch /again; exec tail /dev/zero"])
    with attached(cluster, f"{box}/attach") as client:
        boxes.start(cluster, box)
        assert client.to_the_end() == 137
    assert SAID in complaints(client)[-1]
    wait_until(lambda: boxes.status_of(cluster, box) == "stopped", "the box is seen to stop")
    found = cluster.http("GET", f"/v1/boxes/{box}")[2]
    assert found["exit_code"] == 137
    assert SAID in found["error_message"]
    boxes.start(cluster, box)
    assert cluster.http("GET", f"/v1/boxes/{box}")[2]["error_message"] is None
