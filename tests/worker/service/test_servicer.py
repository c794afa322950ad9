"""The worker over real gRPC, with the fake runtime behind it."""

from __future__ import annotations

import itertools
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from support.calls import EPOCH, SECRET, Client, create_request, execute, refusal, service_of
from support.cluster import wait_until
from support.fake_runtime import PULLABLE_IMAGE
from support.sites import Site, in_thread

from boxlite_server import ids, rpc
from boxlite_server._gen import worker_pb2 as pb
from boxlite_server.errors import InvalidStateError
from boxlite_server.worker.runtime import BoxRef
from boxlite_server.worker.service import servicer as service_module
from boxlite_server.worker.service.order import BoxOrder
from boxlite_server.worker.service.servicer import make_server


@pytest.fixture
def box(served_box: pb.BoxRef) -> pb.BoxRef:
    """A running box of the served worker."""
    return served_box


def reading(client: Client, request: pb.ReadOutputRequest) -> Iterator[pb.OutputEvent]:
    """The events of an execution's output, one by one."""
    call = client.ReadOutput(request)
    try:
        for batch in call:
            yield from batch.events
    finally:
        call.cancel()


def test_calls_without_the_secret_are_refused(client: Client) -> None:
    request = pb.ReadOutputRequest()
    for metadata in (None, rpc.with_secret("another"), (("authorization", SECRET),)):
        for method, message in ((client.stub.ListBoxes, pb.Empty()), (client.stub.ReadOutput, request)):
            status, code, _ = refusal(lambda m=method, q=message, of=metadata: m(q, metadata=of, timeout=60))
            assert (status, code) == (grpc.StatusCode.UNAUTHENTICATED, "unauthenticated")


def test_calls_to_a_former_life_are_refused(client: Client) -> None:
    assert client.stub.ListBoxes(pb.Empty(), metadata=rpc.with_secret(SECRET, EPOCH), timeout=60) is not None
    former = rpc.with_secret(SECRET, "another epoch")
    for method, message in ((client.stub.ListBoxes, pb.Empty()), (client.stub.ReadOutput, pb.ReadOutputRequest())):
        status, code, text = refusal(lambda m=method, q=message: m(q, metadata=former, timeout=60))
        assert (status, code) == (grpc.StatusCode.UNAVAILABLE, "upstream_unavailable")
        assert "former life" in text
    # A caller without the secret learns nothing about epochs.
    stranger = rpc.with_secret("another", "another epoch")
    assert refusal(lambda: client.stub.ListBoxes(pb.Empty(), metadata=stranger, timeout=60))[1] == "unauthenticated"


def test_readers_are_told_to_go_and_the_server_ends(fake_site: Site, tmp_path: Path, client: Client) -> None:
    box = pb.BoxRef(box_id=ids.new_id(), generation=1)
    client.CreateBox(create_request(fake_site, box, cmd=["sh", "-c", "echo main; sleep 1000"]))
    client.StartBox(box)
    service = service_of(fake_site, tmp_path)
    server = make_server(service, SECRET, EPOCH)
    ending = Client(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    server.start()
    output = reading(ending, pb.ReadOutputRequest(execution=execute(ending, box, "sh", "-c", "echo x; sleep 1000")))
    logs = ending.ReadLogs(pb.ReadLogsRequest(box=box, follow=True))
    assert next(output).chunk.data == b"x\n"
    assert next(logs).data == b"main\n"
    stopped = server.stop(600)
    service.end_readers()
    for stream in (output, logs):
        status, code, text = refusal(list, stream)
        assert (status, code) == (grpc.StatusCode.UNAVAILABLE, "upstream_unavailable")
        assert "shutting down" in text
    assert stopped.wait(60), "long before the grace is over"
    ending.channel.close()
    client.RemoveBox(pb.RemoveBoxRequest(box=box, force=True))


def test_a_life_over_the_wire(fake_site: Site, client: Client) -> None:
    ref = pb.BoxRef(box_id=ids.new_id(), generation=1)
    created = client.CreateBox(create_request(fake_site, ref))
    assert (created.box_id, created.generation, created.status) == (ref.box_id, 1, pb.BOX_STATUS_CONFIGURED)
    assert not created.HasField("pid")
    assert created.image_id.startswith("sha256:")
    created.ClearField("image_id")
    assert client.CreateBox(create_request(fake_site, ref)) == created
    started = client.StartBox(ref)
    assert started.status == pb.BOX_STATUS_RUNNING
    assert started.pid > 0
    assert not started.HasField("exit_code")
    assert client.GetBox(ref) == started
    held = client.ListBoxes(pb.Empty())
    assert held.engine_life == started.engine_life == fake_site.runtime.life()
    started.ClearField("engine_life")
    assert started in held.boxes
    stopped = client.StopBox(pb.StopBoxRequest(box=ref, timeout_seconds=5))
    assert (stopped.status, stopped.exit_code) == (pb.BOX_STATUS_STOPPED, 143)
    client.RemoveBox(pb.RemoveBoxRequest(box=ref))
    client.RemoveBox(pb.RemoveBoxRequest(box=ref))
    assert refusal(client.GetBox, ref)[:2] == (grpc.StatusCode.NOT_FOUND, "not_found")


def test_a_box_is_made_and_started_by_one_call(fake_site: Site, client: Client) -> None:
    ref = pb.BoxRef(box_id=ids.new_id(), generation=1, wish=1)
    request = create_request(fake_site, ref)
    request.start = True
    started = client.CreateBox(request)
    assert (started.status, started.engine_life) == (pb.BOX_STATUS_RUNNING, fake_site.runtime.life())
    assert client.CreateBox(request) == started
    client.StopBox(pb.StopBoxRequest(box=pb.BoxRef(box_id=ref.box_id, generation=1, wish=2)))
    assert refusal(client.CreateBox, request)[1] == "invalid_state"
    client.RemoveBox(pb.RemoveBoxRequest(box=ref))


def test_a_box_that_cannot_be_started_at_once_is_not_left(fake_site: Site, client: Client) -> None:
    ref = pb.BoxRef(box_id=ids.new_id(), generation=1, wish=1)
    request = create_request(fake_site, ref, cmd=["/no/such/program"])
    request.start = True
    assert refusal(client.CreateBox, request)[1] == "execution_failed"
    assert refusal(client.GetBox, ref)[1] == "not_found"


def test_a_late_start_stop_or_change_of_size_is_refused(fake_site: Site, client: Client) -> None:
    def wish(number: int) -> pb.BoxRef:
        return pb.BoxRef(box_id="a-box-that-is-wished-for", generation=1, wish=number)

    client.CreateBox(create_request(fake_site, wish(0)))
    client.StartBox(wish(1))
    client.StopBox(pb.StopBoxRequest(box=wish(2)))
    assert refusal(client.StartBox, wish(1))[1] == "invalid_state"
    assert client.GetBox(wish(1)).status == pb.BOX_STATUS_STOPPED
    client.StartBox(wish(3))
    assert refusal(client.StopBox, pb.StopBoxRequest(box=wish(2)))[1] == "invalid_state"
    assert client.StartBox(wish(3)).status == pb.BOX_STATUS_RUNNING
    client.UpdateBox(pb.UpdateBoxRequest(box=wish(5), cpus=1, memory_mib=128))
    late = pb.UpdateBoxRequest(box=wish(4), cpus=1, memory_mib=256)
    assert refusal(client.UpdateBox, late)[1] == "invalid_state"
    client.RemoveBox(pb.RemoveBoxRequest(box=wish(0), force=True))


def test_a_call_of_a_former_generation_is_refused_even_after_removal(fake_site: Site, client: Client) -> None:
    former, later = (pb.BoxRef(box_id="a-box-of-two-lives", generation=n) for n in (1, 2))
    client.CreateBox(create_request(fake_site, later))
    client.RemoveBox(pb.RemoveBoxRequest(box=later))
    status, code, _ = refusal(client.CreateBox, create_request(fake_site, former))
    assert (status, code) == (grpc.StatusCode.FAILED_PRECONDITION, "invalid_state")


def test_unnamed_things_are_refused(fake_site: Site, client: Client, box: pb.BoxRef) -> None:
    for call, request in [
        (client.GetBox, pb.BoxRef(box_id="x")),
        (client.GetBox, pb.BoxRef(generation=1)),
        (client.CreateBox, pb.CreateBoxRequest(box=pb.BoxRef(box_id="x", generation=1))),
        (client.StartExecution, pb.StartExecutionRequest(box=box, execution_id="x")),
        (client.StartExecution, pb.StartExecutionRequest(box=box, command="x")),
    ]:
        assert refusal(call, request)[1] == "invalid_argument"


def test_errors_keep_their_code_and_text(fake_site: Site, client: Client, box: pb.BoxRef) -> None:
    other = pb.BoxRef(box_id=ids.new_id(), generation=1)
    request = create_request(fake_site, other)
    request.spec.image = "no-such-image"
    assert refusal(client.CreateBox, request)[1] == "image_pull_failed"
    execution = pb.StartExecutionRequest(box=box, execution_id="x", command="no-such-command")
    status, code, text = refusal(client.StartExecution, execution)
    assert (status, code) == (grpc.StatusCode.FAILED_PRECONDITION, "execution_failed")
    assert "'no-such-command' not found" in text
    client.StopBox(pb.StopBoxRequest(box=box))
    assert refusal(client.StartExecution, execution)[1] == "stopped"
    unknown = pb.ExecutionRef(box_id=box.box_id, execution_id="unknown")
    for call, message in [
        (client.GetExecution, unknown),
        (client.KillExecution, unknown),
        (client.ReadOutput, pb.ReadOutputRequest(execution=unknown)),
        (client.ReadOutput, pb.ReadOutputRequest(execution=unknown, resume=True)),
        (client.WriteInput, pb.WriteInputRequest(execution=unknown)),
    ]:
        status, code, text = refusal(call, message)
        assert (status, code) == (grpc.StatusCode.NOT_FOUND, "not_found")
        assert "execution unknown not found" in text


def test_an_execution_over_the_wire(client: Client, box: pb.BoxRef) -> None:
    ref = execute(client, box, "sh", "-c", "cat; echo $A >&2; exit 3", env={"A": "b"})
    stream = reading(client, pb.ReadOutputRequest(execution=ref))
    answer = client.WriteInput(pb.WriteInputRequest(execution=ref, data=b"hello", close=True))
    assert answer.accepted == 5
    *events, last = stream
    output = {
        of: b"".join(e.chunk.data for e in events if e.chunk.stream == of)
        for of in (pb.OUTPUT_STREAM_STDOUT, pb.OUTPUT_STREAM_STDERR)
    }
    assert output == {pb.OUTPUT_STREAM_STDOUT: b"hello", pb.OUTPUT_STREAM_STDERR: b"b\n"}
    assert last.WhichOneof("event") == "ended"
    assert (last.ended.status, last.ended.exit_code) == (pb.EXECUTION_STATUS_COMPLETED, 3)
    found = client.GetExecution(ref)
    assert [found.command, *found.args] == ["sh", "-c", "cat; echo $A >&2; exit 3"]
    for field in ("command", "args"):
        found.ClearField(field)  # type: ignore[arg-type]
    assert found == last.ended
    again = list(reading(client, pb.ReadOutputRequest(execution=ref, position=events[-1].position)))
    assert again == [last]


def test_a_page_of_executions_is_bounded_whatever_is_asked(
    client: Client, box: pb.BoxRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "MAX_LISTED", 2)
    for _ in range(3):
        execute(client, box, "true")
    page = client.ListExecutions(pb.ListExecutionsRequest(box=box, count=2**31 - 1))
    assert (len(page.executions), page.more) == (2, True)
    last = page.executions[-1]
    behind = pb.ListExecutionsRequest(box=box, count=1, after_ms=last.started_at_ms, after_id=last.execution_id)
    page = client.ListExecutions(behind)
    assert (len(page.executions), page.more) == (1, False)
    beside = pb.BoxRef(box_id="another", generation=1)
    assert not client.ListExecutions(pb.ListExecutionsRequest(box=beside, count=1)).executions


def test_a_resumed_reading_goes_on_behind_what_was_received(client: Client, box: pb.BoxRef) -> None:
    ref = execute(client, box, "sh", "-c", "echo one; read line; echo $line")
    first, fresh = itertools.islice(reading(client, pb.ReadOutputRequest(execution=ref, resume=True)), 2)
    assert (first.resumed.execution_id, first.resumed.delivered) == (ref.execution_id, pb.Delivered())
    assert fresh.chunk.data == b"one\n"
    delivered = pb.Delivered(bytes=4, position=fresh.position, bytes_at_position=4)
    client.ConfirmOutput(pb.ConfirmOutputRequest(execution=ref, delivered=delivered))
    stream = reading(client, pb.ReadOutputRequest(execution=ref, resume=True))
    assert next(stream).resumed.delivered == delivered, "the state comes before any output"
    client.WriteInput(pb.WriteInputRequest(execution=ref, data=b"two\n", close=True))
    chunk, last = stream
    assert (chunk.chunk.data, last.ended.exit_code) == (b"two\n", 0)


def test_what_is_there_at_once_comes_in_one_message(client: Client, box: pb.BoxRef) -> None:
    ref = execute(client, box, "sh", "-c", "echo one; echo two >&2; exit 3")
    *_, last = reading(client, pb.ReadOutputRequest(execution=ref))
    (batch,) = client.ReadOutput(pb.ReadOutputRequest(execution=ref, resume=True))
    assert [event.WhichOneof("event") for event in batch.events] == ["resumed", "chunk", "chunk", "ended"]
    assert batch.events[-1] == last


def test_signal_and_kill(client: Client, box: pb.BoxRef) -> None:
    ref = execute(client, box, "sleep", "1000")
    client.SignalExecution(pb.SignalExecutionRequest(execution=ref, signal=15))
    (last,) = reading(client, pb.ReadOutputRequest(execution=ref))
    assert last.ended.exit_code == 143
    ref = execute(client, box, "sleep", "1000")
    client.KillExecution(ref)
    (last,) = reading(client, pb.ReadOutputRequest(execution=ref))
    assert (last.ended.status, last.ended.exit_code) == (pb.EXECUTION_STATUS_KILLED, 137)


def test_input_that_is_not_taken_is_told_within_the_deadline(client: Client, box: pb.BoxRef) -> None:
    ref = execute(client, box, "sleep", "1000")
    request = pb.WriteInputRequest(execution=ref, data=b"x" * 3_000_000)
    answer = client.stub.WriteInput(request, metadata=rpc.with_secret(SECRET), timeout=2)
    assert answer.accepted < 3_000_000
    client.KillExecution(ref)


def test_an_end_of_input_in_the_middle_of_a_message_kills_the_command(client: Client, box: pb.BoxRef) -> None:
    ref = execute(client, box, "cat")
    client.WriteInput(pb.WriteInputRequest(execution=ref, data=b"begun", more=True))
    client.WriteInput(pb.WriteInputRequest(execution=ref, close=True))
    *_, last = reading(client, pb.ReadOutputRequest(execution=ref))
    assert (last.ended.status, last.ended.exit_code) == (pb.EXECUTION_STATUS_KILLED, 137)
    assert "input was lost" in last.ended.error_message


def test_an_end_of_input_behind_the_end_of_a_message(client: Client, box: pb.BoxRef) -> None:
    ref = execute(client, box, "cat")
    client.WriteInput(pb.WriteInputRequest(execution=ref, data=b"begun", more=True))
    client.WriteInput(pb.WriteInputRequest(execution=ref))
    client.WriteInput(pb.WriteInputRequest(execution=ref, close=True))
    *_, last = reading(client, pb.ReadOutputRequest(execution=ref))
    assert (last.ended.status, last.ended.exit_code) == (pb.EXECUTION_STATUS_COMPLETED, 0)


def test_attach_box(fake_site: Site, client: Client) -> None:
    ref = pb.BoxRef(box_id=ids.new_id(), generation=1)
    client.CreateBox(create_request(fake_site, ref, cmd=["sh", "-c", "echo hi; exit 4"]))
    execution = client.AttachBox(pb.AttachBoxRequest(box=ref))
    client.StartBox(ref)
    request = pb.ReadOutputRequest(execution=pb.ExecutionRef(box_id=ref.box_id, execution_id=execution.execution_id))
    chunk, last = reading(client, request)
    assert chunk.chunk.data == b"hi\n"
    assert last.ended.exit_code == 4
    client.RemoveBox(pb.RemoveBoxRequest(box=ref))


def test_a_signal_to_the_main_command_needs_no_execution(fake_site: Site, client: Client) -> None:
    ref = pb.BoxRef(box_id=ids.new_id(), generation=1)
    client.CreateBox(create_request(fake_site, ref, cmd=["sleep", "1000"]))
    request = pb.SignalBoxRequest(box=ref, signal=15)
    assert refusal(client.SignalBox, request)[:2] == (grpc.StatusCode.FAILED_PRECONDITION, "invalid_state")
    client.StartBox(ref)
    client.SignalBox(request)
    assert not client.ListExecutions(pb.ListExecutionsRequest(box=ref, count=10)).executions
    wait_until(lambda: client.GetBox(ref).exit_code == 143, "it has ended")
    client.RemoveBox(pb.RemoveBoxRequest(box=ref))


def upload(box: pb.BoxRef, path: str, *data: bytes) -> Iterator[pb.PutFilesRequest]:
    yield opening(box, path)
    for chunk in data:
        yield pb.PutFilesRequest(data=chunk)
    yield pb.PutFilesRequest(end=True)


def opening(box: pb.BoxRef, path: str) -> pb.PutFilesRequest:
    return pb.PutFilesRequest(header=pb.PutFilesHeader(box=box, path=path, overwrite=True))


def archive_of(name: str, data: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info.tobuf() + data.ljust(-(-len(data) // 512) * 512, b"\0") + bytes(1024)


def test_files_over_the_wire(client: Client, box: pb.BoxRef) -> None:
    archive = archive_of("any", b"content" * 100_000)
    client.PutFiles(upload(box, "/d/f", archive[:1000], archive[1000:]))
    chunks = list(client.GetFiles(pb.GetFilesRequest(box=box, path="/d/f")))
    assert [chunk.HasField("source_is_dir") for chunk in chunks] == [True] + [False] * (len(chunks) - 1)
    assert not chunks[0].source_is_dir
    assert b"content" * 100_000 in b"".join(chunk.data for chunk in chunks)
    assert all(len(chunk.data) <= rpc.CHUNK_BYTES for chunk in chunks)
    assert next(client.GetFiles(pb.GetFilesRequest(box=box, path="/d"))).source_is_dir


def test_a_small_file_is_one_message_either_way(client: Client, box: pb.BoxRef) -> None:
    archive = archive_of("any", b"content")
    request = pb.PutSmallFilesRequest(header=opening(box, "/d/f").header, archive=archive)
    client.PutSmallFiles(request)
    (chunk,) = client.GetFiles(pb.GetFilesRequest(box=box, path="/d/f"))
    assert chunk.is_all
    assert b"content" in chunk.data
    request.archive = b"no archive"
    assert refusal(client.PutSmallFiles, request)[1] == "invalid_argument"
    client.PutFiles(upload(box, "/d/large", archive_of("any", bytes(rpc.CHUNK_BYTES))))
    first, *others = client.GetFiles(pb.GetFilesRequest(box=box, path="/d/large"))
    assert others
    assert not any(chunk.is_all for chunk in (first, *others))


def test_refused_transfers(client: Client, box: pb.BoxRef) -> None:
    unknown = pb.BoxRef(box_id="nosuchbox000", generation=1)
    for call, request, code in [
        (client.GetFiles, pb.GetFilesRequest(box=box, path="/nosuch"), "not_found"),
        (client.GetFiles, pb.GetFilesRequest(box=unknown, path="/"), "not_found"),
        (client.PutFiles, upload(unknown, "/x"), "not_found"),
        (client.PutFiles, upload(box, "/proc/x"), "invalid_argument"),
        (client.PutFiles, upload(box, "/x", b"no archive"), "invalid_argument"),
        (client.PutFiles, iter(()), "invalid_argument"),
    ]:
        assert refusal(call, request)[1] == code


def test_an_upload_is_accepted_before_its_data(client: Client, box: pb.BoxRef) -> None:
    """A client that sends its data at once would not hear why the upload is refused."""
    accepted = threading.Event()

    def requests() -> Iterator[pb.PutFilesRequest]:
        yield opening(box, "/accepted")
        assert accepted.wait(60)
        yield pb.PutFilesRequest(data=archive_of("f", b"x"))
        yield pb.PutFilesRequest(end=True)

    call = client.stub.PutFiles.future(requests(), metadata=rpc.with_secret(SECRET), timeout=60)
    assert rpc.ACCEPTED in tuple(call.initial_metadata())
    accepted.set()
    call.result()


def test_an_upload_that_is_cancelled_writes_nothing(client: Client, box: pb.BoxRef) -> None:
    cancelled = threading.Event()

    def requests() -> Iterator[pb.PutFilesRequest]:
        yield opening(box, "/cancelled")
        yield pb.PutFilesRequest(data=archive_of("f", b"x"))
        cancelled.wait(60)

    call = client.stub.PutFiles.future(requests(), metadata=rpc.with_secret(SECRET), timeout=60)
    call.initial_metadata()
    call.cancel()
    cancelled.set()
    assert refusal(client.GetFiles, pb.GetFilesRequest(box=box, path="/cancelled"))[1] == "not_found"


def test_an_upload_that_ends_without_its_end_writes_nothing(client: Client, box: pb.BoxRef) -> None:
    """gRPC can report a stream that was broken off as one that ended."""
    whole = list(upload(box, "/unfinished", archive_of("f", b"x")))
    assert refusal(client.PutFiles, iter(whole[:-1]))[1:] == (
        "upstream_unavailable",
        "the upload broke off before its end",
    )
    assert refusal(client.GetFiles, pb.GetFilesRequest(box=box, path="/unfinished"))[1] == "not_found"


def test_transfers_are_limited(
    fake_site: Site, box: pb.BoxRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "MAX_TRANSFERS", 1)
    server = make_server(service_of(fake_site, tmp_path), SECRET)
    limited = Client(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    server.start()
    done = threading.Event()

    def requests() -> Iterator[pb.PutFilesRequest]:
        yield opening(box, "/one")
        assert done.wait(60)
        yield pb.PutFilesRequest(data=archive_of("f", b"x"))
        yield pb.PutFilesRequest(end=True)

    call = limited.stub.PutFiles.future(requests(), metadata=rpc.with_secret(SECRET), timeout=60)
    call.initial_metadata()
    assert refusal(limited.PutFiles, upload(box, "/two"))[1] == "resource_exhausted"
    done.set()
    call.result()
    limited.PutFiles(upload(box, "/two", archive_of("f", b"x")))
    limited.channel.close()
    server.stop(0).wait()


def test_readers_are_limited_and_other_calls_go_on(
    fake_site: Site, box: pb.BoxRef, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "MAX_READERS", 2)
    server = make_server(service_of(fake_site, tmp_path), SECRET)
    limited = Client(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    server.start()
    ref = execute(limited, box, "sh", "-c", "echo x; sleep 1000")
    request = pb.ReadOutputRequest(execution=ref)
    streams = [reading(limited, request) for _ in range(2)]
    for stream in streams:
        assert next(stream).chunk.data == b"x\n"
    status, code, _ = refusal(limited.ReadOutput, request)
    assert (status, code) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "resource_exhausted")
    assert limited.GetExecution(ref).status == pb.EXECUTION_STATUS_RUNNING
    streams[0].close()
    while True:  # the place is free once the server has noticed
        try:
            assert next(reading(limited, request)).chunk.data == b"x\n"
            break
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
    limited.KillExecution(ref)
    assert [event.WhichOneof("event") for event in streams[1]] == ["ended"]
    limited.channel.close()
    server.stop(0).wait()


class TestBoxOrder:
    def test_one_box_one_call(self) -> None:
        order, inside, most = BoxOrder(), [0], [0]
        lock = threading.Lock()

        def call(_: int) -> None:
            with order.turn(BoxRef("one", 1)):
                with lock:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                with lock:
                    inside[0] -= 1

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(call, range(200)))
        assert most[0] == 1

    def test_another_box_does_not_wait(self) -> None:
        order = BoxOrder()
        with order.turn(BoxRef("one", 1)):
            thread = in_thread(lambda: order.turn(BoxRef("two", 1)).__enter__())
            thread.join(60)
            assert not thread.is_alive()

    def test_a_waiting_call_of_a_former_generation_is_refused(self) -> None:
        order = BoxOrder()
        with order.turn(BoxRef("one", 2)):
            pass
        with pytest.raises(InvalidStateError), order.turn(BoxRef("one", 1)):
            pytest.fail("entered")
        with order.turn(BoxRef("one", 2)):
            pass


def test_images_over_the_wire(client: Client) -> None:
    *progress, last = client.PullImage(pb.PullImageRequest(reference=PULLABLE_IMAGE))
    assert [(event.progress.current_bytes, event.progress.total_bytes) for event in progress] == [(500, 1000)]
    assert (last.image.reference, last.image.size_bytes) == (PULLABLE_IMAGE, 1000)
    assert last.image.pulled
    last.image.pulled = False
    assert last.image in client.ListImages(pb.Empty()).images
    client.RemoveImage(pb.RemoveImageRequest(reference=PULLABLE_IMAGE))
    assert last.image not in client.ListImages(pb.Empty()).images
    status, code, text = refusal(client.PullImage, pb.PullImageRequest(reference="no/such:image"))
    assert (status, code) == (grpc.StatusCode.FAILED_PRECONDITION, "image_pull_failed")
    assert "no/such:image" in text


def test_volumes_mounts_and_ports_over_the_wire(client: Client, fake_site: Site) -> None:
    ref, volume = pb.BoxRef(box_id=ids.new_id(), generation=1), pb.VolumeRef(volume_id=ids.new_id())
    assert refusal(client.CreateVolume, pb.VolumeRef())[1] == "invalid_argument"
    made = client.CreateVolume(volume)
    assert list(client.ListVolumes(pb.Empty()).volumes) == [made]
    wanted = pb.PortMapping(guest_port=80, protocol="tcp", host_ip="127.0.0.1")
    mount = pb.Mount(volume_id=volume.volume_id, guest_path="/data", read_only=True)
    spec = {"mounts": [mount], "ports": [wanted], "cap_add": ["CHOWN"], "cap_drop": ["ALL"]}
    assert list(client.CreateBox(create_request(fake_site, ref, **spec)).ports) == []
    (port,) = client.StartBox(ref).ports
    assert (port.guest_port, port.protocol, port.host_ip) == (80, "tcp", "127.0.0.1")
    assert port.host_port
    assert refusal(client.RemoveVolume, volume)[1] == "invalid_state"
    client.RemoveBox(pb.RemoveBoxRequest(box=ref, force=True))
    client.RemoveVolume(volume)
    assert list(client.ListVolumes(pb.Empty()).volumes) == []
    ref.box_id = ids.new_id()
    for field in ({"cap_add": ["SYS_ADMIN"]}, {"mounts": [pb.Mount(host_path="/", guest_path="/data")]}):
        code = refusal(client.CreateBox, create_request(fake_site, ref, **field))[1]
        assert code == ("unsupported" if "cap_add" in field else "invalid_argument")


def test_snapshots_over_the_wire(fake_site: Site, client: Client, box: pb.BoxRef) -> None:
    ref = pb.SnapshotRef(box=box, snapshot_id=ids.new_id())
    made = client.CreateSnapshot(ref)
    assert made.snapshot_id == ref.snapshot_id
    assert client.CreateSnapshot(ref) == made
    spec = create_request(fake_site, box).spec
    back = pb.RestoreSnapshotRequest(snapshot=ref, new_generation=box.generation, spec=spec)
    assert refusal(client.RestoreSnapshot, back)[1] == "invalid_argument"
    back.new_generation += 1
    assert refusal(client.RestoreSnapshot, back)[1] == "invalid_state"
    client.StopBox(pb.StopBoxRequest(box=box, timeout_seconds=1))
    restored = client.RestoreSnapshot(back)
    assert (restored.generation, restored.status) == (box.generation + 1, pb.BOX_STATUS_CONFIGURED)
    assert client.RestoreSnapshot(back) == restored
    later = pb.BoxRef(box_id=box.box_id, generation=restored.generation)
    client.StartBox(later)
    assert refusal(client.RestoreSnapshot, back)[1] == "invalid_state"
    client.RemoveSnapshot(pb.SnapshotRef(box=later, snapshot_id=ref.snapshot_id))
    assert refusal(client.CreateSnapshot, pb.SnapshotRef(box=later))[1] == "invalid_argument"
    box.generation = later.generation


def test_archives_over_the_wire(fake_site: Site, client: Client, box: pb.BoxRef) -> None:
    chunks = list(client.ExportBox(box))
    assert chunks[0].settings.cmd == ["sh"]
    data = b"".join(chunk.data for chunk in chunks[1:])
    new = pb.BoxRef(box_id=ids.new_id(), generation=1)
    first = pb.ImportBoxRequest(box=create_request(fake_site, new, cmd=["sh"]))
    pieces = [pb.ImportBoxRequest(data=piece) for piece in rpc.chunks(data)]
    assert refusal(client.ImportBox, iter(pieces))[1] == "invalid_argument"
    assert refusal(client.ImportBox, iter([first, *pieces]))[1] == "upstream_unavailable"
    assert refusal(client.GetBox, new)[1] == "not_found"
    done = client.ImportBox(iter([first, *pieces, pb.ImportBoxRequest(end=True)]))
    assert (done.box_id, done.status) == (new.box_id, pb.BOX_STATUS_CONFIGURED)
    client.RemoveBox(pb.RemoveBoxRequest(box=new, force=True))
