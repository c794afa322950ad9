"""Converts the runtime's types to messages of worker.proto and back. An invalid message is refused."""

from __future__ import annotations

from ..._gen import worker_pb2 as pb
from ...errors import InvalidArgumentError, UpstreamUnavailableError
from ..commands import DEFAULT_COLS, DEFAULT_ROWS, STDERR, STDOUT, ExecSpec
from ..executions.execution import Ended, Execution, ExecutionState, ExecutionStatus
from ..executions.output_log import Chunk, Dropped, Gap
from ..executions.run import Cut, Event, Result, Started
from ..executions.tally import Counts
from ..files.tar import ENCODING
from ..runtime import (
    BoxRef,
    BoxSpec,
    BoxState,
    BoxStatus,
    FileEntry,
    FileKind,
    Image,
    Mount,
    PortMapping,
    PullProgress,
    Settings,
    Usage,
    Volume,
)

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
_FILE_KIND = {
    FileKind.FILE: pb.FILE_KIND_FILE,
    FileKind.DIRECTORY: pb.FILE_KIND_DIRECTORY,
    FileKind.LINK: pb.FILE_KIND_LINK,
    FileKind.OTHER: pb.FILE_KIND_OTHER,
}
STREAM: dict[int, pb.OutputStream] = {STDOUT: pb.OUTPUT_STREAM_STDOUT, STDERR: pb.OUTPUT_STREAM_STDERR}


def ref(message: pb.BoxRef) -> BoxRef:
    if not message.box_id or not message.generation:
        raise InvalidArgumentError("a box is named by its id and its generation, counted from 1")
    return BoxRef(message.box_id, message.generation)


def snapshot_ref(message: pb.SnapshotRef) -> tuple[BoxRef, str]:
    if not message.snapshot_id:
        raise InvalidArgumentError("a snapshot needs an id")
    return ref(message.box), message.snapshot_id


def spec(message: pb.BoxSpec) -> BoxSpec:
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
        disk_size_gb=message.disk_size_gb,
        image_entrypoint=message.image_entrypoint,
        stop_signal=message.stop_signal,
        security=message.security,
    )


def box(state: BoxState) -> pb.Box:
    return pb.Box(
        box_id=state.box.box_id,
        generation=state.box.generation,
        status=_BOX_STATUS[state.status],
        pid=state.pid,
        exit_code=state.exit_code,
        interrupted=state.interrupted,
        out_of_memory=state.out_of_memory,
        reason=state.reason,
        supervisor=state.supervisor,
        unclaimed=state.unclaimed,
        image_id=state.image_id,
        pulled=state.was_pulled,
        private_image=state.is_private,
        engine_life=state.engine_life,
        ports=[
            pb.PortMapping(guest_port=p.guest_port, host_port=p.host_port, protocol=p.protocol, host_ip=p.host_ip)
            for p in state.ports
        ],
    )


def metrics(usage: Usage, counts: Counts) -> pb.BoxMetrics:
    return pb.BoxMetrics(
        commands_executed=counts.commands,
        exec_errors=counts.errors,
        input_bytes=counts.input_bytes,
        output_bytes=counts.output_bytes,
        cpu_percent=usage.cpu_percent,
        memory_bytes=usage.memory_bytes,
        network_bytes_sent=usage.network_bytes_sent,
        network_bytes_received=usage.network_bytes_received,
        memory_limit_kills=usage.memory_limit_kills,
        commands_by_engine=usage.commands_by_engine,
        boot_timing=pb.BootTiming(
            total_ms=usage.boot.total_ms,
            image_prepare_ms=usage.boot.image_prepare_ms,
            box_config_ms=usage.boot.box_config_ms,
            box_spawn_ms=usage.boot.box_spawn_ms,
            container_init_ms=usage.boot.container_init_ms,
        ),
    )


def settings(settings: Settings) -> pb.BoxSettings:
    return pb.BoxSettings(
        env=settings.env,
        working_dir=settings.working_dir,
        entrypoint=settings.entrypoint,
        cmd=settings.cmd,
        user=settings.user,
        stop_signal=settings.stop_signal,
    )


def execution(state: ExecutionState) -> pb.Execution:
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
        counts_input=state.counts_input,
    )


def described(one: Execution) -> pb.Execution:
    """An execution together with its command."""
    message = execution(one.state)
    message.command = "".join(one.command[:1])
    message.args.extend(one.command[1:])
    message.command_truncated = one.is_command_cut
    return message


def exec_spec(message: pb.StartExecutionRequest) -> ExecSpec:
    if not message.execution_id:
        raise InvalidArgumentError("an execution needs an id")
    if not message.command:
        raise InvalidArgumentError("an execution needs a command")
    return ExecSpec(
        command=(message.command, *message.args),
        env=dict(message.env),
        working_dir=message.working_dir,
        user=message.user,
        tty=message.tty,
        cols=message.cols or DEFAULT_COLS,
        rows=message.rows or DEFAULT_ROWS,
    )


def output_event(event: Event) -> pb.OutputEvent:
    match event:
        case Started():
            return pb.OutputEvent()
        case Chunk():
            chunk = pb.OutputChunk(stream=STREAM[event.stream], data=event.data)
            return pb.OutputEvent(position=event.position, chunk=chunk)
        case Dropped():
            return pb.OutputEvent(position=event.position, dropped_bytes=event.byte_count)
        case Gap():
            return pb.OutputEvent(position=event.position, gap=event.reason)
        case Cut():
            return pb.OutputEvent(cut=pb.Cut(stream=STREAM[event.stream], dropped_bytes=event.byte_count))
        case Ended():
            return pb.OutputEvent(position=event.position, ended=execution(event.state))


def run_result(result: Result) -> pb.RunResult:
    """Raises `UpstreamUnavailableError` when the events broke off before the end: the worker is shutting down."""
    if result.ended is None:
        raise UpstreamUnavailableError("the worker is shutting down; the command goes on")
    return pb.RunResult(
        ended=execution(result.ended),
        stdout=bytes(result.output[STDOUT]),
        stderr=bytes(result.output[STDERR]),
        stdout_dropped_bytes=result.dropped[STDOUT],
        stderr_dropped_bytes=result.dropped[STDERR],
        loss=result.loss,
    )


def pull_event(event: PullProgress | Image) -> pb.PullImageEvent:
    if isinstance(event, Image):
        return pb.PullImageEvent(image=image(event))
    progress = pb.PullProgress(current_bytes=event.current_bytes, total_bytes=event.total_bytes)
    return pb.PullImageEvent(progress=progress)


def image(image: Image) -> pb.Image:
    return pb.Image(
        reference=image.reference,
        image_id=image.image_id,
        cached_at_ms=image.cached_at_ms,
        size_bytes=image.size_bytes,
        digests=image.digests,
        private=image.is_private,
        pulled=image.was_pulled,
    )


def volume_id(message: pb.VolumeRef) -> str:
    if not message.volume_id:
        raise InvalidArgumentError("a volume is named by its id")
    return message.volume_id


def volume(volume: Volume) -> pb.Volume:
    return pb.Volume(volume_id=volume.volume_id, created_at_ms=volume.created_at_ms)


def file_entry(entry: FileEntry) -> pb.FileEntry:
    return pb.FileEntry(
        name=entry.name.encode(*ENCODING),
        kind=_FILE_KIND[entry.kind],
        size=entry.size,
        mode=entry.mode,
        modified_ns=min(max(entry.modified, -(2**63)), 2**63 - 1),
        link_text=entry.text.encode(*ENCODING),
        version=entry.version,
    )
