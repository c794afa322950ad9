"""The calls to workers: one typed method for each rpc of worker.proto, over one link to each worker.

A call without a deadline is given up when its worker is silent for too long in the middle of a stream. Only the
worker's silence counts: a client that reads or sends slowly does not end its call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from time import perf_counter
from typing import Any, TypeVar

from ... import errors
from ..._gen import worker_pb2 as pb
from ...metrics import coordinator as metrics
from ..limits import (
    CALL_SECONDS,
    COPY_SECONDS,
    EXECUTION_SECONDS,
    IDLE_SECONDS,
    LIST_IMAGES_SECONDS,
    METRICS_SECONDS,
    REMOVE_IMAGE_SECONDS,
    WORK_SECONDS,
)
from ..store import Worker
from .link import Connect, GrpcLink, Link
from .registry import Fleet

T = TypeVar("T")

# These errors are the worker's trouble and not the request's: another worker may be able to do it.
TRY_ELSEWHERE = (
    errors.UpstreamUnavailableError,
    errors.ResourceExhaustedError,
    errors.EngineError,
    errors.LocalImageError,
)

# After one of these nobody knows whether the worker did what it was asked for; any other error says that it did not.
UNCERTAIN = (errors.UnreachableError, errors.TimedOutError, errors.EngineError)


class Calls:
    """The rpcs of worker.proto, to the workers of `fleet`; `connect` makes the link to a worker.

    Every method takes the worker's id, or its row where the caller has just read it. It raises
    UpstreamUnavailableError at once when the worker is not reachable, TimedOutError, and what `Link` raises.
    `timeout`: seconds for the whole call. `idle`: seconds for which the worker may be silent in a stream; None: for
    ever.
    """

    def __init__(self, fleet: Fleet, connect: Connect = GrpcLink) -> None:
        self._fleet = fleet
        self._connect = connect
        self._links: dict[str, tuple[Worker, Link]] = {}  # by worker id
        fleet.on_removal(self._hang_up)

    async def close(self) -> None:
        while self._links:
            await self._hang_up(next(iter(self._links)))

    # ---- boxes ----------------------------------------------------------------------------------------

    def create_box(
        self, worker: Worker | str, request: pb.CreateBoxRequest, *, timeout: float = CALL_SECONDS
    ) -> Awaitable[pb.Box]:
        return self._unary(worker, "CreateBox", request, timeout)

    def start_box(self, worker: Worker | str, box: pb.BoxRef) -> Awaitable[pb.Box]:
        return self._unary(worker, "StartBox", box, CALL_SECONDS)

    def stop_box(self, worker: Worker | str, request: pb.StopBoxRequest) -> Awaitable[pb.Box]:
        """Stop a box; the call may take the request's own timeout, and CALL_SECONDS more."""
        return self._unary(worker, "StopBox", request, request.timeout_seconds + CALL_SECONDS)

    def update_box(self, worker: Worker | str, request: pb.UpdateBoxRequest) -> Awaitable[pb.Box]:
        return self._unary(worker, "UpdateBox", request, CALL_SECONDS)

    def remove_box(self, worker: Worker | str, request: pb.RemoveBoxRequest) -> Awaitable[pb.Empty]:
        return self._unary(worker, "RemoveBox", request, CALL_SECONDS)

    def get_box(self, worker: Worker | str, box: pb.BoxRef) -> Awaitable[pb.Box]:
        return self._unary(worker, "GetBox", box, CALL_SECONDS)

    def list_boxes(self, worker: Worker | str) -> Awaitable[pb.ListBoxesResponse]:
        return self._unary(worker, "ListBoxes", pb.Empty(), CALL_SECONDS)

    def get_box_metrics(self, worker: Worker | str, box: pb.BoxRef) -> Awaitable[pb.BoxMetrics]:
        return self._unary(worker, "GetBoxMetrics", box, METRICS_SECONDS)

    # ---- executions -----------------------------------------------------------------------------------

    def start_execution(self, worker: Worker | str, request: pb.StartExecutionRequest) -> Awaitable[pb.Execution]:
        return self._unary(worker, "StartExecution", request, EXECUTION_SECONDS)

    def run_command(self, worker: Worker | str, request: pb.RunCommandRequest) -> Awaitable[pb.RunResult]:
        """Run a command to its end; the call lasts as long as the command."""
        return self._unary(worker, "RunCommand", request, None)

    def stream_command(
        self, worker: Worker | str, request: pb.RunCommandRequest
    ) -> AsyncGenerator[pb.OutputEvent, None]:
        return self._stream(worker, "StreamCommand", request, None)

    def attach_box(self, worker: Worker | str, request: pb.AttachBoxRequest) -> Awaitable[pb.Execution]:
        return self._unary(worker, "AttachBox", request, EXECUTION_SECONDS)

    def signal_box(self, worker: Worker | str, request: pb.SignalBoxRequest) -> Awaitable[pb.Empty]:
        return self._unary(worker, "SignalBox", request, EXECUTION_SECONDS)

    def get_execution(self, worker: Worker | str, execution: pb.ExecutionRef) -> Awaitable[pb.Execution]:
        return self._unary(worker, "GetExecution", execution, EXECUTION_SECONDS)

    def list_executions(
        self, worker: Worker | str, request: pb.ListExecutionsRequest
    ) -> Awaitable[pb.ListExecutionsResponse]:
        return self._unary(worker, "ListExecutions", request, EXECUTION_SECONDS)

    def read_output(self, worker: Worker | str, request: pb.ReadOutputRequest) -> AsyncGenerator[pb.OutputEvents, None]:
        return self._stream(worker, "ReadOutput", request, None)

    def read_logs(self, worker: Worker | str, request: pb.ReadLogsRequest) -> AsyncGenerator[pb.OutputChunk, None]:
        return self._stream(worker, "ReadLogs", request, None)

    def confirm_output(self, worker: Worker | str, request: pb.ConfirmOutputRequest) -> Awaitable[pb.Empty]:
        return self._unary(worker, "ConfirmOutput", request, EXECUTION_SECONDS)

    def write_input(self, worker: Worker | str, request: pb.WriteInputRequest) -> Awaitable[pb.WriteInputResponse]:
        return self._unary(worker, "WriteInput", request, EXECUTION_SECONDS)

    def signal_execution(self, worker: Worker | str, request: pb.SignalExecutionRequest) -> Awaitable[pb.Empty]:
        return self._unary(worker, "SignalExecution", request, EXECUTION_SECONDS)

    def resize_execution(self, worker: Worker | str, request: pb.ResizeExecutionRequest) -> Awaitable[pb.Empty]:
        return self._unary(worker, "ResizeExecution", request, EXECUTION_SECONDS)

    def kill_execution(self, worker: Worker | str, execution: pb.ExecutionRef) -> Awaitable[pb.Empty]:
        return self._unary(worker, "KillExecution", execution, EXECUTION_SECONDS)

    # ---- files ----------------------------------------------------------------------------------------

    def put_files(
        self,
        worker: Worker | str,
        header: pb.PutFilesRequest,
        requests: AsyncIterator[pb.PutFilesRequest],
        *,
        idle: float | None = WORK_SECONDS,
    ) -> Awaitable[pb.PutFilesResponse]:
        return self._send(worker, "PutFiles", header, requests, idle)

    def put_small_files(self, worker: Worker | str, request: pb.PutSmallFilesRequest) -> Awaitable[pb.PutFilesResponse]:
        return self._unary(worker, "PutSmallFiles", request, WORK_SECONDS)

    def get_files(
        self, worker: Worker | str, request: pb.GetFilesRequest, *, idle: float | None = IDLE_SECONDS
    ) -> AsyncGenerator[pb.FilesChunk, None]:
        return self._stream(worker, "GetFiles", request, idle)

    def stat_file(self, worker: Worker | str, request: pb.StatFileRequest) -> Awaitable[pb.FileEntry]:
        return self._unary(worker, "StatFile", request, WORK_SECONDS)

    def list_directory(
        self, worker: Worker | str, request: pb.ListDirectoryRequest
    ) -> Awaitable[pb.ListDirectoryResponse]:
        return self._unary(worker, "ListDirectory", request, WORK_SECONDS)

    def read_file(self, worker: Worker | str, request: pb.ReadFileRequest) -> AsyncGenerator[pb.FileChunk, None]:
        return self._stream(worker, "ReadFile", request, IDLE_SECONDS)

    def write_file(
        self, worker: Worker | str, header: pb.WriteFileRequest, requests: AsyncIterator[pb.WriteFileRequest]
    ) -> Awaitable[pb.WriteFileResponse]:
        return self._send(worker, "WriteFile", header, requests, WORK_SECONDS)

    # ---- snapshots and archives -----------------------------------------------------------------------

    def create_snapshot(self, worker: Worker | str, snapshot: pb.SnapshotRef) -> Awaitable[pb.Snapshot]:
        return self._unary(worker, "CreateSnapshot", snapshot, COPY_SECONDS)

    def remove_snapshot(self, worker: Worker | str, snapshot: pb.SnapshotRef) -> Awaitable[pb.Empty]:
        return self._unary(worker, "RemoveSnapshot", snapshot, CALL_SECONDS)

    def list_snapshots(self, worker: Worker | str) -> Awaitable[pb.ListSnapshotsResponse]:
        return self._unary(worker, "ListSnapshots", pb.Empty(), CALL_SECONDS)

    def restore_snapshot(self, worker: Worker | str, request: pb.RestoreSnapshotRequest) -> Awaitable[pb.Box]:
        return self._unary(worker, "RestoreSnapshot", request, CALL_SECONDS)

    def clone_box(self, worker: Worker | str, request: pb.CloneBoxRequest) -> Awaitable[pb.Box]:
        return self._unary(worker, "CloneBox", request, COPY_SECONDS)

    def export_box(self, worker: Worker | str, box: pb.BoxRef) -> AsyncGenerator[pb.ExportChunk, None]:
        return self._stream(worker, "ExportBox", box, WORK_SECONDS)

    def import_box(
        self, worker: Worker | str, header: pb.ImportBoxRequest, requests: AsyncIterator[pb.ImportBoxRequest]
    ) -> Awaitable[pb.Box]:
        return self._send(worker, "ImportBox", header, requests, WORK_SECONDS)

    # ---- images and volumes ---------------------------------------------------------------------------

    def pull_image(self, worker: Worker | str, request: pb.PullImageRequest) -> AsyncGenerator[pb.PullImageEvent, None]:
        return self._stream(worker, "PullImage", request, IDLE_SECONDS)

    def list_images(self, worker: Worker | str) -> Awaitable[pb.ListImagesResponse]:
        return self._unary(worker, "ListImages", pb.Empty(), LIST_IMAGES_SECONDS)

    def remove_image(self, worker: Worker | str, request: pb.RemoveImageRequest) -> Awaitable[pb.Empty]:
        return self._unary(worker, "RemoveImage", request, REMOVE_IMAGE_SECONDS)

    def create_volume(self, worker: Worker | str, volume: pb.VolumeRef) -> Awaitable[pb.Volume]:
        return self._unary(worker, "CreateVolume", volume, CALL_SECONDS)

    def remove_volume(self, worker: Worker | str, volume: pb.VolumeRef) -> Awaitable[pb.Empty]:
        return self._unary(worker, "RemoveVolume", volume, CALL_SECONDS)

    def list_volumes(self, worker: Worker | str) -> Awaitable[pb.ListVolumesResponse]:
        return self._unary(worker, "ListVolumes", pb.Empty(), CALL_SECONDS)

    # ---- below the rpcs -------------------------------------------------------------------------------

    async def _unary(self, worker: Worker | str, method: str, request: Any, timeout: float | None) -> Any:
        row, link = await self._link(worker)
        with self._noted(row, method):
            return await link.unary(method, request, timeout=timeout)

    async def _stream(
        self, worker: Worker | str, method: str, request: Any, idle: float | None
    ) -> AsyncGenerator[Any, None]:
        """The answers of a streaming call. It raises TimedOutError when no answer comes for `idle` seconds while
        the caller waits for one. Without `idle` silence means nothing: a reader of a command's output waits for as
        long as the command is silent, and hears of a lost worker by the link's keepalive."""
        row, link = await self._link(worker)
        with self._noted(row, method):
            async with aclosing(link.stream(method, request)) as answers:
                while (answer := await _within(anext(answers, None), idle, row.name)) is not None:
                    yield answer

    async def _send(
        self, worker: Worker | str, method: str, header: Any, requests: AsyncIterator[Any], idle: float | None
    ) -> Any:
        """The answer to a streamed call. It raises TimedOutError when the worker neither takes a request nor
        answers for `idle` seconds; the time that `requests` takes does not count."""
        row, link = await self._link(worker)
        with self._noted(row, method):
            async with _taking(requests, idle, row.name) as watched:
                return await link.send(method, header, watched)

    @contextmanager
    def _noted(self, worker: Worker, method: str) -> Iterator[None]:
        """Measure the call in the `with` block. A worker that it does not reach counts as unreachable until it is heard
        again."""
        began, code = perf_counter(), "cancelled"
        try:
            yield
            code = "ok"
        except errors.BoxliteError as exc:
            code = exc.code
            if isinstance(exc, errors.UnreachableError):
                self._fleet.note_silence(worker, exc.message)
            raise
        finally:
            metrics.CALLS.ended(method, code, perf_counter() - began)

    async def _link(self, worker: Worker | str) -> tuple[Worker, Link]:
        """The one connection to this life of the worker, at its present address."""
        row = await self._fleet.reachable(worker)
        known, link = self._links.get(row.id, (None, None))
        if link and known and (_address(known) == _address(row) or known.last_heartbeat > row.last_heartbeat):
            return known, link  # `row` is older than the link's row: another call has read a newer one
        new = self._connect(row)
        self._links[row.id] = row, new
        if link is not None:
            await link.close()
        return row, new

    async def _hang_up(self, worker_id: str) -> None:
        _, link = self._links.pop(worker_id, (None, None))
        if link is not None:
            await link.close()


def _address(worker: Worker) -> tuple[str, str, str]:
    return worker.url, worker.secret, worker.epoch


async def _within(answer: Awaitable[T], idle: float | None, worker: str) -> T:
    """The answer, if it comes within `idle` seconds. Raises TimedOutError."""
    if idle is None:
        return await answer
    async with _bounded(idle, worker):
        return await answer


@asynccontextmanager
async def _taking(
    requests: AsyncIterator[T], idle: float | None, worker: str
) -> AsyncGenerator[AsyncGenerator[T, None], None]:
    """Yields the `requests` to send. Inside the `with` block the worker has `idle` seconds to take each of them,
    and as long to accept the call before the first and to answer it after the last. Raises TimedOutError."""
    clock = asyncio.get_running_loop().time

    async def watched() -> AsyncGenerator[T, None]:
        while True:
            bound.reschedule(None)
            try:
                request = await anext(requests)
            except StopAsyncIteration:
                return
            finally:
                bound.reschedule(None if idle is None else clock() + idle)
            yield request

    async with _bounded(idle, worker) as bound:
        yield watched()


@asynccontextmanager
async def _bounded(idle: float | None, worker: str) -> AsyncGenerator[asyncio.Timeout, None]:
    bound = asyncio.timeout(idle)
    try:
        async with bound:
            yield bound
    except TimeoutError:
        if not bound.expired():
            raise  # another timeout, inside the block
        text = f"was silent for {idle or 0:.0f} s; the call is given up"
        raise errors.TimedOutError(f"worker {worker} {text}", f"the worker {text}") from None
