"""Commands that one call runs from their start to their end, over real gRPC."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.calls import SECRET, Client, refusal, service_of
from support.cluster import wait_until
from support.sites import Site, collect

from boxlite_server import ids, rpc
from boxlite_server._gen import worker_pb2 as pb
from boxlite_server.worker.commands import ExecSpec
from boxlite_server.worker.runtime import BoxRef
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


def live(client: Client, box: pb.BoxRef) -> int:
    return int(client.GetBox(box).live_executions)


def test_a_command_in_one_call(client: Client, box: pb.BoxRef) -> None:
    result = client.RunCommand(request(box, "cat; echo err >&2; exit 3", input=b"in"))
    assert (result.stdout, result.stderr) == (b"in", b"err\n")
    assert (result.ended.status, result.ended.exit_code) == (pb.EXECUTION_STATUS_COMPLETED, 3)
    assert (result.stdout_dropped_bytes, result.stderr_dropped_bytes, result.loss) == (0, 0, "")


def test_a_streamed_command_says_first_that_it_runs(client: Client, box: pb.BoxRef) -> None:
    execution_id = ids.execution_id()
    answers = client.StreamCommand(request(box, "cat; echo err >&2; read x", execution_id=execution_id))
    assert next(answers) == pb.OutputEvent()
    assert next(answers).chunk == pb.OutputChunk(stream=pb.OUTPUT_STREAM_STDERR, data=b"err\n")
    assert [answer.ended.execution_id for answer in answers] == [execution_id]


def test_output_behind_the_limit_is_counted(client: Client, box: pb.BoxRef) -> None:
    asked = request(box, "head -c 5000000 /dev/zero; printf abc >&2", max_output_bytes=1000)
    result = client.RunCommand(asked)
    assert (len(result.stdout), result.stderr) == (1000, b"abc")
    assert (result.stdout_dropped_bytes, result.stderr_dropped_bytes) == (4_999_000, 0)
    asked.start.execution_id = ids.execution_id()
    *_, cut, last = client.StreamCommand(asked)
    assert cut.cut == pb.Cut(stream=pb.OUTPUT_STREAM_STDOUT, dropped_bytes=4_999_000)
    assert last.ended.exit_code == 0


def test_the_longest_output_that_can_be_asked_for_fits_an_answer(client: Client, box: pb.BoxRef) -> None:
    most = 4 * 2**20
    result = client.RunCommand(request(box, f"head -c {most} /dev/zero | tee /dev/stderr", max_output_bytes=most))
    assert (len(result.stdout), len(result.stderr)) == (most, most)


def test_a_caller_that_hangs_up_takes_its_command_with_it(client: Client, box: pb.BoxRef) -> None:
    for script in ("sleep 1000", "yes"):  # a silent command, and one that is held back by its caller
        answers = client.StreamCommand(request(box, script))
        next(answers)
        assert live(client, box) == 1
        answers.cancel()
        wait_until(lambda: live(client, box) == 0, f"the end of {script}")
        waiting = client.stub.RunCommand.future(request(box, script), metadata=rpc.with_secret(SECRET))
        wait_until(lambda: live(client, box) == 1, f"the start of {script}")
        waiting.cancel()
        wait_until(lambda: live(client, box) == 0, f"the end of {script}")


def test_a_kept_command_outlives_its_caller_and_can_be_joined(client: Client, box: pb.BoxRef) -> None:
    execution_id = ids.execution_id()
    asked = request(box, "echo once >>times; cat times; sleep 1000", execution_id=execution_id, kept=True)
    for _ in range(2):
        answers = client.StreamCommand(asked)
        next(answers)
        assert next(answers).chunk.data == b"once\n"
        answers.cancel()
    ref = pb.ExecutionRef(box_id=box.box_id, execution_id=execution_id)
    assert client.GetExecution(ref).status == pb.EXECUTION_STATUS_RUNNING
    client.KillExecution(ref)
    result = client.RunCommand(asked)
    assert (result.stdout, result.ended.status) == (b"once\n", pb.EXECUTION_STATUS_KILLED)


def test_what_cannot_be_run_is_refused(client: Client, box: pb.BoxRef) -> None:
    start = pb.StartExecutionRequest(box=box, execution_id="x", command="nosuch")
    other = pb.BoxRef(box_id=ids.new_id(), generation=1)
    for call in (client.RunCommand, client.StreamCommand):
        assert refusal(call, pb.RunCommandRequest(start=start))[1] == "execution_failed"
        assert refusal(call, pb.RunCommandRequest())[1] == "invalid_argument"
        assert refusal(call, request(other, "true"))[1] == "not_found"


def test_more_commands_than_the_worker_serves_are_refused(
    fake_site: Site, client: Client, box: pb.BoxRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "MAX_RUNS", 1)
    server = make_server(service_of(fake_site, tmp_path), SECRET)
    narrow = Client(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    server.start()
    first = narrow.StreamCommand(request(box, "sleep 1000"))
    next(first)
    status, code, text = refusal(narrow.RunCommand, request(box, "true"))
    assert (status, code) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "resource_exhausted")
    assert "runs 1 commands for waiting callers already" in text
    first.cancel()
    wait_until(lambda: live(narrow, box) == 0, "the end of the first command")
    assert narrow.RunCommand(request(box, "true")).ended.exit_code == 0
    narrow.channel.close()
    server.stop(0).wait()


def test_a_hundred_commands_leave_no_thread_and_no_call(client: Client, box: pb.BoxRef) -> None:
    def once() -> None:
        assert client.RunCommand(request(box, "echo x")).stdout == b"x\n"

    once()
    threads = {thread.name for thread in threading.enumerate() if not thread.name.startswith("rpc")}
    for _ in range(100):
        once()
    wait_until(
        lambda: {t.name for t in threading.enumerate() if not t.name.startswith("rpc")} <= threads, "all threads end"
    )
    assert live(client, box) == 0


def test_a_worker_that_shuts_down_lets_short_commands_end_and_kept_ones_go_on(
    fake_site: Site, client: Client, box: pb.BoxRef, tmp_path: Path
) -> None:
    service = service_of(fake_site, tmp_path)
    server = make_server(service, SECRET)
    ending = Client(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    server.start()
    script = "until test -e go-on; do sleep 0.02; done; echo done"
    short = ending.stub.RunCommand.future(request(box, script), metadata=rpc.with_secret(SECRET))
    kept = ending.StreamCommand(request(box, script, kept=True))
    next(kept)
    wait_until(lambda: live(ending, box) == 2, "both commands run")
    stopped = server.stop(60)
    service.end_readers()
    status, code, text = refusal(list, kept)
    assert (status, code) == (grpc.StatusCode.UNAVAILABLE, "upstream_unavailable")
    assert "what runs in its boxes goes on" in text
    collect(fake_site.runtime.spawn(BoxRef(box.box_id, box.generation), ExecSpec(("touch", "go-on"))))
    assert short.result(60).stdout == b"done\n"
    assert stopped.wait(60)
    ending.channel.close()
