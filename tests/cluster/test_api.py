"""The API by itself, as a client without an SDK uses it: HTTP, server-sent events and WebSocket frames."""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest
from support.cluster import Cluster, wait_until
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect


class Box:
    """A box over HTTP."""

    def __init__(self, cluster: Cluster, image: str, **fields: Any) -> None:
        self.cluster = cluster
        status, headers, self.created = cluster.http("POST", "/v1/boxes", {"image": image, "memory_mib": 128, **fields})
        assert status == 201, self.created
        self.location = headers["location"]
        self.path = f"/v1/boxes/{self.created['box_id']}"

    def call(self, method: str, path: str = "", body: Any = None, **options: Any) -> tuple[int, Any]:
        status, _, answer = self.cluster.http(method, self.path + path, body, **options)
        return status, answer

    def exec(self, command: str, *args: str, **fields: Any) -> str:
        """Start a command; the path of its execution behind the box's."""
        status, answer = self.call("POST", "/exec", {"command": command, "args": list(args), **fields})
        assert status == 201, answer
        return f"/executions/{answer['execution_id']}"

    def ended(self, execution: str) -> dict[str, Any]:
        """Wait for the end; the last state."""
        state: dict[str, Any] = {}

        def over() -> bool:
            state.update(self.call("GET", execution)[1])
            return state["status"] != "running"

        wait_until(over, f"the end of {execution}")
        return state

    def events(self, execution: str, last_event_id: str = "") -> list[tuple[str, str, Any]]:
        """Name, id and data of all server-sent events, to the end of the stream."""
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_event_id} if last_event_id else {})
        status, sent, body = self.cluster.http("GET", f"{self.path}{execution}/output", headers=headers)
        assert (status, sent["content-type"].partition(";")[0]) == (200, "text/event-stream")
        assert sent["x-accel-buffering"] == "no"
        found = []
        for block in body.decode().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
            if fields:
                found.append((fields["event"], fields["id"], json.loads(fields["data"])))
        return found

    def attach(self, execution: str) -> ClientConnection:
        url = f"ws://127.0.0.1:{self.cluster.port}{self.path}{execution}/attach"
        return connect(url, compression=None, max_size=None)


def text_of(events: list[tuple[str, str, Any]], stream: str) -> bytes:
    return b"".join(base64.b64decode(data["data"]) for name, _, data in events if name == stream)


def frames_of(socket: ClientConnection) -> tuple[bytes, bytes, list[Any]]:
    """Stdout, stderr and the text frames, to the end of the socket."""
    out: dict[int, bytes] = {1: b"", 2: b""}
    texts = []
    for frame in socket:
        if isinstance(frame, bytes):
            assert not texts, "output after a text frame"
            out[frame[0]] += frame[1:]
        else:
            texts.append(json.loads(frame))
    return out[1], out[2], texts


@pytest.fixture
def box(cluster: Cluster, test_image: str) -> Iterator[Box]:
    box = Box(cluster, test_image)
    assert box.call("POST", "/start")[0] == 200
    yield box
    assert box.call("DELETE", "?force=true")[0] == 204
    assert cluster.containers() == []


# ---- boxes ----------------------------------------------------------------------------------------------


def test_a_box_as_it_is_answered(cluster: Cluster, test_image: str) -> None:
    box = Box(cluster, test_image, name="shown", labels={"team": "blue"}, cpus=2)
    assert box.location == f"/v1/default/boxes/{box.created['box_id']}"
    shown = box.created
    assert (shown["name"], shown["status"], shown["image"]) == ("shown", "configured", test_image)
    assert (shown["cpus"], shown["memory_mib"], shown["labels"]) == (2, 128, {"team": "blue"})
    assert shown["worker"] == cluster.http("GET", "/v1/admin/workers")[2]["workers"][0]["name"]
    assert box.call("HEAD") == (204, b"")
    assert cluster.http("HEAD", "/v1/boxes/shown")[0] == 204
    assert cluster.http("HEAD", "/v1/boxes/hidden")[0] == 404
    status, started = box.call("POST", "/start")
    assert (status, started["status"]) == (200, "running")
    assert started["pid"] > 0
    status, body = box.call("DELETE")
    assert (status, body["error"]["code"]) == (409, "invalid_state")
    assert box.call("DELETE", "?force=true")[0] == 204
    assert box.call("GET")[0] == 404


def test_a_box_without_a_command_stays_up(cluster: Cluster, test_image: str, bare_image: str) -> None:
    for image in (test_image, bare_image):
        box = Box(cluster, image)
        box.call("POST", "/start")
        assert box.ended(box.exec("sleep", "1"))["exit_code"] == 0
        assert box.call("GET")[1]["status"] == "running"
        assert box.call("DELETE", "?force=true")[0] == 204


@pytest.mark.parametrize(
    ("script", "timeout", "exit_code"),
    [
        ("trap 'exit 5' TERM; while :; do sleep 0.05; done", 30, 5),
        ("trap '' TERM; while :; do sleep 1; done", 0.5, 137),
    ],
)
def test_stop_asks_first_and_then_insists(
    cluster: Cluster, test_image: str, script: str, timeout: float, exit_code: int
) -> None:
    box = Box(cluster, test_image, cmd=["sh", "-c", f"touch /tmp/up; {script}"])
    box.call("POST", "/start")
    box.ended(box.exec("sh", "-c", "until test -e /tmp/up; do :; done"))
    status, stopped = box.call("POST", "/stop", {"timeout_seconds": timeout})
    assert (status, stopped["status"], stopped["exit_code"]) == (200, "stopped", exit_code)
    assert box.call("POST", "/stop")[1]["status"] == "stopped"
    assert box.call("DELETE")[0] == 204


def test_auto_remove_goes_with_the_stop(cluster: Cluster, test_image: str) -> None:
    box = Box(cluster, test_image, auto_remove=True)
    box.call("POST", "/start")
    status, stopped = box.call("POST", "/stop")
    assert (status, stopped["box_id"], stopped["status"]) == (200, box.created["box_id"], "stopped")
    assert box.call("GET")[0] == 404
    job = Box(cluster, test_image, auto_remove=True, cmd=["true"])
    job.call("POST", "/start")
    wait_until(lambda: job.call("GET")[0] == 404, "the ended job is removed")
    assert cluster.containers() == []


def test_network_on_and_off(cluster: Cluster, test_image: str) -> None:
    split = {"outbound": {"mode": "disabled"}, "inbound": {"mode": "disabled"}}
    for network, interfaces in (
        ("disabled", {"lo"}),
        ({"mode": "disabled"}, {"lo"}),
        (split, {"lo"}),
        ({"mode": "enabled"}, {"lo", "eth0"}),
    ):
        box = Box(cluster, test_image, network=network)
        execution = box.exec("ls", "/sys/class/net")
        assert set(text_of(box.events(execution), "stdout").decode().split()) >= interfaces
        assert ("eth0" in text_of(box.events(execution), "stdout").decode()) == ("eth0" in interfaces)
        box.call("DELETE", "?force=true")


def test_limits_reach_the_engine(cluster: Cluster, test_image: str) -> None:
    box = Box(cluster, test_image, memory_mib=128)
    script = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null"
    assert text_of(box.events(box.exec("sh", "-c", script)), "stdout").split()[0] == b"134217728"
    box.call("DELETE", "?force=true")


def test_an_image_that_cannot_be_had(cluster: Cluster) -> None:
    status, _, body = cluster.http("POST", "/v1/boxes", {"image": "127.0.0.1:9/nosuch:never", "name": "imageless"})
    assert (status, body["error"]["code"]) == (422, "image_pull_failed")
    assert "127.0.0.1:9" in body["error"]["message"]
    assert cluster.http("GET", "/v1/boxes/imageless")[0] == 404


def test_a_main_command_that_cannot_be_spawned(cluster: Cluster, test_image: str) -> None:
    box = Box(cluster, test_image, cmd=["nosuchcommand"])
    status, body = box.call("POST", "/start")
    assert (status, body["error"]["code"]) == (422, "execution_failed")
    assert "not found" in body["error"]["message"]
    assert box.call("DELETE")[0] == 204


# ---- executions -----------------------------------------------------------------------------------------


def test_states_of_an_execution(box: Box) -> None:
    done = box.ended(box.exec("sh", "-c", "exit 3"))
    assert (done["status"], done["exit_code"], done["error_message"]) == ("completed", 3, None)
    assert done["duration_ms"] >= 0
    sleeping = box.exec("sleep", "600")
    assert box.call("GET", sleeping)[1] | {"started_at": ""} == {
        "execution_id": sleeping.rpartition("/")[2],
        "status": "running",
        "exit_code": None,
        "started_at": "",
        "command": "sleep",
        "args": ["600"],
        "command_truncated": False,
        "duration_ms": None,
        "error_message": None,
    }
    assert box.call("DELETE", sleeping)[0] == 204
    killed = box.ended(sleeping)
    assert (killed["status"], killed["exit_code"]) == ("killed", 137)
    assert box.call("DELETE", sleeping)[0] == 204
    late = box.ended(box.exec("sleep", "600", timeout_seconds=0.3))
    assert late["status"] == "timed_out"
    assert late["exit_code"] != 0
    signalled = box.exec("sleep", "600")
    assert box.call("POST", f"{signalled}/signal", {"signal": 15})[0] == 204
    assert box.ended(signalled)["exit_code"] == 143


def test_a_timeout_ends_the_whole_command(box: Box) -> None:
    execution = box.exec("sh", "-c", "sleep 601; true", timeout_seconds=0.3)
    assert box.ended(execution)["status"] == "timed_out"
    left = text_of(box.events(box.exec("ps")), "stdout").decode()
    assert "sleep 601" not in left


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"command": "nosuchcommand"}, "not found"),
        ({"command": "/nosuch/command"}, "not found"),
        ({"command": "/etc/passwd"}, "permission denied"),
        ({"command": "true", "working_dir": "/nosuch"}, "not found"),
    ],
)
def test_what_cannot_be_spawned_is_refused(box: Box, body: dict[str, Any], said: str) -> None:
    status, answer = box.call("POST", "/exec", body)
    assert (status, answer["error"]["code"]) == (422, "execution_failed")
    assert said in answer["error"]["message"]


def test_events_and_input(box: Box) -> None:
    execution = box.exec("sh", "-c", "cat; echo done >&2")
    octets = {"Content-Type": "application/octet-stream"}
    assert box.call("POST", f"{execution}/input", b"one\n", headers=octets) == (204, b"")
    assert box.call("POST", f"{execution}/input", b"", headers=octets | {"X-Close-Stdin": "true"}) == (204, b"")
    first, second = box.events(execution), box.events(execution)
    assert first == second, "a second reader is served the same"
    assert (text_of(first, "stdout"), text_of(first, "stderr")) == (b"one\n", b"done\n")
    assert first[-1][0] == "exit"
    assert first[-1][2]["exit_code"] == 0
    assert [event[0] for event in box.events(execution, last_event_id=first[-1][1])] == ["exit"]
    assert box.call("POST", f"{execution}/input", b"late", headers=octets)[0] == 204, "an ended command needs none"


def test_frames(box: Box) -> None:
    execution = box.exec("sh", "-c", "echo out; echo err >&2; cat; exit 4")
    with box.attach(execution) as socket:
        with pytest.raises(InvalidStatus) as second, box.attach(execution):
            pass
        assert second.value.response.status_code == 409
        assert json.loads(second.value.response.body)["error"]["code"] == "already_exists"
        socket.send(b"in")
        socket.send(json.dumps({"type": "nonsense"}))
        socket.send("[" * 100_000)
        socket.send(json.dumps({"type": "stdin_eof"}))
        out, err, texts = b"", b"", []
        for frame in socket:
            if isinstance(frame, str):
                texts.append(json.loads(frame))
            elif frame[0] == 1:
                out += frame[1:]
            else:
                err += frame[1:]
        assert (out, err) == (b"out\nin", b"err\n")
        assert [text["type"] for text in texts] == ["error", "error", "exit"]
        assert all("unknown control frame" in text["message"] for text in texts[:2])
        assert texts[-1] == {"type": "exit", "exit_code": 4}
        assert socket.close_code == 1000


def test_a_signal_frame(box: Box) -> None:
    execution = box.exec("sleep", "600")
    with box.attach(execution) as socket:
        socket.send(json.dumps({"type": "signal", "sig": 2}))
        assert frames_of(socket)[2] == [{"type": "exit", "exit_code": 130}]


def test_an_attach_that_comes_back_goes_on_where_it_was(box: Box) -> None:
    execution = box.exec("sh", "-c", "echo one; read line; echo $line")
    with box.attach(execution) as socket:
        assert socket.recv() == b"\x01one\n"
        assert socket.ping().wait(60)  # and so our answer to the server's ping behind that output is there
    wait_until(lambda: _attachable(box, execution), "the first client's place is free")
    with box.attach(execution) as socket:
        socket.send(b"two\n")
        assert frames_of(socket) == (b"two\n", b"", [{"type": "exit", "exit_code": 0}])


def _attachable(box: Box, execution: str) -> bool:
    try:
        with box.attach(execution):
            return True
    except InvalidStatus:
        return False


def test_the_first_frame_is_a_ping(box: Box) -> None:
    """Raw, because client libraries answer pings by themselves and do not show them."""
    execution = box.exec("sleep", "600")
    connection = http.client.HTTPConnection("127.0.0.1", box.cluster.port, timeout=60)
    connection.request(
        "GET",
        f"{box.path}{execution}/attach",
        headers={
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(b"0123456789abcdef").decode(),
        },
    )
    answer = connection.getresponse()
    assert answer.status == 101
    assert answer.fp.read(1) == b"\x89"
    connection.close()
    box.call("DELETE", execution)


def test_attach_refusals_come_before_the_upgrade(box: Box) -> None:
    for execution in ("/executions/nosuch", "/nosuch"):
        with pytest.raises(InvalidStatus) as refused, box.attach(execution):
            pass
        assert refused.value.response.status_code == 404
        assert json.loads(refused.value.response.body)["error"]["code"] == "not_found"


def test_the_main_session(cluster: Cluster, test_image: str) -> None:
    """Create, attach, start: the command waits for the start, and its end is the box's."""
    box = Box(cluster, test_image, cmd=["sh", "-c", "echo begun; cat; exit 6"])
    with box.attach("") as socket:
        assert socket.response is not None
        execution = socket.response.headers["x-boxlite-execution-id"]
        assert box.call("GET", f"/executions/{execution}")[1]["status"] == "running"
        assert box.call("GET")[1]["status"] == "configured"
        assert box.call("POST", "/start")[0] == 200
        socket.send(b"input\n")
        socket.send(json.dumps({"type": "stdin_eof"}))
        assert frames_of(socket) == (b"begun\ninput\n", b"", [{"type": "exit", "exit_code": 6}])
    wait_until(lambda: box.call("GET")[1]["status"] == "stopped", "the box has stopped")
    assert box.call("GET")[1]["exit_code"] == 6
    assert box.call("DELETE")[0] == 204


def test_auto_resume_can_be_forbidden(cluster: Cluster, test_image: str) -> None:
    box = Box(cluster, test_image, auto_resume=False)
    box.call("POST", "/start")
    box.call("POST", "/stop")
    status, body = box.call("POST", "/exec", {"command": "true"})
    assert (status, body["error"]["code"]) == (409, "stopped")
    assert box.call("DELETE")[0] == 204
