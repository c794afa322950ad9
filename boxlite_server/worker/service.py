"""The gRPC face of the worker: messages to calls and back. What it decides itself is the order of calls
about one box, and that the calls of a former generation come too late."""

from __future__ import annotations

import functools
import inspect
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc

from .. import rpc
from .._gen import worker_pb2 as pb
from .._gen import worker_pb2_grpc as pb_grpc
from ..errors import (
    BoxliteError,
    InvalidArgumentError,
    InvalidStateError,
    ResourceExhaustedError,
)
from .execution import Delivered, Ended, ExecutionState, ExecutionStatus
from .executions import Executions
from .files import Files
from .incoming import Upload, imported
from .output_log import Chunk, Dropped
from .runtime import (
    STDERR,
    STDOUT,
    BoxRef,
    BoxRuntime,
    BoxSpec,
    BoxState,
    BoxStatus,
    ExecSpec,
    Image,
    Mount,
    PortMapping,
    PullProgress,
    Settings,
    Volume,
)
from .usage import Counts, Usage

MAX_CALLS = 768
# Of MAX_CALLS: these hold their thread for long, and other calls must always find one.
MAX_READERS = 400
MAX_TRANSFERS = 256
INPUT_PATIENCE = 5.0  # seconds that one WriteInput waits for a command that does not read
_KNOWN_BOXES = 10_000

_BOX_STATUS = {
    BoxStatus.CONFIGURED: pb.BOX_STATUS_CONFIGURED,
    BoxStatus.RUNNING: pb.BOX_STATUS_RUNNING,
    BoxStatus.STOPPED: pb.BOX_STATUS_STOPPED,
    BoxStatus.PAUSED: pb.BOX_STATUS_PAUSED,
    BoxStatus.FAILED: pb.BOX_STATUS_FAILED,
}
_EXECUTION_STATUS = {
    ExecutionStatus.RUNNING: pb.EXECUTION_STATUS_RUNNING,
    ExecutionStatus.COMPLETED: pb.EXECUTION_STATUS_COMPLETED,
    ExecutionStatus.KILLED: pb.EXECUTION_STATUS_KILLED,
    ExecutionStatus.TIMED_OUT: pb.EXECUTION_STATUS_TIMED_OUT,
}
_STREAM: dict[int, pb.OutputStream] = {STDOUT: pb.OUTPUT_STREAM_STDOUT, STDERR: pb.OUTPUT_STREAM_STDERR}


class BoxOrder:
    """Calls about one box one after the other, calls about different boxes at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turns: dict[str, tuple[threading.Lock, int]] = {}
        self._newest: OrderedDict[str, int] = OrderedDict()

    @contextmanager
    def turn(self, box: BoxRef) -> Iterator[None]:
        """Waits until no other call about the box is under way. Raises `InvalidStateError` when a call of
        a later generation has been seen before."""
        with self._lock:
            mine, waiting = self._turns.get(box.box_id, (threading.Lock(), 0))
            self._turns[box.box_id] = (mine, waiting + 1)
        try:
            with mine:
                self._check(box)
                yield
        finally:
            with self._lock:
                mine, waiting = self._turns[box.box_id]
                if waiting == 1:
                    del self._turns[box.box_id]
                else:
                    self._turns[box.box_id] = (mine, waiting - 1)

    def _check(self, box: BoxRef) -> None:
        with self._lock:
            newest = self._newest.get(box.box_id, 0)
            if box.generation < newest:
                raise InvalidStateError(
                    f"box {box.box_id}: generation {box.generation} is over, generation {newest} has begun"
                )
            self._newest[box.box_id] = box.generation
            self._newest.move_to_end(box.box_id)
            while len(self._newest) > _KNOWN_BOXES:
                self._newest.popitem(last=False)


def _answers(method: Callable[..., Any]) -> Callable[..., Any]:
    """Ends a call that raises with that error; of plain and of streaming calls alike."""
    if inspect.isgeneratorfunction(method):

        @functools.wraps(method)
        def stream(self: WorkerService, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            try:
                yield from method(self, request, context)
            except Exception as exc:
                rpc.abort(context, exc)

        return stream

    @functools.wraps(method)
    def call(self: WorkerService, request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return method(self, request, context)
        except Exception as exc:
            rpc.abort(context, exc)

    return call


class WorkerService(pb_grpc.WorkerServiceServicer):
    """The servicer."""

    def __init__(self, runtime: BoxRuntime, executions: Executions, files: Files) -> None:
        self._runtime = runtime
        self._executions = executions
        self._files = files
        self._order = BoxOrder()
        self._reader_slots = threading.BoundedSemaphore(MAX_READERS)
        self._transfer_slots = threading.BoundedSemaphore(MAX_TRANSFERS)

    # ---- boxes ----

    @_answers
    def CreateBox(self, request: pb.CreateBoxRequest, context: grpc.ServicerContext) -> pb.Box:
        box = _ref(request.box)
        with self._order.turn(box):
            return _box(self._runtime.create(box, _spec(request.spec)))

    @_answers
    def StartBox(self, request: pb.BoxRef, context: grpc.ServicerContext) -> pb.Box:
        box = _ref(request)
        with self._order.turn(box):
            return _box(self._runtime.start(box))

    @_answers
    def StopBox(self, request: pb.StopBoxRequest, context: grpc.ServicerContext) -> pb.Box:
        box = _ref(request.box)
        with self._order.turn(box):
            return _box(self._runtime.stop(box, request.timeout_seconds))

    @_answers
    def RemoveBox(self, request: pb.RemoveBoxRequest, context: grpc.ServicerContext) -> pb.Empty:
        box = _ref(request.box)
        with self._order.turn(box):
            self._runtime.remove(box, request.force)
            self._executions.forget_box(box.box_id)
        return pb.Empty()

    @_answers
    def GetBox(self, request: pb.BoxRef, context: grpc.ServicerContext) -> pb.Box:
        state = self._runtime.inspect(_ref(request))
        answer = _box(state)
        # The engine knows of commands that a former life of this process has started.
        answer.live_executions = max(state.commands, self._executions.running_in(request.box_id))
        if (idle := self._executions.tally(request.box_id).idle_seconds) is not None:
            answer.idle_seconds = idle
        return answer

    @_answers
    def ListBoxes(self, request: pb.Empty, context: grpc.ServicerContext) -> pb.ListBoxesResponse:
        return pb.ListBoxesResponse(boxes=[_box(state) for state in self._runtime.list_boxes()])

    # ---- executions ----

    @_answers
    def StartExecution(self, request: pb.StartExecutionRequest, context: grpc.ServicerContext) -> pb.Execution:
        if not request.execution_id:
            raise InvalidArgumentError("an execution needs an id")
        if not request.command:
            raise InvalidArgumentError("an execution needs a command")
        spec = ExecSpec(
            command=(request.command, *request.args),
            env=dict(request.env),
            working_dir=request.working_dir,
            user=request.user,
            tty=request.tty,
        )
        return _execution(
            self._executions.start(
                request.execution_id,
                _ref(request.box),
                spec,
                request.timeout_seconds,
                hangup=request.hangup_seconds,
                expects_reader=request.expects_reader,
            )
        )

    @_answers
    def AttachBox(self, request: pb.AttachBoxRequest, context: grpc.ServicerContext) -> pb.Execution:
        return _execution(self._executions.attach_box(_ref(request.box), request.hangup_seconds))

    @_answers
    def GetExecution(self, request: pb.ExecutionRef, context: grpc.ServicerContext) -> pb.Execution:
        return _execution(self._executions.get(request.box_id, request.execution_id))

    @_answers
    def ReadOutput(self, request: pb.ReadOutputRequest, context: grpc.ServicerContext) -> Iterator[pb.OutputEvent]:
        if not self._reader_slots.acquire(blocking=False):
            raise ResourceExhaustedError(f"the worker serves {MAX_READERS} readers already; try again later")
        try:
            ref = request.execution
            for event in self._executions.read_output(
                ref.box_id, ref.execution_id, request.position, context.add_callback
            ):
                yield _output_event(event)
        finally:
            self._reader_slots.release()

    @_answers
    def ReadLogs(self, request: pb.ReadLogsRequest, context: grpc.ServicerContext) -> Iterator[pb.OutputChunk]:
        if not self._reader_slots.acquire(blocking=False):
            raise ResourceExhaustedError(f"the worker serves {MAX_READERS} readers already; try again later")
        try:
            tail = request.tail if request.HasField("tail") else None
            log = self._runtime.read_logs(_ref(request.box), tail, request.follow)
            try:
                if context.add_callback(log.close):
                    while (piece := log.read()) is not None:
                        yield pb.OutputChunk(stream=_STREAM[piece[0]], data=piece[1])
            finally:
                log.close()
        finally:
            self._reader_slots.release()

    @_answers
    def ConfirmOutput(self, request: pb.ConfirmOutputRequest, context: grpc.ServicerContext) -> pb.Empty:
        execution = self._executions.find(request.execution.box_id, request.execution.execution_id)
        done = request.delivered
        execution.confirm(Delivered(done.bytes, done.position, done.bytes_at_position))
        return pb.Empty()

    @_answers
    def WriteInput(self, request: pb.WriteInputRequest, context: grpc.ServicerContext) -> pb.WriteInputResponse:
        execution = self._executions.find(request.execution.box_id, request.execution.execution_id)
        # Answer before the caller's own deadline, or it would not learn what has been taken.
        patience = min(INPUT_PATIENCE, (context.time_remaining() or INPUT_PATIENCE * 2) / 2)
        return pb.WriteInputResponse(accepted=execution.write(request.data, request.close, patience))

    @_answers
    def SignalExecution(self, request: pb.SignalExecutionRequest, context: grpc.ServicerContext) -> pb.Empty:
        execution = self._executions.find(request.execution.box_id, request.execution.execution_id)
        execution.signal(request.signal)
        return pb.Empty()

    @_answers
    def ResizeExecution(self, request: pb.ResizeExecutionRequest, context: grpc.ServicerContext) -> pb.Empty:
        execution = self._executions.find(request.execution.box_id, request.execution.execution_id)
        execution.resize(request.cols, request.rows)
        return pb.Empty()

    @_answers
    def KillExecution(self, request: pb.ExecutionRef, context: grpc.ServicerContext) -> pb.Empty:
        self._executions.kill(request.box_id, request.execution_id)
        return pb.Empty()

    # ---- files ----

    @_answers
    def PutFiles(self, request: Iterator[pb.PutFilesRequest], context: grpc.ServicerContext) -> pb.Empty:
        with self._transfer():
            header = next(request, pb.PutFilesRequest()).header
            upload = Upload(request, context)
            try:
                self._files.put(
                    _ref(header.box),
                    header.path,
                    upload,
                    overwrite=header.overwrite,
                    source_is_dir=header.source_is_dir if header.HasField("source_is_dir") else None,
                )
            except BoxliteError:
                upload.drain()
                raise
        return pb.Empty()

    @_answers
    def GetFiles(self, request: pb.GetFilesRequest, context: grpc.ServicerContext) -> Iterator[pb.FilesChunk]:
        with (
            self._transfer(),
            self._files.get(_ref(request.box), request.path, follow_links=request.follow_symlinks) as (is_dir, chunks),
        ):
            # The shape goes with the first bytes: once it is sent, the client is told that all is well.
            yield pb.FilesChunk(source_is_dir=is_dir, data=next(chunks))
            for chunk in chunks:
                yield pb.FilesChunk(data=chunk)

    @contextmanager
    def _transfer(self) -> Iterator[None]:
        if not self._transfer_slots.acquire(blocking=False):
            raise ResourceExhaustedError(f"the worker has {MAX_TRANSFERS} transfers under way; try again later")
        try:
            yield
        finally:
            self._transfer_slots.release()

    # ---- images and volumes ----

    @_answers
    def PullImage(self, request: pb.PullImageRequest, context: grpc.ServicerContext) -> Iterator[pb.PullImageEvent]:
        with self._transfer():
            for event in self._runtime.images.pull(request.reference):
                yield _pull_event(event)

    @_answers
    def ListImages(self, request: pb.Empty, context: grpc.ServicerContext) -> pb.ListImagesResponse:
        return pb.ListImagesResponse(images=[_image(image) for image in self._runtime.images.list()])

    @_answers
    def RemoveImage(self, request: pb.RemoveImageRequest, context: grpc.ServicerContext) -> pb.Empty:
        self._runtime.images.remove(request.reference)
        return pb.Empty()

    @_answers
    def CreateVolume(self, request: pb.VolumeRef, context: grpc.ServicerContext) -> pb.Volume:
        return _volume(self._runtime.volumes.create(_volume_id(request)))

    @_answers
    def RemoveVolume(self, request: pb.VolumeRef, context: grpc.ServicerContext) -> pb.Empty:
        self._runtime.volumes.remove(_volume_id(request))
        return pb.Empty()

    @_answers
    def ListVolumes(self, request: pb.Empty, context: grpc.ServicerContext) -> pb.ListVolumesResponse:
        return pb.ListVolumesResponse(volumes=[_volume(volume) for volume in self._runtime.volumes.list()])

    # ---- snapshots and archives ----

    @_answers
    def CreateSnapshot(self, request: pb.SnapshotRef, context: grpc.ServicerContext) -> pb.Snapshot:
        box, snapshot_id = _snapshot_ref(request)
        with self._order.turn(box):
            size = self._runtime.disks.snapshot(box, snapshot_id)
        return pb.Snapshot(
            snapshot_id=snapshot_id, container_disk_bytes=size.container_disk_bytes, size_bytes=size.size_bytes
        )

    @_answers
    def RemoveSnapshot(self, request: pb.SnapshotRef, context: grpc.ServicerContext) -> pb.Empty:
        box, snapshot_id = _snapshot_ref(request)
        with self._order.turn(box):
            self._runtime.disks.remove_snapshot(box, snapshot_id)
        return pb.Empty()

    @_answers
    def RestoreSnapshot(self, request: pb.RestoreSnapshotRequest, context: grpc.ServicerContext) -> pb.Box:
        box, snapshot_id = _snapshot_ref(request.snapshot)
        if request.new_generation <= box.generation:
            raise InvalidArgumentError("a restored box has a later generation than the one that goes")
        with self._order.turn(box):
            spec = _spec(request.spec)
            return _box(self._runtime.disks.restore(box, snapshot_id, request.new_generation, spec))

    @_answers
    def CloneBox(self, request: pb.CloneBoxRequest, context: grpc.ServicerContext) -> pb.Box:
        source, box = _ref(request.source), _ref(request.box)
        with self._order.turn(source), self._order.turn(box):
            return _box(self._runtime.disks.clone(source, box, _spec(request.spec)))

    @_answers
    def ExportBox(self, request: pb.BoxRef, context: grpc.ServicerContext) -> Iterator[pb.ExportChunk]:
        box = _ref(request)
        with self._transfer(), ExitStack() as stack:
            with self._order.turn(box):
                export = stack.enter_context(self._runtime.disks.export(box))
            yield pb.ExportChunk(settings=_settings(export.settings))
            for data in export.tar:
                yield pb.ExportChunk(data=data)

    @_answers
    def ImportBox(self, requests: Iterator[pb.ImportBoxRequest], context: grpc.ServicerContext) -> pb.Box:
        first = next(requests, pb.ImportBoxRequest())
        if not first.HasField("box"):
            raise InvalidArgumentError("an import begins with the box")
        box = _ref(first.box.box)
        with self._transfer(), self._order.turn(box):
            context.send_initial_metadata((rpc.ACCEPTED,))
            return _box(self._runtime.disks.load(box, _spec(first.box.spec), imported(requests)))

    # ---- measurements ----

    @_answers
    def GetBoxMetrics(self, request: pb.BoxRef, context: grpc.ServicerContext) -> pb.BoxMetrics:
        usage = self._runtime.measure(_ref(request))
        return _metrics(usage, self._executions.tally(request.box_id).counts)


def make_server(service: WorkerService, secret: str) -> grpc.Server:
    """A server for `service`, not bound and not started, that answers only calls with `secret`."""
    server = grpc.server(
        ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="rpc"),
        interceptors=[rpc.SecretInterceptor(secret)],
        maximum_concurrent_rpcs=MAX_CALLS,
        options=[
            ("grpc.max_receive_message_length", rpc.MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", rpc.MAX_MESSAGE_BYTES),
            ("grpc.so_reuseport", 0),  # a port that is taken is an error, not a lottery
            ("grpc.http2.min_ping_interval_without_data_ms", 5000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
        ],
    )
    pb_grpc.add_WorkerServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    return server


# ---- messages --------------------------------------------------------------------------------------------


def _ref(message: pb.BoxRef) -> BoxRef:
    if not message.box_id or not message.generation:
        raise InvalidArgumentError("a box is named by its id and its generation, counted from 1")
    return BoxRef(message.box_id, message.generation)


def _snapshot_ref(message: pb.SnapshotRef) -> tuple[BoxRef, str]:
    if not message.snapshot_id:
        raise InvalidArgumentError("a snapshot needs an id")
    return _ref(message.box), message.snapshot_id


def _spec(message: pb.BoxSpec) -> BoxSpec:
    if not message.image:
        raise InvalidArgumentError("a box needs an image")
    return BoxSpec(
        image=message.image,
        cpus=message.cpus,
        memory_mib=message.memory_mib,
        env=dict(message.env),
        working_dir=message.working_dir,
        entrypoint=tuple(message.entrypoint),
        cmd=tuple(message.cmd),
        user=message.user,
        network_enabled=message.network_enabled,
        tty=message.tty,
        hostname=message.hostname,
        mounts=tuple(Mount(m.guest_path, m.volume_id, m.host_path, m.read_only) for m in message.mounts),
        ports=tuple(PortMapping(p.guest_port, p.host_port, p.protocol, p.host_ip) for p in message.ports),
        cap_add=tuple(message.cap_add),
        cap_drop=tuple(message.cap_drop),
    )


def _box(state: BoxState) -> pb.Box:
    return pb.Box(
        box_id=state.box.box_id,
        generation=state.box.generation,
        status=_BOX_STATUS[state.status],
        pid=state.pid,
        exit_code=state.exit_code,
        ports=[
            pb.PortMapping(guest_port=p.guest_port, host_port=p.host_port, protocol=p.protocol, host_ip=p.host_ip)
            for p in state.ports
        ],
    )


def _metrics(usage: Usage, counts: Counts) -> pb.BoxMetrics:
    return pb.BoxMetrics(
        commands_executed=counts.commands,
        exec_errors=counts.errors,
        input_bytes=counts.input_bytes,
        output_bytes=counts.output_bytes,
        cpu_percent=usage.cpu_percent,
        memory_bytes=usage.memory_bytes,
        network_bytes_sent=usage.network_bytes_sent,
        network_bytes_received=usage.network_bytes_received,
        boot_timing=pb.BootTiming(
            total_ms=usage.boot.total_ms,
            image_prepare_ms=usage.boot.image_prepare_ms,
            box_config_ms=usage.boot.box_config_ms,
            box_spawn_ms=usage.boot.box_spawn_ms,
            container_init_ms=usage.boot.container_init_ms,
        ),
    )


def _settings(settings: Settings) -> pb.BoxSettings:
    return pb.BoxSettings(
        env=settings.env,
        working_dir=settings.working_dir,
        entrypoint=settings.entrypoint,
        cmd=settings.cmd,
        user=settings.user,
    )


def _execution(state: ExecutionState) -> pb.Execution:
    return pb.Execution(
        execution_id=state.execution_id,
        status=_EXECUTION_STATUS[state.status],
        exit_code=state.exit_code,
        started_at_ms=state.started_at_ms,
        duration_ms=state.duration_ms,
        error_message=state.error_message,
        delivered=pb.Delivered(
            bytes=state.delivered.total,
            position=state.delivered.position,
            bytes_at_position=state.delivered.at_position,
        ),
    )


def _output_event(event: Chunk | Dropped | Ended) -> pb.OutputEvent:
    match event:
        case Chunk():
            chunk = pb.OutputChunk(stream=_STREAM[event.stream], data=event.data)
            return pb.OutputEvent(position=event.position, chunk=chunk)
        case Dropped():
            return pb.OutputEvent(position=event.position, dropped_bytes=event.byte_count)
        case Ended():
            return pb.OutputEvent(position=event.position, ended=_execution(event.state))


def _pull_event(event: PullProgress | Image) -> pb.PullImageEvent:
    if isinstance(event, Image):
        return pb.PullImageEvent(image=_image(event))
    progress = pb.PullProgress(current_bytes=event.current_bytes, total_bytes=event.total_bytes)
    return pb.PullImageEvent(progress=progress)


def _image(image: Image) -> pb.Image:
    return pb.Image(
        reference=image.reference,
        image_id=image.image_id,
        cached_at_ms=image.cached_at_ms,
        size_bytes=image.size_bytes,
        digests=image.digests,
    )


def _volume_id(message: pb.VolumeRef) -> str:
    if not message.volume_id:
        raise InvalidArgumentError("a volume is named by its id")
    return message.volume_id


def _volume(volume: Volume) -> pb.Volume:
    return pb.Volume(volume_id=volume.volume_id, created_at_ms=volume.created_at_ms)
