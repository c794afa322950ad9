"""The executions of a box, page by page."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from support.boxes import execute, start, state
from support.cluster import Cluster, wait_until

from boxlite_server.coordinator.http import views


def page(cluster: Cluster, box: str, query: str = "") -> dict[str, Any]:
    status, _, answer = cluster.http("GET", f"/v1/boxes/{box}/executions?{query}")
    assert status == 200, answer
    return dict(answer)


def test_executions_are_listed_while_they_run_and_when_they_have_ended(
    cluster: Cluster, new_box: Callable[..., str]
) -> None:
    box, other = new_box(), new_box()
    start(cluster, box)
    start(cluster, other)
    assert page(cluster, box) == {"executions": [], "next_page_token": None}
    execute(cluster, other, "true")
    runs, ends = execute(cluster, box, "sleep 1000"), execute(cluster, box, "exit 3")
    wait_until(lambda: state(cluster, box, ends)["exit_code"] == 3, "the end of the command")
    listed = page(cluster, box)["executions"]
    assert [each["execution_id"] for each in listed] == [runs, ends]
    assert listed == [state(cluster, box, runs), state(cluster, box, ends)]
    assert cluster.http("GET", "/v1/boxes/nosuchbox/executions")[0] == 404


def test_executions_come_in_pages_that_hold_each_once(cluster: Cluster, new_box: Callable[..., str]) -> None:
    box = new_box()
    start(cluster, box)
    made = [execute(cluster, box, "true") for _ in range(6)]
    seen: list[str] = []
    token, pages = "", 0
    while token is not None:
        found = page(cluster, box, f"page_size=2&page_token={token}" if token else "page_size=2")
        seen += [each["execution_id"] for each in found["executions"]]
        token, pages = found["next_page_token"], pages + 1
    assert (sorted(seen), pages) == (sorted(made), 3)
    assert page(cluster, box, "page_size=6")["next_page_token"] is None
    for wrong in ("x", "WzFlNDAwLCAieCJd", views.encode_token((2**63, "x"))):
        assert cluster.http("GET", f"/v1/boxes/{box}/executions?page_token={wrong}")[0] == 400


def named(listed: list[dict[str, Any]]) -> list[tuple[str | None, list[str], bool]]:
    return [(each["command"], each["args"], each["command_truncated"]) for each in listed]


def test_a_listed_execution_names_its_command_also_after_a_restart_of_the_worker(
    cluster: Cluster, new_box: Callable[..., str]
) -> None:
    box = new_box()
    start(cluster, box)
    long = ["sh", "-c", "exit 0", "x" * 3000, "y"]
    for command, *args in (["sleep", "1000"], long, ["true", *["ü"] * 1000]):
        body = {"command": command, "args": args, "env": {"TOKEN": "secret"}}
        status, _, answer = cluster.http("POST", f"/v1/boxes/{box}/exec", body)
        assert status == 201, answer
    at_most = 1024
    shown = [
        ("sleep", ["1000"], False),
        ("sh", ["-c", "exit 0", "x" * (at_most - len("sh -c exit 0 "))], True),
        ("true", ["ü"] * ((at_most - len("true ")) // 2 + 1), True),
    ]
    listed = page(cluster, box)["executions"]
    assert named(listed) == shown
    assert "secret" not in str(listed)
    cluster.workers[0].restart()
    wait_until(lambda: cluster.http("GET", f"/v1/boxes/{box}/executions")[0] == 200, "the worker's return")
    assert named(page(cluster, box)["executions"]) == shown
    assert named([state(cluster, box, each["execution_id"]) for each in listed]) == shown


def test_a_command_that_a_request_waits_for_is_listed_by_its_name(
    cluster: Cluster, new_box: Callable[..., str]
) -> None:
    box = new_box()
    start(cluster, box)
    body = {"command": "sh", "args": ["-c", "until [ -e /end ]; do sleep 0.05; done; echo seen"]}
    with ThreadPoolExecutor() as pool:
        running = pool.submit(cluster.http, "POST", f"/v1/boxes/{box}/run", body)
        wait_until(lambda: page(cluster, box)["executions"], "the command")
        assert named(page(cluster, box)["executions"]) == [(body["command"], body["args"], False)]
        execute(cluster, box, "touch /end")
        assert running.result()[2]["stdout"] == "seen\n"
        assert "command" not in running.result()[2]
