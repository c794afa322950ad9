"""Attached clients: terminals, main sessions, connections that break, readers that do not read."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.attach import Attached, Proxy, attached, refusal
from support.cluster import Cluster, Process, wait_until

from boxlite_server import rpc
from boxlite_server._gen import worker_pb2 as pb
from boxlite_server._gen import worker_pb2_grpc
from boxlite_server.worker.output_log import DEFAULT_CAPACITY, MAX_CHUNK

BOX = {"memory_mib": 128}
NUMBERS = "i=0; while [ $i -lt 200000 ]; do echo line $i; i=$((i+1)); done; exit 7"
ALL_NUMBERS = b"".join(b"line %d\n" % i for i in range(200000))


def create(cluster: Cluster, **fields: Any) -> str:
    status, _, box = cluster.http("POST", "/v1/boxes", {"image": "alpine:latest", **BOX, **fields})
    assert status == 201, box
    return str(box["box_id"])


def start(cluster: Cluster, box: str) -> None:
    assert cluster.http("POST", f"/v1/boxes/{box}/start")[0] == 200


def execute(cluster: Cluster, box: str, script: str, **fields: Any) -> str:
    body = {"command": "sh", "args": ["-c", script], **fields}
    status, _, execution = cluster.http("POST", f"/v1/boxes/{box}/exec", body)
    assert status == 201, execution
    return str(execution["execution_id"])


def state(cluster: Cluster, box: str, execution: str) -> dict[str, Any]:
    status, _, found = cluster.http("GET", f"/v1/boxes/{box}/executions/{execution}")
    assert status == 200, found
    return dict(found)


def status_of(cluster: Cluster, box: str) -> str:
    return str(cluster.http("GET", f"/v1/boxes/{box}")[2]["status"])


@pytest.fixture
def new_box(cluster: Cluster, test_image: str) -> Iterator[Any]:
    made: list[str] = []

    def new(**fields: Any) -> str:
        made.append(create(cluster, **fields))
        return made[-1]

    yield new
    for box in made:
        cluster.http("DELETE", f"/v1/boxes/{box}?force=true")


@pytest.fixture
def box(cluster: Cluster, new_box: Any) -> str:
    box = str(new_box())
    start(cluster, box)
    return box


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
                # Its answer to the last ping is behind this one's round trip.
                assert client.connection.ping().wait(30)
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
            assert client.connection.ping().wait(30)
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


class TestHangup:
    """With a grace of one second."""

    @pytest.fixture
    def hasty(self, new_cluster: Any, test_image: str) -> Cluster:
        cluster: Cluster = new_cluster()
        cluster.start_coordinator("--reconnect-grace", "1")
        cluster.start_worker()
        return cluster

    @pytest.fixture
    def box(self, hasty: Cluster) -> Iterator[str]:
        box = create(hasty)
        start(hasty, box)
        yield box
        assert hasty.http("DELETE", f"/v1/boxes/{box}?force=true")[0] == 204

    def test_a_terminal_without_its_client_is_hung_up(self, hasty: Cluster, box: str) -> None:
        execution = execute(hasty, box, "trap 'echo hung up >/tmp/hup; exit 9' HUP; echo ready; read x", tty=True)
        with attached(hasty, f"{box}/executions/{execution}/attach") as client:
            client.until(b"ready")
        wait_until(lambda: state(hasty, box, execution)["status"] == "completed", "it is hung up")
        assert state(hasty, box, execution)["exit_code"] == 9

    def test_what_runs_in_the_terminal_ends_with_it(self, hasty: Cluster, box: str) -> None:
        with attached(hasty, f"{box}/exec/tty?command=sh", channels=False) as client:
            client.send(b"sleep 54321\n")
            client.until(b"54321\r\n")
            execution = client.execution_id
        wait_until(lambda: state(hasty, box, execution)["exit_code"] == 129, "the shell is hung up")
        wait_until(lambda: "54321" not in ps(hasty, box), "its command has ended, too")

    def test_a_command_without_a_terminal_goes_on(self, hasty: Cluster, box: str) -> None:
        plain = execute(hasty, box, "echo ready; read x")
        terminal = execute(hasty, box, "echo ready; read x", tty=True)
        for execution in (plain, terminal):
            with attached(hasty, f"{box}/executions/{execution}/attach") as client:
                client.until(b"ready")
        wait_until(lambda: state(hasty, box, terminal)["status"] == "completed", "the terminal is hung up")
        assert state(hasty, box, plain)["status"] == "running"

    def test_the_grace_outlives_the_coordinator(self, hasty: Cluster, box: str) -> None:
        execution = execute(hasty, box, "echo ready; read x", tty=True)
        assert hasty.coordinator is not None
        with attached(hasty, f"{box}/executions/{execution}/attach") as client:
            client.until(b"ready")
            hasty.coordinator.kill()
            client.to_the_cut()
        hasty.coordinator.start()
        wait_until(lambda: state(hasty, box, execution)["status"] == "completed", "it is hung up")

    @pytest.mark.parametrize("detach", [False, True])
    def test_a_main_command_is_hung_up_only_with_a_box_that_is_its_clients(self, hasty: Cluster, detach: bool) -> None:
        box = create(hasty, cmd=["sh"], tty=True, detach=detach)
        with attached(hasty, f"{box}/attach") as client:
            start(hasty, box)
            client.send(b"echo $((6*7))\n")
            client.until(b"42")
            other = execute(hasty, box, "echo ready; read x", tty=True)
            with attached(hasty, f"{box}/executions/{other}/attach") as second:
                second.until(b"ready")
        if detach:
            wait_until(lambda: state(hasty, box, other)["status"] == "completed", "the exec is hung up")
            assert status_of(hasty, box) == "running"
        else:
            wait_until(lambda: status_of(hasty, box) == "stopped", "the box has ended with its shell")
        assert hasty.http("DELETE", f"/v1/boxes/{box}?force=true")[0] == 204


class TestPressure:
    def test_a_reader_that_does_not_read_costs_nothing_and_loses_nothing(self, cluster: Cluster, box: str) -> None:
        size = 200 * 1024 * 1024
        execution = execute(cluster, box, f"head -c {size} /dev/zero; exit 3")
        assert cluster.coordinator is not None
        processes = {process.name: process.pid for process in (cluster.coordinator, cluster.workers[0])}
        before = {name: memory(pid) for name, pid in processes.items()}
        with attached(cluster, f"{box}/executions/{execution}/attach", max_queue=1) as client:
            client.step()
            full = DEFAULT_CAPACITY - MAX_CHUNK
            wait_until(lambda: max(log_sizes(cluster.workers[0]), default=0) >= full, "the log is full")
            grown = {name: memory(pid) - before[name] for name, pid in processes.items()}
            assert state(cluster, box, execution)["status"] == "running"
            received = len(client.stdout)
            client.stdout = b""
            while client.exit_code is None:
                client.step()
                received += len(client.stdout)
                assert client.stdout.count(b"\0") == len(client.stdout)
                client.stdout = b""
        assert (received, client.exit_code, client.complaints) == (size, 3, [])
        assert max(grown.values()) < 32 * 1024 * 1024, grown
        after = {name: memory(pid) - before[name] for name, pid in processes.items()}
        assert max(after.values()) < 32 * 1024 * 1024, after

    def test_control_passes_input_that_is_not_read(self, cluster: Cluster, box: str) -> None:
        execution = execute(cluster, box, "echo ready; exec sleep 600")
        with attached(cluster, f"{box}/executions/{execution}/attach") as client:
            client.until(b"ready")
            for _ in range(16):
                client.send(bytes(65536))
            client.say(type="signal", sig=2)
            assert client.to_the_end() == 130

    def test_input_that_is_not_read_is_held_back(self, cluster: Cluster, box: str) -> None:
        """More than anybody keeps: the sender waits, and all of it arrives once the command reads."""
        size = 40 * 1024 * 1024
        execution = execute(cluster, box, "while ! test -e /tmp/go; do sleep 0.1; done; wc -c")
        assert cluster.coordinator is not None
        before = memory(cluster.coordinator.pid)
        with attached(cluster, f"{box}/executions/{execution}/attach") as client:
            sent: list[int] = []
            sender = threading.Thread(target=send_zeros, args=(client, size, sent), daemon=True)
            sender.start()
            wait_until(Stalled(sent), "the sender waits")
            assert len(sent) * 65536 < size
            assert memory(cluster.coordinator.pid) - before < 32 * 1024 * 1024
            execute(cluster, box, "touch /tmp/go")
            assert client.to_the_end() == 0
            sender.join()
        assert int(client.stdout) == size


class TestDeadPeers:
    def test_a_killed_clients_place_is_free(self, cluster: Cluster, new_box: Any) -> None:
        box = new_box(cmd=["cat"])
        start(cluster, box)
        with held(box, cluster.url) as client:
            assert refusal(cluster, f"{box}/attach")[0] == 409
            client.kill()
            wait_until(lambda: free(cluster, f"{box}/attach"), "the killed client is noticed", 5)

    @pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="takes root and iproute2")
    def test_a_client_that_vanished_is_noticed(self, new_cluster: Any, test_image: str) -> None:
        """No packet comes from it any more, and none that says why."""
        cluster: Cluster = new_cluster()
        cluster.start_coordinator("--host", "0.0.0.0", "--no-auth")
        cluster.start_worker()
        box = create(cluster, cmd=["cat"])
        start(cluster, box)
        with another_host() as (address, within, vanish), held(box, f"http://{address}:{cluster.port}", within):
            assert refusal(cluster, f"{box}/attach")[0] == 409
            vanish()
            wait_until(lambda: free(cluster, f"{box}/attach"), "the client is taken for dead", 90)
        assert cluster.http("DELETE", f"/v1/boxes/{box}?force=true")[0] == 204


# Attaches to a box's main command that is `cat`, and holds on.
_HOLDER = """
import sys
from websockets.sync.client import connect
with connect(sys.argv[1], compression=None, proxy=None, ping_interval=None) as socket:
    socket.send(b"ready")
    while socket.recv() != b"\\x01ready":
        pass
    print("ready", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def held(box: str, url: str, within: Sequence[str] = ()) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is attached to the box's main command."""
    address = f"ws{url.removeprefix('http')}/v1/boxes/{box}/attach"
    command = [*within, sys.executable, "-c", _HOLDER, address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        try:
            assert client.stdout is not None
            assert client.stdout.readline() == b"ready\n"
            yield client
        finally:
            client.kill()


@contextlib.contextmanager
def another_host() -> Iterator[tuple[str, list[str], Callable[[], None]]]:
    """A network namespace: our address as it sees it, the words that run a command there, and a function
    that makes it fall silent."""
    name = f"bx{os.getpid()}"
    net = f"10.213.{os.getpid() % 250}"

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        ip("netns", "add", name)
    except subprocess.CalledProcessError as refused:
        pytest.skip(f"no network namespaces here: {refused.stderr.decode()}")
    try:
        ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("address", "add", f"{net}.1/30", "dev", name)
        ip("link", "set", name, "up")
        ip("-n", name, "address", "add", f"{net}.2/30", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        yield f"{net}.1", ["ip", "netns", "exec", name], lambda: ip("-n", name, "address", "flush", "dev", "eth0")
    finally:
        ip("netns", "del", name)


def memory(pid: int) -> int:
    """Resident bytes of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def send_zeros(client: Attached, size: int, sent: list[int]) -> None:
    for _ in range(size // 65536):
        client.send(bytes(65536))
        sent.append(1)
    client.say(type="stdin_eof")


class Stalled:
    """Whether a list has not grown for a second; asked again and again."""

    def __init__(self, what: list[int]) -> None:
        self._what, self._length, self._since = what, 0, time.monotonic()

    def __call__(self) -> bool:
        if len(self._what) != self._length:
            self._length, self._since = len(self._what), time.monotonic()
        return self._length > 0 and time.monotonic() - self._since > 1


def log_sizes(worker: Process) -> list[int]:
    """The sizes of the files in which a worker keeps output; they have no name any more."""
    descriptors = Path(f"/proc/{worker.pid}/fd").iterdir()
    return [found.stat().st_size for found in descriptors if "/spool/" in str(found.readlink())]


def run(cluster: Cluster, box: str, script: str) -> str:
    with attached(cluster, f"{box}/executions/{execute(cluster, box, script)}/attach") as client:
        client.to_the_end()
    return client.stdout.decode()


def ps(cluster: Cluster, box: str) -> str:
    return run(cluster, box, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")


def free(cluster: Cluster, path: str) -> bool:
    """Whether nobody is attached; looks without becoming the one who is served."""
    try:
        with attached(cluster, f"{path}?received={2**62}"):
            return True
    except Exception as refused:
        assert "409" in str(refused), refused
        return False


def confirmed(cluster: Cluster, box: str, execution: str) -> int:
    """How much of the output the worker knows to have arrived."""
    worker = cluster.workers[0]
    secret = json.loads((worker.home / "worker.json").read_text())["secret"]
    with grpc.insecure_channel(f"127.0.0.1:{worker.port}") as channel:
        stub = worker_pb2_grpc.WorkerServiceStub(channel)
        ref = pb.ExecutionRef(box_id=box, execution_id=execution)
        found = stub.GetExecution(ref, metadata=rpc.with_secret(secret), timeout=10)
        return int(found.delivered.bytes)
