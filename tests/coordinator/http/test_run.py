"""One request for one command: what it costs, what it answers, and whose the command is."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from support.asgi import ask
from support.coordinator_site import CoordinatorSite

from boxlite_server._gen import worker_pb2 as pb
from boxlite_server.coordinator.http.app import create_app
from boxlite_server.coordinator.limits import MAX_RUN_OUTPUT_BYTES
from boxlite_server.coordinator.store import Box

STDOUT, STDERR = pb.OUTPUT_STREAM_STDOUT, pb.OUTPUT_STREAM_STDERR
STREAM = {"accept": "text/event-stream"}


class Http:
    """A coordinator's HTTP application, its one running box, and the worker that has it."""

    def __init__(self, site: CoordinatorSite, box: Box) -> None:
        self.site, self.box = site, box
        self.app = create_app(site.core)

    async def run(
        self, body: dict[str, Any], headers: dict[str, str] | None = None, gone: asyncio.Event | None = None
    ) -> tuple[int, dict[str, str], Any]:
        """Status, headers, and the body: of JSON the value, of anything else the text."""
        sent = {"content-type": "application/json", "content-length": "1", **(headers or {})}
        path = f"/v1/boxes/{self.box.id}/run"
        status, headers, answer = await ask(self.app, "POST", path, json.dumps(body).encode(), headers=sent, gone=gone)
        is_json = headers["content-type"] == "application/json"
        return status, headers, json.loads(answer) if is_json else answer.decode()

    def ends(self, exit_code: int = 0, status: int = pb.EXECUTION_STATUS_COMPLETED, why: str = "", **said: Any) -> None:
        """Have the worker answer the next runs with this result."""
        end = pb.Execution(execution_id="x", status=status, exit_code=exit_code, duration_ms=7, error_message=why)
        self.site.one._RunCommand = lambda request: pb.RunResult(ended=end, **said)  # type: ignore[method-assign]

    def says(self, *events: pb.OutputEvent) -> None:
        """Have the worker stream these events of the next run, and then wait for ever if no end is among them."""

        async def answers() -> AsyncIterator[pb.OutputEvent]:
            try:
                self.asked.set()
                yield pb.OutputEvent()
                for event in events:
                    yield event
                if not events or not events[-1].HasField("ended"):
                    await asyncio.Event().wait()
            finally:
                self.broken_off.set()

        self.asked = asyncio.Event()
        self.broken_off = asyncio.Event()
        self.site.one.streams["StreamCommand"] = answers()


@pytest.fixture
def over_http(tmp_path: Path) -> Callable[[Callable[[Http], Awaitable[None]]], None]:
    def told(story: Callable[[Http], Awaitable[None]]) -> None:
        async def whole(site: CoordinatorSite) -> None:
            http = Http(site, await site.running())
            site.one.calls.clear()
            await story(http)

        site = CoordinatorSite(tmp_path / "c.db")
        site.run(whole, site.one)

    return told


def said(stream: int, data: bytes) -> pb.OutputEvent:
    return pb.OutputEvent(chunk=pb.OutputChunk(stream=stream, data=data))


def cut(stream: int, count: int) -> pb.OutputEvent:
    return pb.OutputEvent(cut=pb.Cut(stream=stream, dropped_bytes=count))


def ended(exit_code: int = 0) -> pb.OutputEvent:
    return pb.OutputEvent(ended=pb.Execution(execution_id="x", exit_code=exit_code, duration_ms=7))


def test_a_run_is_one_call_to_the_worker(over_http: Any) -> None:
    async def story(http: Http) -> None:
        body = {"command": "cat", "args": ["a", "b"], "stdin": "hé", "env": {"ERR": "oops"}}
        status, _, answer = await http.run(body)
        assert status == 200
        assert len(answer.pop("execution_id")) == 32
        assert answer == {
            **{"status": "completed", "exit_code": 2, "duration_ms": 1, "error_message": None},
            **{"stdout": "hé", "stdout_truncated": False, "stdout_dropped_bytes": 0},
            **{"stderr": "oops", "stderr_truncated": False, "stderr_dropped_bytes": 0},
        }
        assert http.site.one.calls == ["RunCommand"]
        await http.run(body, {"accept": "application/json, text/event-stream"})
        assert http.site.one.calls.pop() == "RunCommand"
        await http.run(body, STREAM)
        assert http.site.one.calls == ["RunCommand", "StreamCommand"]
        assert (await http.site.core.counting.counters("default")).commands_executed == 3

    over_http(story)


def test_a_stopped_box_is_started_for_a_run(over_http: Any) -> None:
    async def story(http: Http) -> None:
        await http.site.core.boxes.stop("default", http.box.id, 1)
        http.site.one.calls.clear()
        assert (await http.run({"command": "true"}))[0] == 200
        assert http.site.one.calls == ["StartBox", "RunCommand"]

    over_http(story)


def test_text_is_replaced_where_it_is_not_utf_8_and_base64_keeps_it(over_http: Any) -> None:
    async def story(http: Http) -> None:
        raw = b"a\xff\xc3"
        encoded = base64.b64encode(raw).decode()
        _, _, answer = await http.run({"command": "cat", "stdin_base64": encoded})
        assert answer["stdout"] == "a\ufffd\ufffd"
        _, _, answer = await http.run({"command": "cat", "stdin_base64": encoded, "encoding": "base64"})
        assert (answer["stdout_base64"], answer["stderr_base64"]) == (encoded, "")
        assert not {"stdout", "stderr"} & answer.keys()

    over_http(story)


def test_text_that_was_cut_does_not_end_inside_a_character(over_http: Any) -> None:
    async def story(http: Http) -> None:
        http.ends(stdout="né".encode()[:2], stdout_dropped_bytes=10)
        _, _, answer = await http.run({"command": "cat", "max_output_bytes": 2})
        assert (answer["stdout"], answer["stdout_truncated"], answer["stdout_dropped_bytes"]) == ("n", True, 11)
        assert (answer["stderr_truncated"], answer["stderr_dropped_bytes"]) == (False, 0)

    over_http(story)


def test_how_a_command_ended_is_told(over_http: Any) -> None:
    async def story(http: Http) -> None:
        http.ends(137, pb.EXECUTION_STATUS_TIMED_OUT, "the command ran into its time limit and was killed")
        status, _, answer = await http.run({"command": "sleep", "timeout_seconds": 0.5})
        assert (status, answer["status"], answer["exit_code"]) == (200, "timed_out", 137)
        assert "time limit" in answer["error_message"]
        http.ends(loss="the worker was restarted")
        _, _, answer = await http.run({"command": "x"})
        assert answer["error_message"] == "the worker was restarted"
        assert answer["stdout_truncated"]

    over_http(story)


def test_a_stream_has_the_events_of_an_execution(over_http: Any) -> None:
    async def story(http: Http) -> None:
        http.says(said(STDOUT, b"hi"), said(STDERR, b"\xc3"), cut(STDERR, 4), ended(3))
        status, headers, text = await http.run({"command": "x"}, STREAM)
        assert status == 200
        assert headers["content-type"].startswith("text/event-stream")
        assert len(headers["x-boxlite-execution-id"]) == 32
        lost = '{"message":"stderr was longer than max_output_bytes","stream":"stderr","dropped_bytes":5}'
        assert text == (
            'event: stdout\ndata: {"data":"aGk="}\n\n'
            f"event: lost\ndata: {lost}\n\n"
            'event: exit\ndata: {"exit_code":3,"duration_ms":7}\n\n'
        )
        http.says(said(STDOUT, b"\xff"), ended())
        _, _, text = await http.run({"command": "x", "encoding": "base64"}, STREAM)
        assert 'data: {"data":"/w=="}' in text

    over_http(story)


def test_the_limits_of_output_reach_the_worker(over_http: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(http: Http) -> None:
        asked: list[pb.RunCommandRequest] = []
        one = http.site.one
        for method in ("_RunCommand", "_StreamCommand"):
            carried_out = getattr(one, method)
            monkeypatch.setattr(one, method, lambda q, act=carried_out: (asked.append(q), act(q))[1])
        for body, headers in [
            ({}, {}),
            ({"max_output_bytes": MAX_RUN_OUTPUT_BYTES}, {}),
            ({}, STREAM),
            ({"max_output_bytes": 5}, STREAM),
            ({}, {"idempotency-key": "k"}),
        ]:
            assert (await http.run({"command": "true", **body}, headers))[0] == 200
        expected = [(2**20, False), (MAX_RUN_OUTPUT_BYTES, False), (0, False), (5, False), (2**20, True)]
        assert [(request.max_output_bytes, request.kept) for request in asked] == expected
        assert asked[0].input == b""

    over_http(story)


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        ({"tty": True}, "unsupported", "no terminal"),
        ({"stdin": "a", "stdin_base64": "YQ=="}, "invalid_argument", "either"),
        ({"stdin_base64": "a"}, "invalid_argument", "not base64"),
        ({"stdin_base64": "é"}, "invalid_argument", "not base64"),
        ({"stdin": False}, "invalid_argument", "stdin"),
        ({"max_output_bytes": 0}, "invalid_argument", "max_output_bytes"),
        ({"max_output_bytes": MAX_RUN_OUTPUT_BYTES + 1}, "invalid_argument", "max_output_bytes"),
        ({"encoding": "latin-1"}, "invalid_argument", "encoding"),
        ({"env": {"A=B": "c"}}, "invalid_argument", "env"),
    ],
)
def test_what_cannot_be_honoured_is_refused(over_http: Any, body: dict[str, Any], code: str, text: str) -> None:
    async def story(http: Http) -> None:
        status, _, answer = await http.run({"command": "true", **body})
        assert (status, answer["error"]["code"]) == (400, code)
        assert text in answer["error"]["message"]
        assert http.site.one.calls == []

    over_http(story)


def test_a_client_that_goes_away_takes_its_command_with_it(over_http: Any) -> None:
    async def story(http: Http) -> None:
        broken_off, gone = asyncio.Event(), asyncio.Event()
        asked = asyncio.Event()

        async def wait() -> None:
            asked.set()
            try:
                await asyncio.Event().wait()
            finally:
                broken_off.set()

        http.site.one.before["RunCommand"] = wait
        request = asyncio.create_task(http.run({"command": "sleep"}, gone=gone))
        await asked.wait()
        gone.set()
        await broken_off.wait()
        await request

    over_http(story)


def test_a_client_that_leaves_a_stream_takes_its_command_with_it(over_http: Any) -> None:
    async def story(http: Http) -> None:
        http.says(said(STDOUT, b"begun"))
        gone = asyncio.Event()
        request = asyncio.create_task(http.run({"command": "sleep"}, STREAM, gone))
        await http.asked.wait()
        gone.set()
        await http.broken_off.wait()
        await asyncio.gather(request, return_exceptions=True)

    over_http(story)


def test_a_client_with_a_key_may_go_away_and_come_back(over_http: Any) -> None:
    async def story(http: Http) -> None:
        asked, go_on = http.site.one.hold("RunCommand")
        gone, key = asyncio.Event(), {"idempotency-key": "k"}
        request = asyncio.create_task(http.run({"command": "cat", "stdin": "x"}, key, gone))
        await asked.wait()
        gone.set()
        go_on.set()
        _, _, first = await request
        status, headers, again = await http.run({"command": "cat", "stdin": "x"}, key)
        assert (status, again, headers["idempotency-replayed"]) == (200, first, "true")
        assert http.site.one.calls == ["RunCommand"]

    over_http(story)


def test_a_repeated_stream_joins_the_command(over_http: Any) -> None:
    async def story(http: Http) -> None:
        key = {"idempotency-key": "k", **STREAM}
        answers = [await http.run({"command": "cat", "stdin": "x"}, key) for _ in range(2)]
        assert answers[0][2] == answers[1][2]
        assert len({headers["x-boxlite-execution-id"] for _, headers, _ in answers}) == 1
        assert http.site.one.calls == ["StreamCommand"] * 2, "the worker knows the command by its id"

    over_http(story)
