"""Attached clients: terminals, main sessions, and connections that break."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from support.attach import Proxy, attached, free, refusal
from support.boxes import create, execute, start, state, status_of
from support.cluster import Cluster, wait_until

from boxlite_server import rpc
from boxlite_server._gen import worker_pb2 as pb
from boxlite_server._gen import worker_pb2_grpc

NUMBERS = "i=0; while [ $i -lt 200000 ]; do echo line $i; i=$((i+1)); done; exit 7"
ALL_NUMBERS = b"".join(b"line %d\n" % i for i in range(200000))


@pytest.fixture
def box(running_box: str) -> str:
    return running_box


@pytest.fixture
def proxy(cluster: Cluster) -> Iterator[Proxy]:
    proxy = Proxy(cluster.port)
    yield proxy
    proxy.close()


class TestTerminal:
    def test_resize_by_request_and_by_frame(self, cluster: Cluster, box: str) -> None:
        script = "trap 'stty size' WINCH; stty -echo; echo ready; while :; do read -t 1 x; done"
        execution = execute(cluster, box, script, tty=True)
        with attached(cluster, f"{box}/executions/{execution}/attach") as client:
            client.until(b"ready")
            status, _, answer = cluster.http(
                "POST", f"/v1/boxes/{box}/executions/{execution}/resize", {"cols": 101, "rows": 33}
            )
            assert status == 204, answer
            client.until(b"33 101\r\n")
            client.say(type="resize", cols=120, rows=40)
            client.until(b"40 120\r\n")
            client.say(type="signal", sig=9)
            assert client.to_the_end() == 137

    def test_open_terminal(self, cluster: Cluster, box: str) -> None:
        query = "command=sh&args=-c&args=stty%20size;%20test%20-t%200%20%26%26%20read%20x%20%26%26%20echo%20got%20$x"
        with attached(cluster, f"{box}/exec/tty?{query}&cols=91&rows=17", channels=False) as client:
            client.send(b"word\n")
            client.until(b"got word\r\n")
            assert client.to_the_end() == 0
            assert re.fullmatch(rb"[0-9a-f]{32}", client.execution_id.encode())
            assert state(cluster, box, client.execution_id)["exit_code"] == 0

    def test_a_terminal_has_the_size_asked_for(self, cluster: Cluster, box: str) -> None:
        with attached(cluster, f"{box}/exec/tty?command=sh&cols=91&rows=17", channels=False) as client:
            client.send(b"stty size\nexit 5\n")
            assert client.to_the_end() == 5
        assert b"17 91" in client.stdout

    def test_what_no_terminal_can_be_opened_for(self, cluster: Cluster, box: str) -> None:
        status, error = refusal(cluster, f"{box}/exec/tty")  # there is no bash
        assert (status, error["code"]) == (422, "execution_failed")
        assert "not found" in error["message"]
        assert refusal(cluster, "nosuch/exec/tty")[0] == 404
        assert refusal(cluster, f"{box}/exec/tty?command=sh&cols=0")[0] == 400
        assert refusal(cluster, f"{box}/exec/tty?command=sh&rows=x")[0] == 400
        assert refusal(cluster, f"{box}/exec/tty?command=s%00h")[0] == 400
        for path in ("exec/tty", "attach"):
            status, _, body = cluster.http("GET", f"/v1/boxes/{box}/{path}")
            assert (status, body["error"]["code"]) == (426, "invalid_argument")

    def test_a_main_command_on_a_terminal(self, cluster: Cluster, new_box: Any) -> None:
        box = new_box(cmd=["sh"], tty=True)
        with attached(cluster, f"{box}/attach") as client:
            start(cluster, box)
            client.send(b"stty size; tty; echo $((6*7))\n")
            client.until(b"42\r\n")
            assert b"/dev/" in client.stdout
            client.say(type="resize", cols=70, rows=20)
            client.send(b"stty size\n")
            client.until(b"20 70\r\n")
            client.send(b"exit 3\n")
            assert client.to_the_end() == 3


class TestMainSession:
    def test_nothing_runs_before_start(self, cluster: Cluster, new_box: Any) -> None:
        box = new_box(cmd=["sh", "-c", "echo begun; cat; exit 4"])
        with attached(cluster, f"{box}/attach") as client:
            assert status_of(cluster, box) == "configured"
            client.send(b"early\n")
            assert state(cluster, box, client.execution_id)["status"] == "running"
            start(cluster, box)
            client.until(b"early\n")
            client.say(type="stdin_eof")
            assert client.to_the_end() == 4
        assert client.stdout == b"begun\nearly\n"
        wait_until(lambda: status_of(cluster, box) == "stopped", "the box is seen to have stopped")

    def test_a_running_box_tells_what_it_said(self, cluster: Cluster, new_box: Any) -> None:
        box = new_box(cmd=["sh", "-c", "echo begun; read x; echo $x >&2; exit 2"])
        start(cluster, box)
        with attached(cluster, f"{box}/attach") as client:
            client.until(b"begun\n")
            client.send(b"over\n")
            assert client.to_the_end() == 2
        assert (client.stdout, client.stderr) == (b"begun\n", b"over\n")

    def test_one_client_at_a_time(self, cluster: Cluster, new_box: Any) -> None:
        box = new_box(cmd=["cat"])
        with attached(cluster, f"{box}/attach") as client:
            status, error = refusal(cluster, f"{box}/attach")
            assert (status, error["code"]) == (409, "already_exists")
            assert refusal(cluster, f"{box}/executions/{client.execution_id}/attach")[0] == 409
            execution = client.execution_id
        with attached(cluster, f"{box}/attach") as client:
            assert client.execution_id == execution

    def test_after_the_end_the_next_run_is_attached(self, cluster: Cluster, new_box: Any) -> None:
        box = new_box(cmd=["sh", "-c", "echo run; exit 3"])
        executions = []
        for _ in range(2):
            with attached(cluster, f"{box}/attach") as client:
                executions.append(client.execution_id)
                start(cluster, box)
                assert (client.to_the_end(), client.stdout) == (3, b"run\n")
            wait_until(lambda: status_of(cluster, box) == "stopped", "the box is seen to have stopped")
        assert executions[0] != executions[1]
        # A run that is over can still be read by its own id.
        with attached(cluster, f"{box}/executions/{executions[0]}/attach") as client:
            assert client.to_the_end() == 3

    def test_without_input_nothing_is_taken_and_nothing_ends(self, cluster: Cluster, new_box: Any) -> None:
        box = new_box(cmd=["cat"])
        with attached(cluster, f"{box}/attach?stdin=0") as client:
            start(cluster, box)
            client.send(b"ignored\n")
            client.say(type="stdin_eof")
            while not client.complaints:
                client.step()
            assert "stdin=0" in client.complaints[0]["message"]
        with attached(cluster, f"{box}/attach") as client:
            client.send(b"taken\n")
            client.say(type="stdin_eof")
            assert client.to_the_end() == 0
        assert client.stdout == b"taken\n"
        assert refusal(cluster, f"{box}/attach?stdin=2")[0] == 400
        assert refusal(cluster, "nosuch/attach")[0] == 404


class TestReattach:
    @pytest.mark.parametrize("tty", [False, True])
    @pytest.mark.parametrize("limit", [3_000, 200_001, 1_500_000])
    def test_a_client_that_counts_gets_every_byte_once(self, cluster: Cluster, box: str, tty: bool, limit: int) -> None:
        proxy = Proxy(cluster.port, limit)
        execution = execute(cluster, box, NUMBERS, tty=tty)
        path, output = f"{box}/executions/{execution}/attach", b""
        try:
            for _ in range(3):
                with attached(cluster, f"{path}?received={len(output)}", port=proxy.port) as client:
                    client.to_the_cut()
                    output += client.stdout
                wait_until(lambda: free(cluster, path), "the dead client is noticed")
            with attached(cluster, f"{path}?received={len(output)}") as client:
                assert client.to_the_end() == 7
                output += client.stdout
        finally:
            proxy.close()
        assert output == (ALL_NUMBERS.replace(b"\n", b"\r\n") if tty else ALL_NUMBERS)

    @pytest.mark.parametrize("tty", [False, True])
    def test_a_client_that_does_not_count_misses_nothing(self, cluster: Cluster, box: str, tty: bool) -> None:
        """Released SDKs say nothing of what they have: what they did not confirm comes again."""
        proxy = Proxy(cluster.port, 1_000_000)
        execution = execute(cluster, box, NUMBERS, tty=tty)
        path = f"{box}/executions/{execution}/attach"
        try:
            with attached(cluster, path, port=proxy.port) as first:
                first.to_the_cut()
        finally:
            proxy.close()
        wait_until(lambda: free(cluster, path), "the dead client is noticed")
        with attached(cluster, path) as second:
            assert second.to_the_end() == 7
        whole = ALL_NUMBERS.replace(b"\n", b"\r\n") if tty else ALL_NUMBERS
        assert whole.startswith(first.stdout)
        assert whole.endswith(second.stdout)
        assert len(first.stdout) + len(second.stdout) >= len(whole)

    @pytest.mark.parametrize("tty", [False, True])
    def test_what_was_confirmed_does_not_come_again(self, cluster: Cluster, box: str, proxy: Proxy, tty: bool) -> None:
        script = "stty -echo -onlcr 2>/dev/null; while read x; do echo got $x; done"
        execution = execute(cluster, box, script, tty=tty)
        path = f"{box}/executions/{execution}/attach"
        for number in range(3):
            with attached(cluster, path, port=proxy.port) as client:
                client.send(b"%d\n" % number)
                client.until(b"got %d\n" % number)
                client.settle()
                proxy.cut()
                client.to_the_cut()
                assert client.stdout == b"got %d\n" % number
            wait_until(lambda: free(cluster, path), "the dead client is noticed")
        with attached(cluster, path) as client:
            client.say(type="signal", sig=9)
            assert client.to_the_end() == 137
            assert client.stdout == b""

    @pytest.mark.parametrize("end", ["stop", "kill"])
    def test_a_restarted_coordinator_goes_on_where_it_was(self, new_cluster: Any, test_image: str, end: str) -> None:
        cluster: Cluster = new_cluster()
        coordinator = cluster.start_coordinator()
        cluster.start_worker()
        box = create(cluster)
        start(cluster, box)
        execution = execute(cluster, box, "while read x; do echo got $x; done; exit 6")
        path = f"{box}/executions/{execution}/attach"
        with attached(cluster, path) as client:
            client.send("zwölf\n".encode())
            client.until("got zwölf\n".encode())
            client.settle()
            wait_until(lambda: confirmed(cluster, box, execution) == 11, "the worker knows")
            getattr(coordinator, end)()
            client.to_the_cut()
        coordinator.start()
        with attached(cluster, path) as client:
            client.send(b"two\n")
            client.say(type="stdin_eof")
            assert client.to_the_end() == 6
        assert client.stdout == b"got two\n"
        with attached(cluster, f"{path}?received=0") as client:
            assert client.to_the_end() == 6
        assert client.stdout == "got zwölf\ngot two\n".encode()
        assert cluster.http("DELETE", f"/v1/boxes/{box}?force=true")[0] == 204


def confirmed(cluster: Cluster, box: str, execution: str) -> int:
    """How much of the output the worker knows to have arrived."""
    worker = cluster.workers[0]
    secret = json.loads((worker.home / "worker.json").read_text())["secret"]
    with grpc.insecure_channel(f"127.0.0.1:{worker.port}") as channel:
        stub = worker_pb2_grpc.WorkerServiceStub(channel)
        ref = pb.ExecutionRef(box_id=box, execution_id=execution)
        found = stub.GetExecution(ref, metadata=rpc.with_secret(secret), timeout=60)
        return int(found.delivered.bytes)
