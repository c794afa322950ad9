"""Clients that went away, and clients that do not take what they asked for."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.attach import Attached, attached, free, refusal, run
from support.boxes import create, execute, start, state, status_of
from support.cluster import Cluster, Process, wait_until
from support.inside import engine_outside, run_inside

from boxlite_server.worker.executions.output_log import DEFAULT_CAPACITY, MAX_CHUNK


@pytest.fixture
def box(running_box: str) -> str:
    return running_box


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
        """The input is more than all buffers hold: the sender waits, and all of it arrives once the command reads."""
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
    def test_a_client_that_vanished_is_noticed(
        self, request: pytest.FixtureRequest, new_cluster: Any, docker_host: str, test_image: str
    ) -> None:
        """The client's packets stop, without a FIN or a reset."""
        if engine_outside() is None:  # the machine's own interfaces are not touched
            run_inside(request, docker_host)
            return
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


def ps(cluster: Cluster, box: str) -> str:
    return run(cluster, box, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
