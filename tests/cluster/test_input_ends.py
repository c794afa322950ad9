"""The end of a command's input: on terminals, and for commands that nobody feeds; and the size of a terminal."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from support.attach import attached
from support.boxes import execute, start, state
from support.cluster import Cluster, wait_until
from support.sdk import NEWEST, run_sdk

QUIET = "stty -echo; echo ready; "


class TestTerminal:
    @pytest.mark.parametrize("text", [b"", b"line\n", b"abc", b"line\nabc"])
    def test_the_end_of_input_ends_cat(self, cluster: Cluster, running_box: str, text: bytes) -> None:
        execution = execute(cluster, running_box, f"{QUIET}cat; echo; echo over; exit 6", tty=True)
        with attached(cluster, f"{running_box}/executions/{execution}/attach") as client:
            client.until(b"ready\r\n")
            client.send(text)
            client.say(type="stdin_eof")
            assert client.to_the_end() == 6
        assert client.stdout == b"ready\r\n" + text.replace(b"\n", b"\r\n") + b"\r\nover\r\n"

    def test_the_end_comes_behind_input_that_is_read_late(self, cluster: Cluster, running_box: str) -> None:
        execution = execute(cluster, running_box, f"{QUIET}sleep 3; wc -c", tty=True)
        with attached(cluster, f"{running_box}/executions/{execution}/attach") as client:
            client.until(b"ready\r\n")
            client.send(b"0123456789abcde\n" * 65536)
            client.say(type="stdin_eof")
            assert client.to_the_end() == 0
        assert client.stdout.split()[-1] == b"1048576"

    @pytest.mark.parametrize("text", [b"line\n", b"abc"])
    def test_the_end_of_input_ends_a_main_command(
        self, cluster: Cluster, new_box: Callable[..., str], text: bytes
    ) -> None:
        box = new_box(cmd=["sh", "-c", f"{QUIET}cat; exit 6"], tty=True)
        with attached(cluster, f"{box}/attach") as client:
            start(cluster, box)
            client.until(b"ready\r\n")
            client.send(text)
            client.until(text.replace(b"\n", b"\r\n") if text.endswith(b"\n") else b"ready\r\n")
            client.say(type="stdin_eof")
            assert client.to_the_end() == 6
        assert client.stdout == b"ready\r\n" + text.replace(b"\n", b"\r\n")

    @pytest.mark.parametrize("main", [False, True])
    def test_the_end_of_input_ends_a_command_of_a_former_worker_process(
        self, new_cluster: Callable[..., Cluster], test_image: str, main: bool
    ) -> None:
        cluster = new_cluster()
        cluster.start_coordinator()
        worker = cluster.start_worker()
        script = f"{QUIET}cat; exit 6"
        body = {"image": "alpine:latest", "memory_mib": 128, "tty": True, "cmd": ["sh", "-c", script]}
        box = str(cluster.http("POST", "/v1/boxes", body if main else body | {"cmd": ["sleep", "600"]})[2]["box_id"])
        start(cluster, box)
        path = f"{box}/attach"
        if not main:
            path = f"{box}/executions/{execute(cluster, box, script, tty=True)}/attach"
        with attached(cluster, path) as client:
            client.until(b"ready\r\n")
            client.send(b"line\nabc")
            client.until(b"line\r\n")
            client.settle()
            worker.restart()
            client.to_the_cut()
        wait_until(lambda: cluster.http("GET", "/v1/health/ready")[0] == 200, "the worker is back")
        with attached(cluster, path) as client:
            client.say(type="stdin_eof")
            assert client.to_the_end() == 6
        assert client.stdout.endswith(b"abc")
        assert cluster.http("DELETE", f"/v1/boxes/{box}?force=true")[0] == 204

    def test_the_sdk_ends_the_input_of_a_terminal(self, cluster: Cluster, running_box: str) -> None:
        script = """
import asyncio, boxlite, sys

async def main():
    runtime = boxlite.Boxlite.rest(boxlite.BoxliteRestOptions(url=sys.argv[1]))
    box = await runtime.get(sys.argv[2])
    execution = await box.exec("sh", ["-c", "cat; exit 6"], tty=True)
    keys = execution.stdin()
    await keys.send_input(b"abc")
    await keys.close()
    print((await execution.wait()).exit_code)

asyncio.run(main())
"""
        done = run_sdk(NEWEST, script, cluster.url, running_box)
        assert done.stdout == "6\n", done.stdout + done.stderr

    def test_a_shell_and_what_runs_in_it_end(self, cluster: Cluster, running_box: str) -> None:
        execution = execute(cluster, running_box, f"{QUIET}cat; cat; exit 6", tty=True)
        with attached(cluster, f"{running_box}/executions/{execution}/attach") as client:
            client.until(b"ready\r\n")
            client.say(type="stdin_eof")
            assert client.to_the_end() == 6


class TestNobodyFeeds:
    @pytest.mark.parametrize("tty", [False, True])
    def test_a_command_without_input_ends_at_once(self, cluster: Cluster, running_box: str, tty: bool) -> None:
        execution = execute(cluster, running_box, "cat; exit 6", stdin=False, tty=tty)
        wait_until(lambda: state(cluster, running_box, execution)["status"] == "completed", "the command has ended")
        assert state(cluster, running_box, execution)["exit_code"] == 6

    def test_exec_of_our_command_without_i(self, cluster: Cluster, running_box: str) -> None:
        command = [sys.executable, "-m", "boxlite_server.client", "--url", cluster.url, "exec"]
        done = subprocess.run([*command, running_box, "--", "sh", "-c", "cat; exit 6"], capture_output=True, timeout=60)
        assert (done.returncode, done.stdout) == (6, b"")
        script = "cat; echo over >/tmp/over"
        done = subprocess.run([*command, "-d", running_box, "--", "sh", "-c", script], capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
        ended = [*command, running_box, "--", "sh", "-c", "until cat /tmp/over; do sleep 0.1; done"]
        assert subprocess.run(ended, capture_output=True, timeout=60).stdout == b"over\n"

    def test_a_client_that_may_still_send_gets_no_early_end(self, cluster: Cluster, running_box: str) -> None:
        execution = execute(cluster, running_box, "cat; exit 6")
        path = f"{running_box}/executions/{execution}"
        with attached(cluster, f"{path}/attach?stdin=0") as client:
            client.settle()
        with attached(cluster, f"{path}/attach") as client:
            client.settle()
        status = cluster.http(
            "POST", f"/v1/boxes/{path}/input", b"word\n", headers={"Content-Type": "application/octet-stream"}
        )[0]
        assert status == 204
        with attached(cluster, f"{path}/attach") as client:
            client.until(b"word\n")
            client.say(type="stdin_eof")
            assert client.to_the_end() == 6

    def test_what_a_simple_box_can_do(self, cluster: Cluster, test_image: str) -> None:
        """`SimpleBox.exec` says neither that it feeds the command nor that it does not: redirect the input."""
        script = """
import asyncio, boxlite, sys

async def main():
    runtime = boxlite.Boxlite.rest(boxlite.BoxliteRestOptions(url=sys.argv[1]))
    async with boxlite.SimpleBox(image="alpine:latest", memory_mib=128, runtime=runtime) as box:
        done = await box.exec("sh", "-c", "cat </dev/null; exit 6")
        print(done.exit_code)
        await runtime.remove(box.id, force=True)

asyncio.run(main())
"""
        done = run_sdk(NEWEST, script, cluster.url)
        assert done.stdout == "6\n", done.stdout + done.stderr


class TestSize:
    # An engine before API 1.42 makes terminals without a size, and sets it a moment after the start.
    WAIT = 'until [ -n "$(stty size 2>/dev/null)" ]; do :; done; stty size'

    def test_a_new_terminal_has_the_size_that_was_asked_for(self, cluster: Cluster, running_box: str) -> None:
        execution = execute(cluster, running_box, self.WAIT, tty=True, cols=132, rows=40)
        with attached(cluster, f"{running_box}/executions/{execution}/attach") as client:
            assert client.to_the_end() == 0
        assert client.stdout == b"40 132\r\n"

    def test_a_terminal_has_a_size_when_none_was_asked_for(self, cluster: Cluster, running_box: str) -> None:
        execution = execute(cluster, running_box, self.WAIT, tty=True)
        with attached(cluster, f"{running_box}/executions/{execution}/attach") as client:
            assert client.to_the_end() == 0
        assert client.stdout == b"24 80\r\n"

    def test_a_main_command_has_a_size_when_none_was_asked_for(
        self, cluster: Cluster, new_box: Callable[..., str]
    ) -> None:
        box = new_box(cmd=["sh", "-c", self.WAIT], tty=True)
        with attached(cluster, f"{box}/attach") as client:
            start(cluster, box)
            assert client.to_the_end() == 0
        assert client.stdout == b"24 80\r\n"

    @pytest.mark.parametrize("size", [{"cols": 80, "rows": 24}, {"tty": True, "cols": 0}, {"tty": True, "rows": 65536}])
    def test_a_size_that_no_terminal_can_have_is_refused(
        self, cluster: Cluster, running_box: str, size: dict[str, object]
    ) -> None:
        status, _, body = cluster.http("POST", f"/v1/boxes/{running_box}/exec", {"command": "true", **size})
        assert (status, body["error"]["code"]) == (400, "invalid_argument")
