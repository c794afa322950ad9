"""One request for one command, on a real cluster."""

from __future__ import annotations

import base64
import http.client
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support.boxes import create, execute, start, state
from support.cluster import Cluster, wait_until


@pytest.fixture
def box(running_box: str) -> str:
    return running_box


def run(cluster: Cluster, box: str, script: str, *, headers: dict[str, str] | None = None, **fields: Any) -> Any:
    body = {"command": "sh", "args": ["-c", script], **fields}
    status, _, answer = cluster.http("POST", f"/v1/boxes/{box}/run", body, headers=headers or {})
    assert status == 200, answer
    return answer


def events(answer: bytes) -> list[tuple[str, Any]]:
    blocks = [block.splitlines() for block in answer.decode().split("\n\n") if block.startswith("event")]
    return [(lines[0].removeprefix("event: "), json.loads(lines[-1].removeprefix("data: "))) for lines in blocks]


def live(cluster: Cluster, box: str, mark: str) -> bool:
    """Whether a process with these arguments runs in the box."""
    script = (
        f"for each in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$each; done 2>/dev/null | grep -q '[{mark[0]}]{mark[1:]}'"
    )
    return bool(run(cluster, box, script)["exit_code"] == 0)


def test_exit_code_and_output(cluster: Cluster, box: str) -> None:
    answer = run(
        cluster, box, "tr a-z A-Z; pwd >&2; echo $A >&2; exit 3", stdin="hé\n", working_dir="/tmp", env={"A": "b"}
    )
    assert answer.pop("execution_id")
    assert answer.pop("duration_ms") < 60_000
    assert answer == {
        **{"status": "completed", "exit_code": 3, "error_message": None},
        **{"stdout": "Hé\n", "stdout_truncated": False, "stdout_dropped_bytes": 0},
        **{"stderr": "/tmp\nb\n", "stderr_truncated": False, "stderr_dropped_bytes": 0},
    }


def test_bytes_go_in_and_out_unchanged(cluster: Cluster, box: str) -> None:
    data = base64.b64encode(bytes(range(256)) * 4096).decode()
    answer = run(cluster, box, "cat", stdin_base64=data, encoding="base64")
    assert answer["stdout_base64"] == data


def test_long_output_is_cut_and_counted(cluster: Cluster, box: str) -> None:
    answer = run(cluster, box, "head -c 3000000 /dev/zero | tr '\\0' x; echo short >&2")
    assert (answer["stdout"], answer["stderr"]) == ("x" * 2**20, "short\n")
    assert (answer["stdout_truncated"], answer["stdout_dropped_bytes"]) == (True, 3_000_000 - 2**20)
    assert (answer["stderr_truncated"], answer["stderr_dropped_bytes"]) == (False, 0)


def test_a_time_limit_is_no_error_of_the_request(cluster: Cluster, box: str) -> None:
    answer = run(cluster, box, "echo begun; sleep 1000", timeout_seconds=0.5)
    assert (answer["status"], answer["exit_code"], answer["stdout"]) == ("timed_out", 137, "begun\n")
    assert "time limit" in answer["error_message"]


def test_a_program_that_is_not_there_is_an_error(cluster: Cluster, box: str) -> None:
    status, _, answer = cluster.http("POST", f"/v1/boxes/{box}/run", {"command": "nosuch"})
    assert (status, answer["error"]["code"]) == (422, "execution_failed")


def test_a_box_that_does_not_run_is_started(cluster: Cluster, test_image: str) -> None:
    box = create(cluster)
    assert run(cluster, box, "echo up")["stdout"] == "up\n"
    assert cluster.http("POST", f"/v1/boxes/{box}/stop", {"timeout_seconds": 0})[0] == 200
    assert run(cluster, box, "echo again")["stdout"] == "again\n"
    assert cluster.http("DELETE", f"/v1/boxes/{box}?force=true")[0] == 204


def test_a_stream_has_its_events_as_they_happen(cluster: Cluster, box: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", cluster.port, timeout=60)
    body = json.dumps({"command": "sh", "args": ["-c", "echo one; until test -e go-on; do sleep 0.02; done; exit 4"]})
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
    connection.request("POST", f"/v1/boxes/{box}/run", body, headers)
    answer = connection.getresponse()
    execution = answer.headers["x-boxlite-execution-id"]
    first = b"".join(answer.readline() for _ in range(3))
    assert events(first) == [("stdout", {"data": base64.b64encode(b"one\n").decode()})]
    assert state(cluster, box, execution)["status"] == "running"
    run(cluster, box, "touch go-on")
    ((name, end),) = events(answer.read())
    assert (name, end["exit_code"]) == ("exit", 4)
    connection.close()


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_a_client_that_goes_away_takes_its_command_with_it(cluster: Cluster, box: str, accept: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", cluster.port, timeout=60)
    mark = f"sleep 71{len(accept)}"
    body = json.dumps({"command": "sh", "args": ["-c", f"setsid {mark} & {mark}"]})
    headers = {"Content-Type": "application/json", "Accept": accept}
    connection.request("POST", f"/v1/boxes/{box}/run", body, headers)
    wait_until(lambda: live(cluster, box, mark), "the command runs")
    connection.close()
    wait_until(lambda: not live(cluster, box, mark), "the command is killed")


def test_a_client_with_a_key_finds_its_command_again(cluster: Cluster, box: str) -> None:
    key = {"Idempotency-Key": f"run {box}"}
    script = "echo x >>times; cat times; until test -e go-on; do sleep 0.02; done; rm go-on; cat"
    body = {"command": "sh", "args": ["-c", script], "stdin": "fed"}
    connection = http.client.HTTPConnection("127.0.0.1", cluster.port, timeout=60)
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream", **key}
    connection.request("POST", f"/v1/boxes/{box}/run", json.dumps(body), headers)
    answer = connection.getresponse()
    execution = answer.headers["x-boxlite-execution-id"]
    answer.readline()
    connection.close()
    answer.close()
    threading.Timer(0.1, lambda: execute(cluster, box, "touch go-on")).start()
    status, sent, again = cluster.http(
        "POST", f"/v1/boxes/{box}/run", body, headers={**key, "Accept": "text/event-stream"}
    )
    assert (status, sent["x-boxlite-execution-id"]) == (200, execution)
    said = b"".join(base64.b64decode(data["data"]) for name, data in events(again) if name == "stdout")
    assert said == b"x\nfed"
    assert state(cluster, box, execution)["exit_code"] == 0


def test_a_command_is_counted(cluster: Cluster, box: str) -> None:
    def counts() -> tuple[int, int]:
        found = cluster.http("GET", f"/v1/boxes/{box}/metrics")[2]
        return found["commands_executed_total"], found["exec_errors_total"]

    run(cluster, box, "true")
    cluster.http("POST", f"/v1/boxes/{box}/run", {"command": "nosuch"})
    assert counts() == (1, 1)


@pytest.fixture(scope="module")
def own(new_shared_cluster: Any, test_image: str) -> Cluster:
    """A cluster whose processes the tests of this module may kill."""
    cluster: Cluster = new_shared_cluster()
    cluster.start_coordinator()
    cluster.start_worker()
    return cluster


class TestRestarts:
    """Of the processes under commands that somebody waits for."""

    @pytest.fixture
    def box(self, own: Cluster) -> Iterator[str]:
        box = create(own)
        start(own, box)
        yield box
        assert own.http("DELETE", f"/v1/boxes/{box}?force=true")[0] == 204

    def ask(self, cluster: Cluster, box: str, mark: str, **headers: str) -> list[int]:
        """Have a thread send a request for a command with this mark, and wait until the command runs. Returns where the
        status of the answer will be, 0 for a connection that breaks."""
        answers: list[int] = []

        def send() -> None:
            body = {"command": "sh", "args": ["-c", f"sleep {mark} & wait"]}
            try:
                answers.append(cluster.http("POST", f"/v1/boxes/{box}/run", body, headers=headers)[0])
            except (OSError, http.client.HTTPException):
                answers.append(0)

        threading.Thread(target=send, daemon=True).start()
        wait_until(lambda: live(cluster, box, f"sleep {mark}"), f"{mark} runs")
        return answers

    def test_a_killed_worker_takes_the_commands_of_requests_with_it_and_keeps_the_others(
        self, own: Cluster, box: str
    ) -> None:
        lost = self.ask(own, box, "7201")
        kept = self.ask(own, box, "7202", **{"Idempotency-Key": "k"})
        own.workers[0].kill()
        wait_until(lambda: lost == kept == [503], "both requests are answered")
        own.workers[0].start()
        wait_until(lambda: own.http("GET", f"/v1/boxes/{box}")[2]["status"] == "running", "the worker is back")
        wait_until(lambda: not live(own, box, "sleep 7201"), "the command of the lost request is killed")
        assert live(own, box, "sleep 7202")

    def test_so_does_a_killed_coordinator(self, own: Cluster, box: str) -> None:
        assert own.coordinator is not None
        lost = self.ask(own, box, "7203")
        kept = self.ask(own, box, "7204", **{"Idempotency-Key": "l"})
        own.coordinator.kill()
        own.coordinator.start()
        wait_until(lambda: lost == kept == [0], "both connections are broken")
        wait_until(lambda: not live(own, box, "sleep 7203"), "the command of the lost request is killed")
        assert live(own, box, "sleep 7204")
