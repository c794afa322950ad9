"""Commands that one call runs from their start to their end, over real gRPC."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.calls import SECRET, Client, refusal, service_of
from support.cluster import wait_until
from support.sites import Site

from boxlite_server import ids, rpc
from boxlite_server._gen import worker_pb2 as pb
from boxlite_server.worker.service import servicer as service_module
from boxlite_server.worker.service.servicer import make_server


@pytest.fixture
def box(served_box: pb.BoxRef) -> pb.BoxRef:
    """A running box of the served worker."""
    return served_box


def request(box: pb.BoxRef, script: str, *, execution_id: str = "", **fields: Any) -> pb.RunCommandRequest:
    start = pb.StartExecutionRequest(
        box=box, execution_id=execution_id or ids.execution_id(), command="sh", args=["-c", script]
    )
    return pb.RunCommandRequest(start=start, **fields)


def events_of(answers: Any) -> list[pb.OutputEvent]:
    return [event for answer in answers for event in answer.events]


def live(client: Client, box: pb.BoxRef) -> int:
    return int(client.GetBox(box).live_executions)


def test_a_small_command_is_one_message(client: Client, box: pb.BoxRef) -> None:
    (answer,) = client.RunCommand(request(box, "cat; echo err >&2; exit 3", input=b"in"))
    out, err, last = answer.events
    assert (out.chunk.stream, out.chunk.data) == (pb.OUTPUT_STREAM_STDOUT, b"in")
    assert (err.chunk.stream, err.chunk.data) == (pb.OUTPUT_STREAM_STDERR, b"err\n")
    assert (last.ended.status, last.ended.exit_code) == (pb.EXECUTION_STATUS_COMPLETED, 3)


def test_a_live_command_says_first_that_it_runs(client: Client, box: pb.BoxRef) -> None:
    execution_id = ids.execution_id()
    answers = client.RunCommand(request(box, "cat; read x", execution_id=execution_id, live=True))
    assert next(answers) == pb.RunEvents()
    assert events_of(answers)[-1].ended.execution_id == execution_id


def test_output_behind_the_limit_is_counted(client: Client, box: pb.BoxRef) -> None:
    (answer,) = client.RunCommand(request(box, "head -c 5000000 /dev/zero; printf abc >&2", max_output_bytes=1000))
    out, err, cut, last = answer.events
    assert (len(out.chunk.data), err.chunk.data) == (1000, b"abc")
    assert cut.cut == pb.Cut(stream=pb.OUTPUT_STREAM_STDOUT, dropped_bytes=4_999_000)
    assert last.ended.exit_code == 0


def test_a_caller_that_hangs_up_takes_its_command_with_it(client: Client, box: pb.BoxRef) -> None:
    for script in ("sleep 1000", "yes"):  # a silent command, and one that is held back by its caller
        answers = client.RunCommand(request(box, script, live=True))
        next(answers)
        assert live(client, box) == 1
        answers.cancel()
        wait_until(lambda: live(client, box) == 0, f"the end of {script}")


def test_a_kept_command_outlives_its_caller_and_can_be_joined(client: Client, box: pb.BoxRef) -> None:
    execution_id = ids.execution_id()
    asked = request(box, "echo once >>times; cat times; sleep 1000", execution_id=execution_id, live=True, kept=True)
    for _ in range(2):
        answers = client.RunCommand(asked)
        next(answers)
        assert next(answers).events[0].chunk.data == b"once\n"
        answers.cancel()
    ref = pb.ExecutionRef(box_id=box.box_id, execution_id=execution_id)
    assert client.GetExecution(ref).status == pb.EXECUTION_STATUS_RUNNING
    client.KillExecution(ref)
    assert events_of(client.RunCommand(asked))[-1].ended.status == pb.EXECUTION_STATUS_KILLED


def test_what_cannot_be_run_is_refused(client: Client, box: pb.BoxRef) -> None:
    start = pb.StartExecutionRequest(box=box, execution_id="x", command="nosuch")
    assert refusal(client.RunCommand, pb.RunCommandRequest(start=start))[1] == "execution_failed"
    assert refusal(client.RunCommand, pb.RunCommandRequest())[1] == "invalid_argument"
    other = pb.BoxRef(box_id=ids.new_id(), generation=1)
    assert refusal(client.RunCommand, request(other, "true"))[1] == "not_found"


def test_more_commands_than_the_worker_serves_are_refused(
    fake_site: Site, client: Client, box: pb.BoxRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "MAX_RUNS", 1)
    server = make_server(service_of(fake_site, tmp_path), SECRET)
    narrow = Client(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    server.start()
    first = narrow.RunCommand(request(box, "sleep 1000", live=True))
    next(first)
    status, code, text = refusal(narrow.RunCommand, request(box, "true"))
    assert (status, code) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "resource_exhausted")
    assert "runs 1 commands for waiting callers already" in text
    first.cancel()
    wait_until(lambda: live(narrow, box) == 0, "the end of the first command")
    assert events_of(narrow.RunCommand(request(box, "true")))[-1].ended.exit_code == 0
    narrow.channel.close()
    server.stop(0).wait()


def test_a_hundred_commands_leave_no_thread_and_no_call(client: Client, box: pb.BoxRef) -> None:
    metadata = rpc.with_secret(SECRET)

    def once() -> None:
        events_of(client.stub.RunCommand(request(box, "echo x"), metadata=metadata, timeout=60))

    once()
    threads = {thread.name for thread in threading.enumerate() if not thread.name.startswith("rpc")}
    for _ in range(100):
        once()
    wait_until(
        lambda: {t.name for t in threading.enumerate() if not t.name.startswith("rpc")} <= threads, "all threads end"
    )
    assert live(client, box) == 0
