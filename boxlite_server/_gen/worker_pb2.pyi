from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BoxStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BOX_STATUS_UNSPECIFIED: _ClassVar[BoxStatus]
    BOX_STATUS_CONFIGURED: _ClassVar[BoxStatus]
    BOX_STATUS_RUNNING: _ClassVar[BoxStatus]
    BOX_STATUS_STOPPED: _ClassVar[BoxStatus]
    BOX_STATUS_PAUSED: _ClassVar[BoxStatus]
    BOX_STATUS_FAILED: _ClassVar[BoxStatus]

class ExecutionStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EXECUTION_STATUS_UNSPECIFIED: _ClassVar[ExecutionStatus]
    EXECUTION_STATUS_RUNNING: _ClassVar[ExecutionStatus]
    EXECUTION_STATUS_COMPLETED: _ClassVar[ExecutionStatus]
    EXECUTION_STATUS_KILLED: _ClassVar[ExecutionStatus]
    EXECUTION_STATUS_TIMED_OUT: _ClassVar[ExecutionStatus]

class OutputStream(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTPUT_STREAM_UNSPECIFIED: _ClassVar[OutputStream]
    OUTPUT_STREAM_STDOUT: _ClassVar[OutputStream]
    OUTPUT_STREAM_STDERR: _ClassVar[OutputStream]

class FileKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FILE_KIND_OTHER: _ClassVar[FileKind]
    FILE_KIND_FILE: _ClassVar[FileKind]
    FILE_KIND_DIRECTORY: _ClassVar[FileKind]
    FILE_KIND_LINK: _ClassVar[FileKind]
BOX_STATUS_UNSPECIFIED: BoxStatus
BOX_STATUS_CONFIGURED: BoxStatus
BOX_STATUS_RUNNING: BoxStatus
BOX_STATUS_STOPPED: BoxStatus
BOX_STATUS_PAUSED: BoxStatus
BOX_STATUS_FAILED: BoxStatus
EXECUTION_STATUS_UNSPECIFIED: ExecutionStatus
EXECUTION_STATUS_RUNNING: ExecutionStatus
EXECUTION_STATUS_COMPLETED: ExecutionStatus
EXECUTION_STATUS_KILLED: ExecutionStatus
EXECUTION_STATUS_TIMED_OUT: ExecutionStatus
OUTPUT_STREAM_UNSPECIFIED: OutputStream
OUTPUT_STREAM_STDOUT: OutputStream
OUTPUT_STREAM_STDERR: OutputStream
FILE_KIND_OTHER: FileKind
FILE_KIND_FILE: FileKind
FILE_KIND_DIRECTORY: FileKind
FILE_KIND_LINK: FileKind

class Empty(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class BoxRef(_message.Message):
    __slots__ = ("box_id", "generation", "wish")
    BOX_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    WISH_FIELD_NUMBER: _ClassVar[int]
    box_id: str
    generation: int
    wish: int
    def __init__(self, box_id: _Optional[str] = ..., generation: _Optional[int] = ..., wish: _Optional[int] = ...) -> None: ...

class BoxSpec(_message.Message):
    __slots__ = ("image", "cpus", "memory_mib", "env", "working_dir", "entrypoint", "cmd", "user", "network_enabled", "tty", "hostname", "mounts", "ports", "cap_add", "cap_drop", "disk_size_gb", "image_entrypoint", "stop_signal", "security")
    class EnvEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    CPUS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_MIB_FIELD_NUMBER: _ClassVar[int]
    ENV_FIELD_NUMBER: _ClassVar[int]
    WORKING_DIR_FIELD_NUMBER: _ClassVar[int]
    ENTRYPOINT_FIELD_NUMBER: _ClassVar[int]
    CMD_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    NETWORK_ENABLED_FIELD_NUMBER: _ClassVar[int]
    TTY_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    MOUNTS_FIELD_NUMBER: _ClassVar[int]
    PORTS_FIELD_NUMBER: _ClassVar[int]
    CAP_ADD_FIELD_NUMBER: _ClassVar[int]
    CAP_DROP_FIELD_NUMBER: _ClassVar[int]
    DISK_SIZE_GB_FIELD_NUMBER: _ClassVar[int]
    IMAGE_ENTRYPOINT_FIELD_NUMBER: _ClassVar[int]
    STOP_SIGNAL_FIELD_NUMBER: _ClassVar[int]
    SECURITY_FIELD_NUMBER: _ClassVar[int]
    image: str
    cpus: int
    memory_mib: int
    env: _containers.ScalarMap[str, str]
    working_dir: str
    entrypoint: _containers.RepeatedScalarFieldContainer[str]
    cmd: _containers.RepeatedScalarFieldContainer[str]
    user: str
    network_enabled: bool
    tty: bool
    hostname: str
    mounts: _containers.RepeatedCompositeFieldContainer[Mount]
    ports: _containers.RepeatedCompositeFieldContainer[PortMapping]
    cap_add: _containers.RepeatedScalarFieldContainer[str]
    cap_drop: _containers.RepeatedScalarFieldContainer[str]
    disk_size_gb: int
    image_entrypoint: bool
    stop_signal: str
    security: str
    def __init__(self, image: _Optional[str] = ..., cpus: _Optional[int] = ..., memory_mib: _Optional[int] = ..., env: _Optional[_Mapping[str, str]] = ..., working_dir: _Optional[str] = ..., entrypoint: _Optional[_Iterable[str]] = ..., cmd: _Optional[_Iterable[str]] = ..., user: _Optional[str] = ..., network_enabled: _Optional[bool] = ..., tty: _Optional[bool] = ..., hostname: _Optional[str] = ..., mounts: _Optional[_Iterable[_Union[Mount, _Mapping]]] = ..., ports: _Optional[_Iterable[_Union[PortMapping, _Mapping]]] = ..., cap_add: _Optional[_Iterable[str]] = ..., cap_drop: _Optional[_Iterable[str]] = ..., disk_size_gb: _Optional[int] = ..., image_entrypoint: _Optional[bool] = ..., stop_signal: _Optional[str] = ..., security: _Optional[str] = ...) -> None: ...

class Mount(_message.Message):
    __slots__ = ("volume_id", "host_path", "guest_path", "read_only")
    VOLUME_ID_FIELD_NUMBER: _ClassVar[int]
    HOST_PATH_FIELD_NUMBER: _ClassVar[int]
    GUEST_PATH_FIELD_NUMBER: _ClassVar[int]
    READ_ONLY_FIELD_NUMBER: _ClassVar[int]
    volume_id: str
    host_path: str
    guest_path: str
    read_only: bool
    def __init__(self, volume_id: _Optional[str] = ..., host_path: _Optional[str] = ..., guest_path: _Optional[str] = ..., read_only: _Optional[bool] = ...) -> None: ...

class PortMapping(_message.Message):
    __slots__ = ("guest_port", "host_port", "protocol", "host_ip")
    GUEST_PORT_FIELD_NUMBER: _ClassVar[int]
    HOST_PORT_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    HOST_IP_FIELD_NUMBER: _ClassVar[int]
    guest_port: int
    host_port: int
    protocol: str
    host_ip: str
    def __init__(self, guest_port: _Optional[int] = ..., host_port: _Optional[int] = ..., protocol: _Optional[str] = ..., host_ip: _Optional[str] = ...) -> None: ...

class Box(_message.Message):
    __slots__ = ("box_id", "generation", "status", "pid", "exit_code", "interrupted", "out_of_memory", "ports", "engine_life", "image_id", "pulled", "private_image", "reason", "supervisor", "unclaimed", "live_executions", "idle_seconds")
    BOX_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    INTERRUPTED_FIELD_NUMBER: _ClassVar[int]
    OUT_OF_MEMORY_FIELD_NUMBER: _ClassVar[int]
    PORTS_FIELD_NUMBER: _ClassVar[int]
    ENGINE_LIFE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    PULLED_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_IMAGE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SUPERVISOR_FIELD_NUMBER: _ClassVar[int]
    UNCLAIMED_FIELD_NUMBER: _ClassVar[int]
    LIVE_EXECUTIONS_FIELD_NUMBER: _ClassVar[int]
    IDLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    box_id: str
    generation: int
    status: BoxStatus
    pid: int
    exit_code: int
    interrupted: bool
    out_of_memory: bool
    ports: _containers.RepeatedCompositeFieldContainer[PortMapping]
    engine_life: str
    image_id: str
    pulled: bool
    private_image: bool
    reason: str
    supervisor: str
    unclaimed: bool
    live_executions: int
    idle_seconds: float
    def __init__(self, box_id: _Optional[str] = ..., generation: _Optional[int] = ..., status: _Optional[_Union[BoxStatus, str]] = ..., pid: _Optional[int] = ..., exit_code: _Optional[int] = ..., interrupted: _Optional[bool] = ..., out_of_memory: _Optional[bool] = ..., ports: _Optional[_Iterable[_Union[PortMapping, _Mapping]]] = ..., engine_life: _Optional[str] = ..., image_id: _Optional[str] = ..., pulled: _Optional[bool] = ..., private_image: _Optional[bool] = ..., reason: _Optional[str] = ..., supervisor: _Optional[str] = ..., unclaimed: _Optional[bool] = ..., live_executions: _Optional[int] = ..., idle_seconds: _Optional[float] = ...) -> None: ...

class CreateBoxRequest(_message.Message):
    __slots__ = ("box", "spec", "start", "prepare", "ask_first")
    BOX_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    PREPARE_FIELD_NUMBER: _ClassVar[int]
    ASK_FIRST_FIELD_NUMBER: _ClassVar[int]
    box: BoxRef
    spec: BoxSpec
    start: bool
    prepare: bool
    ask_first: bool
    def __init__(self, box: _Optional[_Union[BoxRef, _Mapping]] = ..., spec: _Optional[_Union[BoxSpec, _Mapping]] = ..., start: _Optional[bool] = ..., prepare: _Optional[bool] = ..., ask_first: _Optional[bool] = ...) -> None: ...

class StopBoxRequest(_message.Message):
    __slots__ = ("box", "timeout_seconds")
    BOX_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    box: BoxRef
    timeout_seconds: float
    def __init__(self, box: _Optional[_Union[BoxRef, _Mapping]] = ..., timeout_seconds: _Optional[float] = ...) -> None: ...

class UpdateBoxRequest(_message.Message):
    __slots__ = ("box", "cpus", "memory_mib")
    BOX_FIELD_NUMBER: _ClassVar[int]
    CPUS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_MIB_FIELD_NUMBER: _ClassVar[int]
    box: BoxRef
    cpus: int
    memory_mib: int
    def __init__(self, box: _Optional[_Union[BoxRef, _Mapping]] = ..., cpus: _Optional[int] = ..., memory_mib: _Optional[int] = ...) -> None: ...

class RemoveBoxRequest(_message.Message):
    __slots__ = ("box", "force")
    BOX_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    box: BoxRef
    force: bool
    def __init__(self, box: _Optional[_Union[BoxRef, _Mapping]] = ..., force: _Optional[bool] = ...) -> None: ...

class ListBoxesResponse(_message.Message):
    __slots__ = ("boxes", "engine_life")
    BOXES_FIELD_NUMBER: _ClassVar[int]
    ENGINE_LIFE_FIELD_NUMBER: _ClassVar[int]
    boxes: _containers.RepeatedCompositeFieldContainer[Box]
    engine_life: str
    def __init__(self, boxes: _Optional[_Iterable[_Union[Box, _Mapping]]] = ..., engine_life: _Optional[str] = ...) -> None: ...

class ExecutionRef(_message.Message):
    __slots__ = ("box_id", "execution_id")
    BOX_ID_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    box_id: str
    execution_id: str
    def __init__(self, box_id: _Optional[str] = ..., execution_id: _Optional[str] = ...) -> None: ...

class StartExecutionRequest(_message.Message):
    __slots__ = ("box", "execution_id", "command", "args", "env", "working_dir", "user", "tty", "timeout_seconds", "hangup_seconds", "expects_reader", "no_input", "cols", "rows", "wants_events")
    class EnvEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    BOX_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    ARGS_FIELD_NUMBER: _ClassVar[int]
    ENV_FIELD_NUMBER: _ClassVar[int]
    WORKING_DIR_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    TTY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    HANGUP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    EXPECTS_READER_FIELD_NUMBER: _ClassVar[int]
    NO_INPUT_FIELD_NUMBER: _ClassVar[int]
    COLS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    WANTS_EVENTS_FIELD_NUMBER: _ClassVar[int]
    box: BoxRef
    execution_id: str
    command: str
    args: _containers.RepeatedScalarFieldContainer[str]
    env: _containers.ScalarMap[str, str]
    working_dir: str
    user: str
    tty: bool
    timeout_seconds: float
    hangup_seconds: float
    expects_reader: bool
    no_input: bool
    cols: int
    rows: int
    wants_events: bool
    def __init__(self, box: _Optional[_Union[BoxRef, _Mapping]] = ..., execution_id: _Optional[str] = ..., command: _Optional[str] = ..., args: _Optional[_Iterable[str]] = ..., env: _Optional[_Mapping[str, str]] = ..., working_dir: _Optional[str] = ..., user: _Optional[str] = ..., tty: _Optional[bool] = ..., timeout_seconds: _Optional[float] = ..., hangup_seconds: _Optional[float] = ..., expects_reader: _Optional[bool] = ..., no_input: _Optional[bool] = ..., cols: _Optional[int] = ..., rows: _Optional[int] = ..., wants_events: _Optional[bool] = ...) -> None: ...

class RunCommandRequest(_message.Message):
    __slots__ = ("start", "input", "max_output_bytes", "kept")
    START_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    MAX_OUTPUT_BYTES_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    start: StartExecutionRequest
    input: bytes
    max_output_bytes: int
    kept: bool
    def __init__(self, start: _Optional[_Union[StartExecutionRequest, _Mapping]] = ..., input: _Optional[bytes] = ..., max_output_bytes: _Optional[int] = ..., kept: _Optional[bool] = ...) -> None: ...

class RunResult(_message.Message):
    __slots__ = ("ended", "stdout", "stderr", "stdout_dropped_bytes", "stderr_dropped_bytes", "loss")
    ENDED_FIELD_NUMBER: _ClassVar[int]
    STDOUT_FIELD_NUMBER: _ClassVar[int]
    STDERR_FIELD_NUMBER: _ClassVar[int]
    STDOUT_DROPPED_BYTES_FIELD_NUMBER: _ClassVar[int]
    STDERR_DROPPED_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    ended: Execution
    stdout: bytes
    stderr: bytes
    stdout_dropped_bytes: int
    stderr_dropped_bytes: int
    loss: str
    def __init__(self, ended: _Optional[_Union[Execution, _Mapping]] = ..., stdout: _Optional[bytes] = ..., stderr: _Optional[bytes] = ..., stdout_dropped_bytes: _Optional[int] = ..., stderr_dropped_bytes: _Optional[int] = ..., loss: _Optional[str] = ...) -> None: ...

class AttachBoxRequest(_message.Message):
    __slots__ = ("box", "hangup_seconds")
    BOX_FIELD_NUMBER: _ClassVar[int]
    HANGUP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    box: BoxRef
    hangup_seconds: float
    def __init__(self, box: _Optional[_Union[BoxRef, _Mapping]] = ..., hangup_seconds: _Optional[float] = ...) -> None: ...

class SignalBoxRequest(_message.Message):
    __slots__ = ("box", "signal")
    BOX_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    box: BoxRef
    signal: int
    def __init__(self, box: _Optional[_Union[BoxRef, _Mapping]] = ..., signal: _Optional[int] = ...) -> None: ...

class Execution(_message.Message):
    __slots__ = ("execution_id", "status", "exit_code", "started_at_ms", "duration_ms", "error_message", "delivered", "counts_input", "events", "command", "args", "command_truncated")
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    ERROR_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_FIELD_NUMBER: _ClassVar[int]
    COUNTS_INPUT_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    ARGS_FIELD_NUMBER: _ClassVar[int]
    COMMAND_TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    execution_id: str
    status: ExecutionStatus
    exit_code: int
    started_at_ms: int
    duration_ms: int
    error_message: str
    delivered: Delivered
    counts_input: bool
    events: _containers.RepeatedCompositeFieldContainer[OutputEvent]
    command: str
    args: _containers.RepeatedScalarFieldContainer[str]
    command_truncated: bool
    def __init__(self, execution_id: _Optional[str] = ..., status: _Optional[_Union[ExecutionStatus, str]] = ..., exit_code: _Optional[int] = ..., started_at_ms: _Optional[int] = ..., duration_ms: _Optional[int] = ..., error_message: _Optional[str] = ..., delivered: _Optional[_Union[Delivered, _Mapping]] = ..., counts_input: _Optional[bool] = ..., events: _Optional[_Iterable[_Union[OutputEvent, _Mapping]]] = ..., command: _Optional[str] = ..., args: _Optional[_Iterable[str]] = ..., command_truncated: _Optional[bool] = ...) -> None: ...

class Delivered(_message.Message):
    __slots__ = ("bytes", "position", "bytes_at_position")
    BYTES_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    BYTES_AT_POSITION_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    position: int
    bytes_at_position: int
    def __init__(self, bytes: _Optional[int] = ..., position: _Optional[int] = ..., bytes_at_position: _Optional[int] = ...) -> None: ...

class ListExecutionsRequest(_message.Message):
    __slots__ = ("box", "after_ms", "after_id", "count")
    BOX_FIELD_NUMBER: _ClassVar[int]
    AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    AFTER_ID_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    box: BoxRef
    after_ms: int
    after_id: str
    count: int
    def __init__(self, box: _Optional[_Union[BoxRef, _Mapping]] = ..., after_ms: _Optional[int] = ..., after_id: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...

class ListExecutionsResponse(_message.Message):
    __slots__ = ("executions", "more")
    EXECUTIONS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    executions: _containers.RepeatedCompositeFieldContainer[Execution]
    more: bool
    def __init__(self, executions: _Optional[_Iterable[_Union[Execution, _Mapping]]] = ..., more: _Optional[bool] = ...) -> None: ...

class ReadOutputRequest(_message.Message):
    __slots__ = ("execution", "position", "resume")
    EXECUTION_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    execution: ExecutionRef
    position: int
    resume: bool
    def __init__(self, execution: _Optional[_Union[ExecutionRef, _Mapping]] = ..., position: _Optional[int] = ..., resume: _Optional[bool] = ...) -> None: ...

class OutputEvent(_message.Message):
    __slots__ = ("position", "chunk", "ended", "dropped_bytes", "gap", "cut", "resumed")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    DROPPED_BYTES_FIELD_NUMBER: _ClassVar[int]
    GAP_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    position: int
    chunk: OutputChunk
    ended: Execution
    dropped_bytes: int
    gap: str
    cut: Cut
    resumed: Execution
    def __init__(self, position: _Optional[int] = ..., chunk: _Optional[_Union[OutputChunk, _Mapping]] = ..., ended: _Optional[_Union[Execution, _Mapping]] = ..., dropped_bytes: _Optional[int] = ..., gap: _Optional[str] = ..., cut: _Optional[_Union[Cut, _Mapping]] = ..., resumed: _Optional[_Union[Execution, _Mapping]] = ...) -> None: ...

class OutputEvents(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[OutputEvent]
    def __init__(self, events: _Optional[_Iterable[_Union[OutputEvent, _Mapping]]] = ...) -> None: ...

class Cut(_message.Message):
    __slots__ = ("stream", "dropped_bytes")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    DROPPED_BYTES_FIELD_NUMBER: _ClassVar[int]
    stream: OutputStream
    dropped_bytes: int
    def __init__(self, stream: _Optional[_Union[OutputStream, str]] = ..., dropped_bytes: _Optional[int] = ...) -> None: ...

class OutputChunk(_message.Message):
    __slots__ = ("stream", "data")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    stream: OutputStream
    data: bytes
    def __init__(self, stream: _Optional[_Union[OutputStream, str]] = ..., data: _Optional[bytes] = ...) -> None: ...

class ReadLogsRequest(_message.Message):
    __slots__ = ("box", "tail", "follow", "since", "timestamps")
    BOX_FIELD_NUMBER: _ClassVar[int]
    TAIL_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMPS_FIELD_NUMBER: _ClassVar[int]
    box: BoxRef
    tail: int
    follow: bool
    since: float
    timestamps: bool
    def __init__(self, box: _Optional[_Union[BoxRef, _Mapping]] = ..., tail: _Optional[int] = ..., follow: _Optional[bool] = ..., since: _Optional[float] = ..., timestamps: _Optional[bool] = ...) -> None: ...

class ConfirmOutputRequest(_message.Message):
    __slots__ = ("execution", "delivered")
    EXECUTION_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_FIELD_NUMBER: _ClassVar[int]
    execution: ExecutionRef
    delivered: Delivered
    def __init__(self, execution: _Optional[_Union[ExecutionRef, _Mapping]] = ..., delivered: _Optional[_Union[Delivered, _Mapping]] = ...) -> None: ...

class WriteInputRequest(_message.Message):
    __slots__ = ("execution", "data", "close", "more", "lost", "source", "offset")
    EXECUTION_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    execution: ExecutionRef
    data: bytes
    close: bool
    more: bool
    lost: bool
    source: str
    offset: int
    def __init__(self, execution: _Optional[_Union[ExecutionRef, _Mapping]] = ..., data: _Optional[bytes] = ..., close: _Optional[bool] = ..., more: _Optional[bool] = ..., lost: _Optional[bool] = ..., source: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class WriteInputResponse(_message.Message):
    __slots__ = ("accepted", "still_open")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    STILL_OPEN_FIELD_NUMBER: _ClassVar[int]
    accepted: int
    still_open: bool
    def __init__(self, accepted: _Optional[int] = ..., still_open: _Optional[bool] = ...) -> None: ...

class SignalExecutionRequest(_message.Message):
    __slots__ = ("execution", "signal")
    EXECUTION_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    execution: ExecutionRef
    signal: int
    def __init__(self, execution: _Optional[_Union[ExecutionRef, _Mapping]] = ..., signal: _Optional[int] = ...) -> None: ...

class ResizeExecutionRequest(_message.Message):
    __slots__ = ("execution", "cols", "rows")
    EXECUTION_FIELD_NUMBER: _ClassVar[int]
    COLS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    execution: ExecutionRef
    cols: int
    rows: int
    def __init__(self, execution: _Optional[_Union[ExecutionRef, _Mapping]] = ..., cols: _Optional[int] = ..., rows: _Optional[int] = ...) -> None: ...

class PutFilesRequest(_message.Message):
    __slots__ = ("header", "data", "end")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    header: PutFilesHeader
    data: bytes
    end: bool
    def __init__(self, header: _Optional[_Union[PutFilesHeader, _Mapping]] = ..., data: _Optional[bytes] = ..., end: _Optional[bool] = ...) -> None: ...

class PutFilesHeader(_message.Message):
    __slots__ = ("box", "path", "overwrite", "source_is_dir", "keep_owner")
    BOX_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    OVERWRITE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_IS_DIR_FIELD_NUMBER: _ClassVar[int]
    KEEP_OWNER_FIELD_NUMBER: _ClassVar[int]
    box: BoxRef
    path: str
    overwrite: bool
    source_is_dir: bool
    keep_owner: bool
    def __init__(self, box: _Optional[_Union[BoxRef, _Mapping]] = ..., path: _Optional[str] = ..., overwrite: _Optional[bool] = ..., source_is_dir: _Optional[bool] = ..., keep_owner: _Optional[bool] = ...) -> None: ...

class PutSmallFilesRequest(_message.Message):
    __slots__ = ("header", "archive")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    ARCHIVE_FIELD_NUMBER: _ClassVar[int]
    header: PutFilesHeader
    archive: bytes
    def __init__(self, header: _Optional[_Union[PutFilesHeader, _Mapping]] = ..., archive: _Optional[bytes] = ...) -> None: ...

class PutFilesResponse(_message.Message):
    __slots__ = ("skipped",)
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    skipped: str
    def __init__(self, skipped: _Optional[str] = ...) -> None: ...

class GetFilesRequest(_message.Message):
    __slots__ = ("box", "path", "follow_symlinks")
    BOX_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_SYMLINKS_FIELD_NUMBER: _ClassVar[int]
    box: BoxRef
    path: str
    follow_symlinks: bool
    def __init__(self, box: _Optional[_Union[BoxRef, _Mapping]] = ..., path: _Optional[str] = ..., follow_symlinks: _Optional[bool] = ...) -> None: ...

class FilesChunk(_message.Message):
    __slots__ = ("source_is_dir", "data", "is_all")
    SOURCE_IS_DIR_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    IS_ALL_FIELD_NUMBER: _ClassVar[int]
    source_is_dir: bool
    data: bytes
    is_all: bool
    def __init__(self, source_is_dir: _Optional[bool] = ..., data: _Optional[bytes] = ..., is_all: _Optional[bool] = ...) -> None: ...

class FileEntry(_message.Message):
    __slots__ = ("name", "kind", "size", "mode", "modified_ns", "link_text", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    MODIFIED_NS_FIELD_NUMBER: _ClassVar[int]
    LINK_TEXT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: bytes
    kind: FileKind
    size: int
    mode: int
    modified_ns: int
    link_text: bytes
    version: str
    def __init__(self, name: _Optional[bytes] = ..., kind: _Optional[_Union[FileKind, str]] = ..., size: _Optional[int] = ..., mode: _Optional[int] = ..., modified_ns: _Optional[int] = ..., link_text: _Optional[bytes] = ..., version: _Optional[str] = ...) -> None: ...

class StatFileRequest(_message.Message):
    __slots__ = ("box", "path", "follow")
    BOX_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    box: BoxRef
    path: str
    follow: bool
    def __init__(self, box: _Optional[_Union[BoxRef, _Mapping]] = ..., path: _Optional[str] = ..., follow: _Optional[bool] = ...) -> None: ...

class ListDirectoryRequest(_message.Message):
    __slots__ = ("box", "path", "after", "count")
    BOX_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    box: BoxRef
    path: str
    after: bytes
    count: int
    def __init__(self, box: _Optional[_Union[BoxRef, _Mapping]] = ..., path: _Optional[str] = ..., after: _Optional[bytes] = ..., count: _Optional[int] = ...) -> None: ...

class ListDirectoryResponse(_message.Message):
    __slots__ = ("entries", "more")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[FileEntry]
    more: bool
    def __init__(self, entries: _Optional[_Iterable[_Union[FileEntry, _Mapping]]] = ..., more: _Optional[bool] = ...) -> None: ...

class ReadFileRequest(_message.Message):
    __slots__ = ("box", "path", "version", "offset", "size")
    BOX_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    box: BoxRef
    path: str
    version: str
    offset: int
    size: int
    def __init__(self, box: _Optional[_Union[BoxRef, _Mapping]] = ..., path: _Optional[str] = ..., version: _Optional[str] = ..., offset: _Optional[int] = ..., size: _Optional[int] = ...) -> None: ...

class FileChunk(_message.Message):
    __slots__ = ("file", "data")
    FILE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    file: FileEntry
    data: bytes
    def __init__(self, file: _Optional[_Union[FileEntry, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class WriteFileRequest(_message.Message):
    __slots__ = ("header", "data", "end")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    header: WriteFileHeader
    data: bytes
    end: bool
    def __init__(self, header: _Optional[_Union[WriteFileHeader, _Mapping]] = ..., data: _Optional[bytes] = ..., end: _Optional[bool] = ...) -> None: ...

class WriteFileHeader(_message.Message):
    __slots__ = ("box", "path", "mode", "versions", "absent")
    BOX_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    ABSENT_FIELD_NUMBER: _ClassVar[int]
    box: BoxRef
    path: str
    mode: int
    versions: _containers.RepeatedScalarFieldContainer[str]
    absent: bool
    def __init__(self, box: _Optional[_Union[BoxRef, _Mapping]] = ..., path: _Optional[str] = ..., mode: _Optional[int] = ..., versions: _Optional[_Iterable[str]] = ..., absent: _Optional[bool] = ...) -> None: ...

class WriteFileResponse(_message.Message):
    __slots__ = ("file",)
    FILE_FIELD_NUMBER: _ClassVar[int]
    file: FileEntry
    def __init__(self, file: _Optional[_Union[FileEntry, _Mapping]] = ...) -> None: ...

class SnapshotRef(_message.Message):
    __slots__ = ("box", "snapshot_id")
    BOX_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    box: BoxRef
    snapshot_id: str
    def __init__(self, box: _Optional[_Union[BoxRef, _Mapping]] = ..., snapshot_id: _Optional[str] = ...) -> None: ...

class Snapshot(_message.Message):
    __slots__ = ("snapshot_id", "container_disk_bytes", "size_bytes")
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    snapshot_id: str
    container_disk_bytes: int
    size_bytes: int
    def __init__(self, snapshot_id: _Optional[str] = ..., container_disk_bytes: _Optional[int] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class ListSnapshotsResponse(_message.Message):
    __slots__ = ("snapshots",)
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    snapshots: _containers.RepeatedCompositeFieldContainer[SnapshotRef]
    def __init__(self, snapshots: _Optional[_Iterable[_Union[SnapshotRef, _Mapping]]] = ...) -> None: ...

class RestoreSnapshotRequest(_message.Message):
    __slots__ = ("snapshot", "new_generation", "spec")
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    NEW_GENERATION_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    snapshot: SnapshotRef
    new_generation: int
    spec: BoxSpec
    def __init__(self, snapshot: _Optional[_Union[SnapshotRef, _Mapping]] = ..., new_generation: _Optional[int] = ..., spec: _Optional[_Union[BoxSpec, _Mapping]] = ...) -> None: ...

class CloneBoxRequest(_message.Message):
    __slots__ = ("source", "box", "spec")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    BOX_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    source: BoxRef
    box: BoxRef
    spec: BoxSpec
    def __init__(self, source: _Optional[_Union[BoxRef, _Mapping]] = ..., box: _Optional[_Union[BoxRef, _Mapping]] = ..., spec: _Optional[_Union[BoxSpec, _Mapping]] = ...) -> None: ...

class BoxSettings(_message.Message):
    __slots__ = ("env", "working_dir", "entrypoint", "cmd", "user", "stop_signal")
    class EnvEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ENV_FIELD_NUMBER: _ClassVar[int]
    WORKING_DIR_FIELD_NUMBER: _ClassVar[int]
    ENTRYPOINT_FIELD_NUMBER: _ClassVar[int]
    CMD_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    STOP_SIGNAL_FIELD_NUMBER: _ClassVar[int]
    env: _containers.ScalarMap[str, str]
    working_dir: str
    entrypoint: _containers.RepeatedScalarFieldContainer[str]
    cmd: _containers.RepeatedScalarFieldContainer[str]
    user: str
    stop_signal: str
    def __init__(self, env: _Optional[_Mapping[str, str]] = ..., working_dir: _Optional[str] = ..., entrypoint: _Optional[_Iterable[str]] = ..., cmd: _Optional[_Iterable[str]] = ..., user: _Optional[str] = ..., stop_signal: _Optional[str] = ...) -> None: ...

class ExportChunk(_message.Message):
    __slots__ = ("settings", "data")
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    settings: BoxSettings
    data: bytes
    def __init__(self, settings: _Optional[_Union[BoxSettings, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class ImportBoxRequest(_message.Message):
    __slots__ = ("box", "data", "end")
    BOX_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    box: CreateBoxRequest
    data: bytes
    end: bool
    def __init__(self, box: _Optional[_Union[CreateBoxRequest, _Mapping]] = ..., data: _Optional[bytes] = ..., end: _Optional[bool] = ...) -> None: ...

class PullImageRequest(_message.Message):
    __slots__ = ("reference", "ask_first")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    ASK_FIRST_FIELD_NUMBER: _ClassVar[int]
    reference: str
    ask_first: bool
    def __init__(self, reference: _Optional[str] = ..., ask_first: _Optional[bool] = ...) -> None: ...

class PullImageEvent(_message.Message):
    __slots__ = ("progress", "image")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    progress: PullProgress
    image: Image
    def __init__(self, progress: _Optional[_Union[PullProgress, _Mapping]] = ..., image: _Optional[_Union[Image, _Mapping]] = ...) -> None: ...

class PullProgress(_message.Message):
    __slots__ = ("current_bytes", "total_bytes")
    CURRENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    current_bytes: int
    total_bytes: int
    def __init__(self, current_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ...) -> None: ...

class Image(_message.Message):
    __slots__ = ("reference", "image_id", "cached_at_ms", "size_bytes", "digests", "private", "pulled")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    CACHED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_FIELD_NUMBER: _ClassVar[int]
    PULLED_FIELD_NUMBER: _ClassVar[int]
    reference: str
    image_id: str
    cached_at_ms: int
    size_bytes: int
    digests: _containers.RepeatedScalarFieldContainer[str]
    private: bool
    pulled: bool
    def __init__(self, reference: _Optional[str] = ..., image_id: _Optional[str] = ..., cached_at_ms: _Optional[int] = ..., size_bytes: _Optional[int] = ..., digests: _Optional[_Iterable[str]] = ..., private: _Optional[bool] = ..., pulled: _Optional[bool] = ...) -> None: ...

class RemoveImageRequest(_message.Message):
    __slots__ = ("reference",)
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    reference: str
    def __init__(self, reference: _Optional[str] = ...) -> None: ...

class ListImagesResponse(_message.Message):
    __slots__ = ("images",)
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[Image]
    def __init__(self, images: _Optional[_Iterable[_Union[Image, _Mapping]]] = ...) -> None: ...

class VolumeRef(_message.Message):
    __slots__ = ("volume_id",)
    VOLUME_ID_FIELD_NUMBER: _ClassVar[int]
    volume_id: str
    def __init__(self, volume_id: _Optional[str] = ...) -> None: ...

class Volume(_message.Message):
    __slots__ = ("volume_id", "created_at_ms")
    VOLUME_ID_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    volume_id: str
    created_at_ms: int
    def __init__(self, volume_id: _Optional[str] = ..., created_at_ms: _Optional[int] = ...) -> None: ...

class ListVolumesResponse(_message.Message):
    __slots__ = ("volumes",)
    VOLUMES_FIELD_NUMBER: _ClassVar[int]
    volumes: _containers.RepeatedCompositeFieldContainer[Volume]
    def __init__(self, volumes: _Optional[_Iterable[_Union[Volume, _Mapping]]] = ...) -> None: ...

class BoxMetrics(_message.Message):
    __slots__ = ("commands_executed", "exec_errors", "input_bytes", "output_bytes", "cpu_percent", "memory_bytes", "network_bytes_sent", "network_bytes_received", "boot_timing", "memory_limit_kills", "commands_by_engine")
    COMMANDS_EXECUTED_FIELD_NUMBER: _ClassVar[int]
    EXEC_ERRORS_FIELD_NUMBER: _ClassVar[int]
    INPUT_BYTES_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_BYTES_FIELD_NUMBER: _ClassVar[int]
    CPU_PERCENT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    NETWORK_BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    NETWORK_BYTES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    BOOT_TIMING_FIELD_NUMBER: _ClassVar[int]
    MEMORY_LIMIT_KILLS_FIELD_NUMBER: _ClassVar[int]
    COMMANDS_BY_ENGINE_FIELD_NUMBER: _ClassVar[int]
    commands_executed: int
    exec_errors: int
    input_bytes: int
    output_bytes: int
    cpu_percent: float
    memory_bytes: int
    network_bytes_sent: int
    network_bytes_received: int
    boot_timing: BootTiming
    memory_limit_kills: int
    commands_by_engine: int
    def __init__(self, commands_executed: _Optional[int] = ..., exec_errors: _Optional[int] = ..., input_bytes: _Optional[int] = ..., output_bytes: _Optional[int] = ..., cpu_percent: _Optional[float] = ..., memory_bytes: _Optional[int] = ..., network_bytes_sent: _Optional[int] = ..., network_bytes_received: _Optional[int] = ..., boot_timing: _Optional[_Union[BootTiming, _Mapping]] = ..., memory_limit_kills: _Optional[int] = ..., commands_by_engine: _Optional[int] = ...) -> None: ...

class BootTiming(_message.Message):
    __slots__ = ("total_ms", "image_prepare_ms", "box_config_ms", "box_spawn_ms", "container_init_ms")
    TOTAL_MS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_PREPARE_MS_FIELD_NUMBER: _ClassVar[int]
    BOX_CONFIG_MS_FIELD_NUMBER: _ClassVar[int]
    BOX_SPAWN_MS_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_INIT_MS_FIELD_NUMBER: _ClassVar[int]
    total_ms: int
    image_prepare_ms: int
    box_config_ms: int
    box_spawn_ms: int
    container_init_ms: int
    def __init__(self, total_ms: _Optional[int] = ..., image_prepare_ms: _Optional[int] = ..., box_config_ms: _Optional[int] = ..., box_spawn_ms: _Optional[int] = ..., container_init_ms: _Optional[int] = ...) -> None: ...
