"""The worker's gRPC service: each call is translated to the runtime, the executions or the files."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress

import grpc

from ... import rpc
from ..._gen import worker_pb2 as pb
from ..._gen import worker_pb2_grpc as pb_grpc
from ...errors import BoxliteError, InvalidArgumentError
from ..executions.execution import Delivered, Execution
from ..executions.registry import Executions
from ..executions.run import Event, collect, follow, head, run
from ..executions.threads import Threads
from ..files.tar import disk
from ..files.transfer import Files
from ..membership.inventory import in_one_life
from ..runtime import BoxRef, BoxRuntime, BoxState
from ..shares import Shares
from . import messages
from .calls import answers
from .file_calls import FileCalls
from .incoming import drain, imported
from .order import BoxOrder
from .readers import Readers

MAX_CALLS = 1536
# Readers, runs and transfers hold their threads for long; the rest of MAX_CALLS is left to the other calls, most of it
# to the boxes that wait for their start.
MAX_READERS = 400
MAX_RUNS = 256
MAX_TRANSFERS = 256
MAX_LISTED = 1000  # executions in one answer
MAX_CONNECTIONS = 1024  # with the worker's secret or without it
HANDSHAKE_SECONDS = 10.0  # until a connection has begun to speak HTTP/2
IDLE_SECONDS = 60.0  # that a connection may have no call under way
# Seconds after which a connection takes no more calls. It ends with its last one, however long that takes, so only the
# refused callers notice: the channel of a coordinator connects anew.
CONNECTION_SECONDS = 900.0
INPUT_PATIENCE = 5.0  # seconds that one WriteInput waits for a command that does not read


class WorkerService(FileCalls):
    """Serves the calls of worker.proto."""

    def __init__(
        self,
        runtime: BoxRuntime,
        executions: Executions,
        files: Files,
        check_disk: Callable[[], None] = lambda: None,
    ) -> None:
        """`check_disk` raises `ResourceExhaustedError` when nothing may be made that takes room on the disk."""
        transfers = Shares(MAX_TRANSFERS, f"has {MAX_TRANSFERS} transfers under way", quota="transfers")
        super().__init__(files, transfers)
        self._runtime = runtime
        self._executions = executions
        self._check_disk = check_disk
        self._order = BoxOrder()
        self._readers = Readers(MAX_READERS)
        self._runs = Shares(MAX_RUNS, f"runs {MAX_RUNS} commands for waiting callers")

    @property
    def slots(self) -> dict[str, Shares]:
        """The slots of calls that hold their threads for long, by kind."""
        return {"readers": self._readers.slots, "runs": self._runs, "transfers": self._transfers}

    def end_readers(self) -> None:
        """End the calls that read output or logs: the worker is about to shut down."""
        self._readers.end()

    def turn(self, box: BoxRef) -> AbstractContextManager[None]:
        """The turn on a box for something that no call has asked for. Raises `InvalidStateError` when a later
        generation of the box has begun."""
        return self._order.turn(box)

    def _turn(
        self,
        box: BoxRef,
        context: grpc.ServicerContext,
        *,
        makes: bool = False,
        wish: int | None = None,
        any_generation: bool = False,
    ) -> AbstractContextManager[None]:
        return self._order.turn(
            box, makes=makes, wish=wish, any_generation=any_generation, still_wanted=context.is_active
        )

    # ---- boxes ----

    @answers
    def CreateBox(self, request: pb.CreateBoxRequest, context: grpc.ServicerContext) -> pb.Box:
        box = messages.ref(request.box)
        self._check_disk()
        with self._turn(box, context, makes=True, wish=request.box.wish if request.start else None):
            spec = messages.spec(request.spec)
            if request.prepare:
                made = self._runtime.prepare(box, spec)
            else:
                made = self._runtime.create(box, spec, ask_first=request.ask_first)
            answer = messages.box(self._first_start(box) if request.start else made)
            answer.pulled, answer.private_image = made.was_pulled, made.is_private
            return answer

    def _first_start(self, box: BoxRef) -> BoxState:
        """Start a box that was just made; remove the box if it cannot be started."""
        try:
            return self._runtime.start(box)
        except BoxliteError:
            with suppress(BoxliteError):  # what is left is an orphan
                self._runtime.remove(box, force=True)
            self._order.removed(box)
            raise

    @answers
    def StartBox(self, request: pb.BoxRef, context: grpc.ServicerContext) -> pb.Box:
        box = messages.ref(request)
        with self._turn(box, context, wish=request.wish):
            return messages.box(self._runtime.start(box))

    @answers
    def StopBox(self, request: pb.StopBoxRequest, context: grpc.ServicerContext) -> pb.Box:
        box = messages.ref(request.box)
        with self._turn(box, context, wish=request.box.wish):
            return messages.box(self._runtime.stop(box, request.timeout_seconds))

    @answers
    def UpdateBox(self, request: pb.UpdateBoxRequest, context: grpc.ServicerContext) -> pb.Box:
        box = messages.ref(request.box)
        if not request.cpus or not request.memory_mib:
            raise InvalidArgumentError("a box has one cpu and one MiB of memory at least")
        with self._turn(box, context, wish=request.box.wish):
            return messages.box(self._runtime.resize(box, request.cpus, request.memory_mib))

    @answers
    def RemoveBox(self, request: pb.RemoveBoxRequest, context: grpc.ServicerContext) -> pb.Empty:
        box = messages.ref(request.box)
        with self._turn(box, context):
            self._runtime.remove(box, request.force)
            self._order.removed(box)
            self._executions.forget_box(box.box_id)
        return pb.Empty()

    @answers
    def GetBox(self, request: pb.BoxRef, context: grpc.ServicerContext) -> pb.Box:
        box = messages.ref(request)
        state, life = in_one_life(self._runtime, lambda: self._runtime.inspect(box))
        answer = messages.box(state)
        answer.engine_life = life
        # The engine also counts the commands that a former worker process has started.
        answer.live_executions = max(state.commands, self._executions.running_in(request.box_id))
        if (idle := self._executions.tally(request.box_id).idle_seconds) is not None:
            answer.idle_seconds = idle
        return answer

    @answers
    def ListBoxes(self, request: pb.Empty, context: grpc.ServicerContext) -> pb.ListBoxesResponse:
        states, life = in_one_life(self._runtime, self._runtime.list_boxes)
        return pb.ListBoxesResponse(boxes=[messages.box(state) for state in states], engine_life=life)

    # ---- executions ----

    @answers
    def StartExecution(self, request: pb.StartExecutionRequest, context: grpc.ServicerContext) -> pb.Execution:
        started = self._executions.start(
            request.execution_id,
            messages.ref(request.box),
            messages.exec_spec(request),
            request.timeout_seconds,
            hangup=request.hangup_seconds,
            expects_reader=request.expects_reader,
            stdin=b"" if request.no_input else None,
        )
        answer = messages.execution(started)
        if request.wants_events:
            execution = self._executions.find(request.box.box_id, request.execution_id)
            answer.events.extend(map(messages.output_event, execution.brief_events()))
        return answer

    @answers
    def RunCommand(self, request: pb.RunCommandRequest, context: grpc.ServicerContext) -> pb.RunResult:
        with self._running(request, context) as events:
            return messages.run_result(collect(events, request.max_output_bytes))

    @answers
    def StreamCommand(self, request: pb.RunCommandRequest, context: grpc.ServicerContext) -> Iterator[pb.OutputEvent]:
        with self._running(request, context) as events:
            yield from map(messages.output_event, head(events, request.max_output_bytes))

    @contextmanager
    def _running(self, request: pb.RunCommandRequest, context: grpc.ServicerContext) -> Iterator[Iterator[Event]]:
        """Count the call of a command that is run to its end. Yields the events of the command."""
        start = request.start
        asked = (start.execution_id, messages.ref(start.box), messages.exec_spec(start), start.timeout_seconds)
        if request.kept:
            with self._readers.register(context) as on_end:
                yield follow(self._executions, *asked, request.input, on_end)
            return
        # Such a call is not ended when the worker begins to shut down: most commands end within the grace period.
        with self._runs.slot(rpc.TENANT.get()):
            yield run(self._executions, *asked, request.input, context.add_callback)

    @answers
    def AttachBox(self, request: pb.AttachBoxRequest, context: grpc.ServicerContext) -> pb.Execution:
        return messages.execution(self._executions.attach_box(messages.ref(request.box), request.hangup_seconds))

    @answers
    def SignalBox(self, request: pb.SignalBoxRequest, context: grpc.ServicerContext) -> pb.Empty:
        self._runtime.signal(messages.ref(request.box), request.signal)
        return pb.Empty()

    @answers
    def GetExecution(self, request: pb.ExecutionRef, context: grpc.ServicerContext) -> pb.Execution:
        return messages.described(self._executions.find(request.box_id, request.execution_id))

    @answers
    def ListExecutions(
        self, request: pb.ListExecutionsRequest, context: grpc.ServicerContext
    ) -> pb.ListExecutionsResponse:
        after, count = (request.after_ms, request.after_id), min(request.count, MAX_LISTED)
        of_box = [each for each in self._executions.begun() if each.box.box_id == request.box.box_id]
        behind = [each for each in of_box if not request.after_id or _place(each) > after]
        first = heapq.nsmallest(count + 1, behind, key=_place)
        listed = [messages.described(each) for each in first[:count]]
        return pb.ListExecutionsResponse(executions=listed, more=len(first) > count)

    @answers
    def ReadOutput(self, request: pb.ReadOutputRequest, context: grpc.ServicerContext) -> Iterator[pb.OutputEvents]:
        with self._readers.register(context) as on_end:
            ref, position, told = request.execution, request.position, list[pb.OutputEvent]()
            if request.resume:
                state = self._executions.get(ref.box_id, ref.execution_id)
                position = state.delivered.position
                told = [pb.OutputEvent(position=position, resumed=messages.execution(state))]
            for events in self._executions.read_batches(ref.box_id, ref.execution_id, position, on_end):
                if told or events:
                    yield pb.OutputEvents(events=[*told, *map(messages.output_event, events)])
                    told = []

    @answers
    def ReadLogs(self, request: pb.ReadLogsRequest, context: grpc.ServicerContext) -> Iterator[pb.OutputChunk]:
        with self._readers.register(context) as on_end:
            tail = request.tail if request.HasField("tail") else None
            since = request.since if request.HasField("since") else None
            box, timestamps = messages.ref(request.box), request.timestamps
            log = self._runtime.read_logs(box, tail, request.follow, since=since, timestamps=timestamps)
            try:
                if on_end(log.close):
                    while (piece := log.read()) is not None:
                        yield pb.OutputChunk(stream=messages.STREAM[piece[0]], data=piece[1])
            finally:
                log.close()

    @answers
    def ConfirmOutput(self, request: pb.ConfirmOutputRequest, context: grpc.ServicerContext) -> pb.Empty:
        ref, done = request.execution, request.delivered
        delivered = Delivered(done.bytes, done.position, done.bytes_at_position)
        self._executions.confirm(ref.box_id, ref.execution_id, delivered)
        return pb.Empty()

    @answers
    def WriteInput(self, request: pb.WriteInputRequest, context: grpc.ServicerContext) -> pb.WriteInputResponse:
        box_id, execution_id = request.execution.box_id, request.execution.execution_id
        execution = self._executions.find(box_id, execution_id)
        if request.lost or (request.close and not request.data and execution.in_message):
            self._executions.lose_input(box_id, execution_id)
        # Answer before the caller's deadline: the caller must learn how many bytes were taken.
        patience = min(INPUT_PATIENCE, (context.time_remaining() or INPUT_PATIENCE * 2) / 2)
        accepted, still_open = execution.write(
            request.data, request.close, patience, more=request.more, source=request.source, offset=request.offset
        )
        return pb.WriteInputResponse(accepted=accepted, still_open=still_open)

    @answers
    def SignalExecution(self, request: pb.SignalExecutionRequest, context: grpc.ServicerContext) -> pb.Empty:
        execution = self._executions.find(request.execution.box_id, request.execution.execution_id)
        execution.signal(request.signal)
        return pb.Empty()

    @answers
    def ResizeExecution(self, request: pb.ResizeExecutionRequest, context: grpc.ServicerContext) -> pb.Empty:
        execution = self._executions.find(request.execution.box_id, request.execution.execution_id)
        execution.resize(request.cols, request.rows)
        return pb.Empty()

    @answers
    def KillExecution(self, request: pb.ExecutionRef, context: grpc.ServicerContext) -> pb.Empty:
        self._executions.kill(request.box_id, request.execution_id)
        return pb.Empty()

    # ---- images and volumes ----

    @answers
    def PullImage(self, request: pb.PullImageRequest, context: grpc.ServicerContext) -> Iterator[pb.PullImageEvent]:
        self._check_disk()
        with self._transfer():
            for event in self._runtime.images.pull(request.reference, ask_first=request.ask_first):
                yield messages.pull_event(event)

    @answers
    def ListImages(self, request: pb.Empty, context: grpc.ServicerContext) -> pb.ListImagesResponse:
        return pb.ListImagesResponse(images=[messages.image(image) for image in self._runtime.images.list()])

    @answers
    def RemoveImage(self, request: pb.RemoveImageRequest, context: grpc.ServicerContext) -> pb.Empty:
        self._runtime.images.remove(request.reference)
        return pb.Empty()

    @answers
    def CreateVolume(self, request: pb.VolumeRef, context: grpc.ServicerContext) -> pb.Volume:
        volume_id = messages.volume_id(request)
        with self._order.turn_of("volume", volume_id, makes=True):
            return messages.volume(self._runtime.volumes.create(volume_id))

    @answers
    def RemoveVolume(self, request: pb.VolumeRef, context: grpc.ServicerContext) -> pb.Empty:
        volume_id = messages.volume_id(request)
        with self._order.turn_of("volume", volume_id, removes=True):
            self._runtime.volumes.remove(volume_id)
        return pb.Empty()

    @answers
    def ListVolumes(self, request: pb.Empty, context: grpc.ServicerContext) -> pb.ListVolumesResponse:
        return pb.ListVolumesResponse(volumes=[messages.volume(volume) for volume in self._runtime.volumes.list()])

    # ---- snapshots and archives ----

    @answers
    def CreateSnapshot(self, request: pb.SnapshotRef, context: grpc.ServicerContext) -> pb.Snapshot:
        box, snapshot_id = messages.snapshot_ref(request)
        self._check_disk()
        with self._turn(box, context), self._order.turn_of("snapshot", snapshot_id, makes=True):
            size = self._runtime.disks.snapshot(box, snapshot_id)
        return pb.Snapshot(
            snapshot_id=snapshot_id, container_disk_bytes=size.container_disk_bytes, size_bytes=size.size_bytes
        )

    @answers
    def RemoveSnapshot(self, request: pb.SnapshotRef, context: grpc.ServicerContext) -> pb.Empty:
        box, snapshot_id = messages.snapshot_ref(request)
        # A snapshot outlives the generation that it was made of, and its id is used only once.
        with (
            self._turn(box, context, any_generation=True),
            self._order.turn_of("snapshot", snapshot_id, removes=True),
        ):
            self._runtime.disks.remove_snapshot(box, snapshot_id)
        return pb.Empty()

    @answers
    def ListSnapshots(self, request: pb.Empty, context: grpc.ServicerContext) -> pb.ListSnapshotsResponse:
        kept = self._runtime.disks.list_snapshots()
        snapshots = [pb.SnapshotRef(box=pb.BoxRef(box_id=box_id), snapshot_id=its_id) for box_id, its_id in kept]
        return pb.ListSnapshotsResponse(snapshots=snapshots)

    @answers
    def RestoreSnapshot(self, request: pb.RestoreSnapshotRequest, context: grpc.ServicerContext) -> pb.Box:
        box, snapshot_id = messages.snapshot_ref(request.snapshot)
        if request.new_generation <= box.generation:
            raise InvalidArgumentError("the generation of a restored box must be later than the one it replaces")
        with self._turn(box, context, makes=True):
            spec = messages.spec(request.spec)
            return messages.box(self._runtime.disks.restore(box, snapshot_id, request.new_generation, spec))

    @answers
    def CloneBox(self, request: pb.CloneBoxRequest, context: grpc.ServicerContext) -> pb.Box:
        source, box = messages.ref(request.source), messages.ref(request.box)
        self._check_disk()
        with self._turn(source, context), self._turn(box, context, makes=True):
            return messages.box(self._runtime.disks.clone(source, box, messages.spec(request.spec)))

    @answers
    def ExportBox(self, request: pb.BoxRef, context: grpc.ServicerContext) -> Iterator[pb.ExportChunk]:
        box = messages.ref(request)
        with self._transfer(), ExitStack() as stack:
            with self._turn(box, context):
                export = stack.enter_context(self._runtime.disks.export(box))
            yield pb.ExportChunk(settings=messages.settings(export.settings))
            for data in export.tar:
                yield pb.ExportChunk(data=data)

    @answers
    def ImportBox(self, requests: Iterator[pb.ImportBoxRequest], context: grpc.ServicerContext) -> pb.Box:
        first = next(requests, pb.ImportBoxRequest())
        if not first.HasField("box"):
            raise InvalidArgumentError("an import begins with the box")
        box = messages.ref(first.box.box)
        with self._transfer(), self._turn(box, context, makes=True):
            context.send_initial_metadata((rpc.ACCEPTED,))
            content = imported(requests, self._check_disk)
            try:
                return messages.box(self._runtime.disks.load(box, messages.spec(first.box.spec), disk(content)))
            except BoxliteError:
                drain(requests)
                raise

    # ---- measurements ----

    @answers
    def GetBoxMetrics(self, request: pb.BoxRef, context: grpc.ServicerContext) -> pb.BoxMetrics:
        usage = self._runtime.measure(messages.ref(request))
        return messages.metrics(usage, self._executions.tally(request.box_id).counts)


def _place(execution: Execution) -> tuple[int, str]:
    """The place of an execution in a list."""
    return execution.started_at_ms, execution.execution_id


def make_server(service: WorkerService, secret: str, epoch: str | None = None) -> grpc.Server:
    """Make a server for `service`, not bound and not started.

    It refuses calls without `secret`, and calls that are addressed to another worker process than `epoch`.
    """
    server = grpc.server(
        Threads(),  # type: ignore[arg-type]  # gRPC only submits to it
        interceptors=[rpc.SecretInterceptor(secret), *([rpc.EpochInterceptor(epoch)] if epoch else [])],
        maximum_concurrent_rpcs=MAX_CALLS,
        options=[
            ("grpc.max_receive_message_length", rpc.MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", rpc.MAX_MESSAGE_BYTES),
            ("grpc.so_reuseport", 0),  # binding fails when the port is taken
            ("grpc.http2.min_ping_interval_without_data_ms", 5000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
            ("grpc.server_handshake_timeout_ms", int(HANDSHAKE_SECONDS * 1000)),
            ("grpc.max_connection_idle_ms", int(IDLE_SECONDS * 1000)),
            ("grpc.max_connection_age_ms", int(CONNECTION_SECONDS * 1000)),
        ],
    )
    pb_grpc.add_WorkerServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    return server
