"""Input of any size: it arrives whole and in bounded memory, or the command is told that it does not."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator

import pytest
from support.attach import Attached, Proxy, attached, free
from support.boxes import create, execute, start, state
from support.cluster import Cluster, wait_until
from support.memory import growth
from support.sdk import NEWEST, run_sdk
from websockets.exceptions import ConnectionClosed

MIB = 1024 * 1024
MOST_GROWTH = 24 * MIB  # of the coordinator and of the worker, whatever the size of a message
BLOCK = os.urandom(MIB)


@pytest.fixture(scope="module")
def cluster(new_shared_cluster: Callable[..., Cluster], test_image: str) -> Cluster:
    """A cluster whose processes' memory is measured, so nothing else may use it."""
    cluster = new_shared_cluster()
    cluster.start_coordinator()
    cluster.start_worker()
    return cluster


@pytest.fixture(scope="module")
def box(cluster: Cluster) -> Iterator[str]:
    box = create(cluster)
    start(cluster, box)
    yield box
    cluster.http("DELETE", f"/v1/boxes/{box}?force=true")


@pytest.fixture
def proxy(cluster: Cluster) -> Iterator[Proxy]:
    """It loses the connection as soon as the command has read a part of its input."""
    proxy = Proxy(cluster.port, tripwire=b"begun", resets=True)
    yield proxy
    proxy.close()


def blocks(count: int) -> Iterator[bytes]:
    for number in range(count):
        yield number.to_bytes(8, "big") + BLOCK[8:]


def digest(count: int) -> str:
    sha256 = hashlib.sha256()
    for block in blocks(count):
        sha256.update(block)
    return sha256.hexdigest()


@contextlib.contextmanager
def flat_memory(cluster: Cluster) -> Iterator[None]:
    assert cluster.coordinator is not None
    with growth(cluster.coordinator.pid) as coordinator, growth(cluster.workers[0].pid) as worker:
        yield
    assert coordinator.peak < MOST_GROWTH
    assert worker.peak < MOST_GROWTH


@contextlib.contextmanager
def sending(client: Attached, message: bytes) -> Iterator[None]:
    """Send a message from a thread for the duration of the block, in which the connection is lost."""

    def send() -> None:
        with contextlib.suppress(ConnectionClosed):
            client.send(message)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    yield
    thread.join(60)
    assert not thread.is_alive()


BEGIN = "head -c 1000000 >/dev/null; echo beg''un; cat >/dev/null; echo whole"

SEND = """
import asyncio, sys
import boxlite

async def main():
    url, box_id, script, size = sys.argv[1:]
    runtime = boxlite.Boxlite.rest(boxlite.BoxliteRestOptions(url=url))
    box = await runtime.get(box_id)
    execution = await box.exec("sh", ["-c", script])
    pipe, output, said = execution.stdin(), execution.stdout(), []
    await pipe.send_input(bytes(range(256)) * (int(size) // 256))
    await pipe.close()
    async for text in output:
        said.append(text)
    print((await execution.wait()).exit_code, "".join(said))

asyncio.run(main())
"""


def test_the_sdk_sends_20_million_bytes_at_once(cluster: Cluster, box: str) -> None:
    size = 20_000_000 // 256 * 256
    expected = hashlib.sha256(bytes(range(256)) * (size // 256)).hexdigest()
    done = run_sdk(NEWEST, SEND, cluster.url, box, "sha256sum; exit 7", str(size))
    assert done.stdout.split() == ["7", expected, "-"], done.stdout + done.stderr


def test_a_message_of_200_mib_arrives_whole_in_bounded_memory(cluster: Cluster, box: str) -> None:
    message = b"".join(blocks(200))
    execution = execute(cluster, box, "sha256sum; exit 7")
    with attached(cluster, f"{box}/executions/{execution}/attach") as client, flat_memory(cluster):
        client.send(message)
        client.say(type="stdin_eof")
        assert client.to_the_end() == 7
    assert client.stdout.decode().split()[0] == digest(200)


def test_a_slow_command_gets_a_large_message_whole_in_bounded_memory(cluster: Cluster, box: str) -> None:
    slow = "{ for i in 1 2 3 4 5 6 7 8; do dd bs=1048576 count=16 2>/dev/null; sleep 0.2; done; cat; } | sha256sum"
    execution = execute(cluster, box, slow)
    with attached(cluster, f"{box}/executions/{execution}/attach") as client, flat_memory(cluster):
        client.send(b"".join(blocks(50)))
        client.say(type="stdin_eof")
        assert client.to_the_end() == 0
    assert client.stdout.decode().split()[0] == digest(50)


def test_a_message_in_fragments_arrives_whole(cluster: Cluster, box: str) -> None:
    execution = execute(cluster, box, "sha256sum")
    with attached(cluster, f"{box}/executions/{execution}/attach") as client:
        client.connection.send(blocks(5))  # an iterator is sent as one message
        client.connection.send([b"", b""])
        client.say(type="stdin_eof")
        assert client.to_the_end() == 0
    assert client.stdout.decode().split()[0] == digest(5)


def test_a_large_body_of_input_arrives_whole_in_bounded_memory(cluster: Cluster, box: str) -> None:
    execution = execute(cluster, box, "sha256sum; exit 7")
    path = f"/v1/boxes/{box}/executions/{execution}/input"
    headers = {"Content-Type": "application/octet-stream", "X-Close-Stdin": "true"}
    with attached(cluster, f"{box}/executions/{execution}/attach?stdin=0") as client:
        with flat_memory(cluster):
            status, _, answer = cluster.http("POST", path, blocks(100), headers=headers)
        assert status == 204, answer
        assert client.to_the_end() == 7
    assert client.stdout.decode().split()[0] == digest(100)


def test_what_a_client_sent_before_it_left_still_arrives(cluster: Cluster, box: str) -> None:
    execution = execute(cluster, box, "sleep 1; sha256sum")
    with attached(cluster, f"{box}/executions/{execution}/attach") as client:
        for block in blocks(3):
            client.send(block)
        client.say(type="stdin_eof")
    with attached_again(cluster, box, execution) as client:
        assert client.to_the_end() == 0
    assert client.stdout.decode().split()[0] == digest(3)


@contextlib.contextmanager
def attached_again(cluster: Cluster, box: str, execution: str) -> Iterator[Attached]:
    path = f"{box}/executions/{execution}/attach"
    wait_until(lambda: free(cluster, path), "nobody is attached any more")
    with attached(cluster, f"{path}?received=0") as client:
        yield client


def test_a_command_is_killed_when_its_client_is_lost_in_the_middle_of_a_message(
    cluster: Cluster, box: str, proxy: Proxy
) -> None:
    execution = execute(cluster, box, BEGIN)
    path = f"{box}/executions/{execution}/attach"
    with attached(cluster, path, port=proxy.port) as client, sending(client, b"".join(blocks(100))):
        client.to_the_cut()
    told_of_the_loss(cluster, box, execution)
    with attached_again(cluster, box, execution) as client:
        assert client.to_the_end() == 137
    assert client.stdout == b"begun\n"  # and not: whole


def told_of_the_loss(cluster: Cluster, box: str, execution: str) -> None:
    wait_until(lambda: state(cluster, box, execution)["status"] != "running", "the command has ended")
    ended = state(cluster, box, execution)
    assert (ended["status"], ended["exit_code"]) == ("killed", 137)
    assert "a part of its input was lost" in ended["error_message"]


def test_the_sdk_is_told_when_its_connection_breaks_in_the_middle_of_a_message(
    cluster: Cluster, box: str, proxy: Proxy
) -> None:
    done = run_sdk(NEWEST, SEND, f"http://127.0.0.1:{proxy.port}", box, BEGIN, "200000000")
    assert done.stdout.startswith("137"), done.stdout + done.stderr
    assert "whole" not in done.stdout


def test_a_command_is_killed_when_a_body_of_input_breaks_off(cluster: Cluster, box: str) -> None:
    execution = execute(cluster, box, "cat >/dev/null; echo whole")
    path = f"/v1/boxes/{box}/executions/{execution}/input"

    def broken() -> Iterator[bytes]:
        yield from blocks(3)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        cluster.http("POST", path, broken(), headers={"Content-Type": "application/octet-stream"})
    told_of_the_loss(cluster, box, execution)


def test_a_terminal_stays_when_its_client_is_lost_in_the_middle_of_a_message(
    cluster: Cluster, box: str, proxy: Proxy
) -> None:
    execution = execute(cluster, box, f"stty raw -echo; echo ready; {BEGIN}; sleep 600", tty=True)
    path = f"{box}/executions/{execution}/attach"
    with attached(cluster, path, port=proxy.port) as client:
        client.until(b"ready\n")
        with sending(client, b"".join(blocks(100))):
            client.to_the_cut()
    with attached_again(cluster, box, execution) as client:
        assert state(cluster, box, execution)["status"] == "running"
        client.say(type="signal", sig=9)
        assert client.to_the_end() == 137


def test_a_client_hears_that_a_closed_input_takes_nothing_more(cluster: Cluster, box: str) -> None:
    execution = execute(cluster, box, "cat; sleep 600")
    with attached(cluster, f"{box}/executions/{execution}/attach") as client:
        client.say(type="stdin_eof")
        client.send(b"late")
        while not client.complaints:
            client.step()
        assert "has had the end of its input" in client.complaints[0]["message"]
        path = f"/v1/boxes/{box}/executions/{execution}/input"
        status, _, body = cluster.http("POST", path, b"late", headers={"Content-Type": "application/octet-stream"})
        assert (status, body["error"]["code"]) == (409, "invalid_state")
        client.say(type="signal", sig=9)
        assert client.to_the_end() == 137


def test_a_control_frame_has_a_bound(cluster: Cluster, box: str) -> None:
    execution = execute(cluster, box, "cat")
    with attached(cluster, f"{box}/executions/{execution}/attach") as client:
        client.connection.send(json.dumps({"type": "signal", "sig": 9, "more": "x" * 1_100_000}))
        client.to_the_cut()
        assert client.connection.close_code == 1009
        assert "a message of text has at most 1048576 bytes" in client.complaints[0]["message"]
    with attached_again(cluster, box, execution) as client:
        client.say(type="stdin_eof")
        assert client.to_the_end() == 0


class TestRestarts:
    """Of a process in the middle of a message. They come last: the tests above measure these processes."""

    @pytest.fixture
    def halfway(self, cluster: Cluster, box: str) -> Iterator[tuple[str, Attached]]:
        """An execution and its client, which is in the middle of a message."""
        proxy = Proxy(cluster.port, resets=True)
        execution = execute(
            cluster, box, "head -c 1000000 >/dev/null; touch /tmp/$$; sleep 3; cat >/dev/null; echo whole"
        )
        path = f"{box}/executions/{execution}/attach"
        try:
            with attached(cluster, path, port=proxy.port) as client, sending(client, b"".join(blocks(100))):
                seen = "until ls /tmp | grep -q '^[0-9]'; do sleep 0.05; done; rm /tmp/[0-9]*"
                probe = execute(cluster, box, seen)
                wait_until(lambda: state(cluster, box, probe)["status"] != "running", "input is on its way")
                yield execution, client
                proxy.cut()
        finally:
            proxy.close()

    def test_a_command_is_killed_when_its_worker_is_restarted_in_the_middle_of_a_message(
        self, cluster: Cluster, box: str, halfway: tuple[str, Attached]
    ) -> None:
        execution, _ = halfway
        cluster.workers[0].restart()
        told_of_the_loss(cluster, box, execution)

    def test_a_command_is_killed_at_its_end_of_input_when_the_coordinator_died_in_the_middle_of_a_message(
        self, cluster: Cluster, box: str, halfway: tuple[str, Attached]
    ) -> None:
        execution, _ = halfway
        assert cluster.coordinator is not None
        cluster.coordinator.kill()
        cluster.coordinator.start()
        wait_until(lambda: cluster.http("GET", "/v1/health/ready")[0] == 200, "the worker is there")
        with attached_again(cluster, box, execution) as client:
            client.say(type="stdin_eof")
            assert client.to_the_end() == 137
        told_of_the_loss(cluster, box, execution)
