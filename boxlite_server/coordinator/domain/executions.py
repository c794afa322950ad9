"""Starts, reads and steers commands in boxes. The executions live at the box's worker.

The coordinators ensure that one client at a time is attached to an execution. The worker keeps with the execution how
far that client has been served, so that a client goes on where it stopped, whichever side was restarted.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

from ... import errors, ids, rpc
from ..._gen import worker_pb2 as pb
from ...metrics import coordinator as metrics
from ..fleet.calls import Calls
from ..leases import Lease, Leases
from ..spec import checked_env
from ..states import BoxStatus
from ..store import Box
from .boxes import Boxes
from .counting import Counting
from .deadlines import Schedule
from .feeding import Feed
from .observing import Observer
from .runs import run_request
from .turns import Turns, ref

T = TypeVar("T")

LEAVING_SECONDS = 5.0  # for which a client waits until the input of the client before it is handed on
MAX_BRIEF = 128  # commands whose output waits for its reader here
RECONNECT_GRACE = 300.0  # seconds, as in upstream's server

_STARTED = (BoxStatus.RUNNING, BoxStatus.STOPPING, BoxStatus.PAUSED)  # the worker refuses a paused box


class Brief:
    """The commands that ended as they were started, until a client attaches to them: their workers need not be asked
    for the output. The oldest go first; each has 64 KiB of output at most."""

    def __init__(self) -> None:
        self._executions: OrderedDict[tuple[str, str], pb.Execution] = OrderedDict()  # by box id and execution id

    def put(self, box: Box, execution: pb.Execution) -> None:
        self._executions[box.id, execution.execution_id] = execution
        if len(self._executions) > MAX_BRIEF:
            self._executions.popitem(last=False)

    def take(self, box: Box, execution_id: str) -> pb.Execution | None:
        return self._executions.pop((box.id, execution_id), None)


class Executions:
    """All executions of all boxes.

    `reconnect_grace`: seconds from the loss of a terminal's client to the SIGHUP; 0: none. `is_alone`: there is no
    other coordinator through which a client may attach.
    """

    def __init__(
        self,
        calls: Calls,
        turns: Turns,
        observer: Observer,
        boxes: Boxes,
        schedule: Schedule,
        leases: Leases,
        counting: Counting,
        reconnect_grace: float = RECONNECT_GRACE,
        *,
        is_alone: bool = False,
    ) -> None:
        self._calls = calls
        self._turns = turns
        self._observer = observer
        self._boxes = boxes
        self._schedule = schedule
        self._leases = leases
        self._counting = counting
        self._grace = reconnect_grace
        self._keeps_brief = is_alone  # else a client may have had the output through another coordinator
        self._brief = Brief()
        self._leaving: dict[str, asyncio.Event] = {}  # set at the end of the attachment, by execution id

    # ---- commands -------------------------------------------------------------------------------------

    async def start(
        self,
        prefix: str,
        id_or_name: str,
        request: Mapping[str, Any],
        *,
        expects_reader: bool = False,
        request_key: str | None = None,
    ) -> tuple[Box, pb.Execution]:
        """Start a command, and before it the box if it does not run. `expects_reader`: a terminal is hung up also
        when nobody ever attaches to it. `request_key` (owner and Idempotency-Key): a command that an earlier attempt
        at the same request started is not started again for as long as the worker knows of it.

        Raises ExecutionError when the command cannot be spawned, StoppedError when the box does not keep running.
        """
        return await self._in_running_box(
            prefix,
            id_or_name,
            request,
            request_key,
            lambda box, its_id: self._start_in(box, its_id, request, expects_reader),
        )

    async def run(
        self, prefix: str, id_or_name: str, request: Mapping[str, Any], *, request_key: str | None = None
    ) -> pb.RunResult:
        """Run a command to its end, in one call to its worker.

        The command is killed when the caller is cancelled, unless there is a `request_key`: then it goes on, and
        another attempt at the same request joins it. Raises what `start` raises.
        """

        async def act(box: Box, execution_id: str) -> pb.RunResult:
            message = run_request(self._message(box, execution_id, request), request, kept=bool(request_key))
            async with self._schedule.use(box):
                with self._counted(box), metrics.EXEC_SECONDS["run"].time():
                    return await self._calls.run_command(box.worker_id, message)

        _, result = await self._in_running_box(prefix, id_or_name, request, request_key, act)
        return result

    async def run_live(
        self, prefix: str, id_or_name: str, request: Mapping[str, Any], *, request_key: str | None = None
    ) -> tuple[str, AsyncGenerator[pb.OutputEvent, None]]:
        """`run` with output as it comes: returns the execution's id once the command runs, and its events. The command
        is killed as there when the events are closed before their end."""

        async def act(box: Box, execution_id: str) -> tuple[str, AsyncGenerator[pb.OutputEvent, None]]:
            message = run_request(self._message(box, execution_id, request), request, kept=bool(request_key), live=True)
            events = self._stream_in(box, message)
            with self._counted(box), metrics.EXEC_SECONDS["start"].time():
                await anext(events)
            return execution_id, events

        _, running = await self._in_running_box(prefix, id_or_name, request, request_key, act)
        return running

    async def _in_running_box(
        self,
        prefix: str,
        id_or_name: str,
        request: Mapping[str, Any],
        request_key: str | None,
        act: Callable[[Box, str], Awaitable[T]],
    ) -> tuple[Box, T]:
        """Start a command by `act`, which gets the running box and the execution's id. A box that has just ended gets
        one more start."""
        with metrics.EXEC_SECONDS["box"].time():
            box, was_started = await self._boxes.ensure_running(prefix, id_or_name)
        same = request_key and json.dumps([request_key, box.id, request], sort_keys=True)
        execution_id = ids.execution_id(same)
        try:
            return box, await act(box, execution_id)
        except (errors.StoppedError, errors.NotFoundError) as exc:
            if was_started:
                raise  # its main command ended soon after it was started
            # The box ended since it was last seen; its row decides whether it is started again.
            await self._observer.refresh(box.id)
            try:
                box, _ = await self._boxes.ensure_running(prefix, box.id)
            except errors.NotFoundError:
                raise exc from None  # the box had auto_remove
            return box, await act(box, execution_id)

    def _message(self, box: Box, execution_id: str, request: Mapping[str, Any]) -> pb.StartExecutionRequest:
        """What `start` and `run` have in common."""
        return pb.StartExecutionRequest(
            box=ref(box),
            execution_id=execution_id,
            command=request["command"],
            args=request.get("args") or [],
            env=checked_env(request.get("env")),
            working_dir=request.get("working_dir") or "",
            user=request.get("user") or "",
            timeout_seconds=request.get("timeout_seconds") or 0,
        )

    async def _start_in(
        self, box: Box, execution_id: str, request: Mapping[str, Any], expects_reader: bool
    ) -> pb.Execution:
        tty = bool(request.get("tty"))
        cols, rows = request.get("cols") or 0, request.get("rows") or 0
        if (cols or rows) and not tty:
            raise errors.InvalidArgumentError("'cols' and 'rows' are the size of a terminal: they need 'tty': true")
        message = self._message(box, execution_id, request)
        message.tty, message.cols, message.rows = tty, cols, rows
        message.hangup_seconds = self._grace if tty else 0
        message.expects_reader = expects_reader
        message.no_input = request.get("stdin") is False
        message.wants_events = self._keeps_brief and not tty
        # Nothing may be awaited between the caller's look at the box and this: an idle box may be about to stop.
        async with self._schedule.use(box):
            with self._counted(box), metrics.EXEC_SECONDS["start"].time():
                execution = await self._calls.start_execution(box.worker_id, message)
        if execution.events:
            self._brief.put(box, execution)
        return execution

    async def _stream_in(self, box: Box, message: pb.RunCommandRequest) -> AsyncGenerator[pb.OutputEvent, None]:
        async with self._schedule.use(box), aclosing(self._calls.stream_command(box.worker_id, message)) as events:
            async for event in events:
                yield event

    @contextmanager
    def _counted(self, box: Box) -> Iterator[None]:
        """Count the command that the `with` block starts, or that it cannot be spawned."""
        try:
            yield
        except errors.ExecutionError:
            self._counting.add(box.prefix, "exec_errors")
            raise
        self._counting.add(box.prefix, "commands_executed")

    async def attach_box(self, prefix: str, id_or_name: str) -> tuple[Box, pb.Execution]:
        """The box's main command as an execution, also before the box is started."""
        box = await self._turns.get(prefix, id_or_name)
        # To hang up the main command ends the box, so it is done only when the box belongs to its client.
        tied = box.spec.tty and not box.spec.detach
        request = pb.AttachBoxRequest(box=ref(box), hangup_seconds=self._grace if tied else 0)
        return box, await self._calls.attach_box(box.worker_id, request)

    async def signal_box(self, prefix: str, id_or_name: str, number: int) -> None:
        """Send a signal to the box's main command. Raises InvalidStateError when the box does not run."""
        box = await self._turns.get(prefix, id_or_name)
        if box.status not in _STARTED:
            raise errors.InvalidStateError(f"box '{id_or_name}' does not run; start it first")
        await self._calls.signal_box(box.worker_id, pb.SignalBoxRequest(box=ref(box), signal=number))

    async def list(
        self, prefix: str, id_or_name: str, *, after: tuple[int, str], count: int
    ) -> pb.ListExecutionsResponse:
        """At most `count` executions of a box, the oldest first: those that run, and those that ended some minutes ago
        at most. `after`: the start in milliseconds and the id of the execution in front of them; no id: none is."""
        box = await self._turns.get(prefix, id_or_name)
        request = pb.ListExecutionsRequest(box=ref(box), after_ms=after[0], after_id=after[1], count=count)
        return await self._calls.list_executions(box.worker_id, request)

    async def get(self, prefix: str, id_or_name: str, execution_id: str) -> tuple[Box, pb.Execution]:
        """The box and the execution. Raises NotFoundError for an unknown execution, and for an execution that ended
        more than some minutes ago."""
        box = await self._turns.get(prefix, id_or_name)
        return box, await self.state(box, execution_id)

    async def state(self, box: Box, execution_id: str) -> pb.Execution:
        return await self._calls.get_execution(box.worker_id, _ref(box, execution_id))

    async def is_running(self, box: Box, execution_id: str) -> bool:
        try:
            return (await self.state(box, execution_id)).status == pb.EXECUTION_STATUS_RUNNING
        except errors.NotFoundError:
            return False

    async def kill(self, box: Box, execution_id: str) -> None:
        await self._calls.kill_execution(box.worker_id, _ref(box, execution_id))

    async def signal(self, box: Box, execution_id: str, number: int) -> None:
        request = pb.SignalExecutionRequest(execution=_ref(box, execution_id), signal=number)
        await self._calls.signal_execution(box.worker_id, request)

    async def resize(self, box: Box, execution_id: str, cols: int, rows: int) -> None:
        request = pb.ResizeExecutionRequest(execution=_ref(box, execution_id), cols=cols, rows=rows)
        await self._calls.resize_execution(box.worker_id, request)

    async def write(
        self,
        box: Box,
        execution_id: str,
        data: bytes,
        feed: Feed,
        *,
        more: bool = False,
        waits: Callable[[int], bool] = lambda idle: True,
    ) -> None:
        """Hand all of `data` to the command, however long the command takes to read it, and once, also where its worker
        is restarted. `more`: the data belongs to a message that goes on in another call.

        Raises InvalidStateError once the command has ended or its input is closed, and TimedOutError when `waits`
        says so: it gets the number of calls in a row in which the command has read nothing, and returns whether to
        go on. The worker decides how long a call waits.
        """
        rest, idle = memoryview(data), 0
        while True:
            chunk = rest[: rpc.CHUNK_BYTES]
            goes_on = more or len(chunk) < len(rest)
            request = pb.WriteInputRequest(
                execution=_ref(box, execution_id),
                data=bytes(chunk),
                more=goes_on,
                source=feed.name,
                offset=feed.sent,
            )
            answer = await feed.insist(partial(self._calls.write_input, box.worker_id, request))
            rest = rest[answer.accepted :]
            feed.sent += answer.accepted
            if not rest:
                return
            idle = 0 if answer.accepted else idle + 1
            if idle and not waits(idle):
                raise errors.TimedOutError(f"the command does not read its input; {len(rest)} bytes are left")

    async def close_input(
        self, box: Box, execution_id: str, feed: Feed, *, waits: Callable[[int], bool] = lambda idle: True
    ) -> None:
        """End the input of the command, as soon as the command has taken what was written. Raises TimedOutError like
        `write`; ignores a command that has ended."""
        request = pb.WriteInputRequest(execution=_ref(box, execution_id), close=True)
        idle = 0
        while (await feed.insist(partial(self._calls.write_input, box.worker_id, request))).still_open:
            idle += 1
            if not waits(idle):
                raise errors.TimedOutError("the command does not read its input, which cannot be ended")

    async def lose_input(self, box: Box, execution_id: str) -> None:
        """Tell the worker that input was lost on the way: it kills the command, unless that has a terminal."""
        request = pb.WriteInputRequest(execution=_ref(box, execution_id), lost=True)
        await self._calls.write_input(box.worker_id, request)

    def read(self, box: Box, execution_id: str, position: int) -> AsyncGenerator[pb.OutputEvent, None]:
        """The output from `position` on, and the end as the last event. A reader uses the box: it is not idle."""
        return self._events(box, pb.ReadOutputRequest(execution=_ref(box, execution_id), position=position))

    def take_brief(self, box: Box, execution_id: str) -> pb.Execution | None:
        """A command that ended as it was started, with its whole output in `events`, for its first reader."""
        return self._brief.take(box, execution_id)

    @asynccontextmanager
    async def resumed(
        self, box: Box, execution_id: str
    ) -> AsyncIterator[tuple[pb.Execution, AsyncGenerator[pb.OutputEvent, None]]]:
        """The execution as it is now, and its output behind what the attached client has acknowledged, like `read`.
        Raises NotFoundError for an unknown execution."""
        events = self._events(box, pb.ReadOutputRequest(execution=_ref(box, execution_id), resume=True))
        async with aclosing(events):
            yield (await anext(events)).resumed, events

    async def _events(self, box: Box, request: pb.ReadOutputRequest) -> AsyncGenerator[pb.OutputEvent, None]:
        async with self._schedule.use(box), aclosing(self._calls.read_output(box.worker_id, request)) as batches:
            async for batch in batches:
                for event in batch.events:
                    yield event

    async def read_logs(
        self, box: Box, tail: int | None, follow: bool, since: float | None, timestamps: bool
    ) -> AsyncGenerator[pb.OutputChunk, None]:
        """The output of the box's main command in all its runs, the last `tail` lines of it (None: all), and with
        `follow` what it writes until the box stops. `since`: only what was written at this Unix time or later. With
        `timestamps`, each line begins with its time."""
        request = pb.ReadLogsRequest(box=ref(box), tail=tail, follow=follow, since=since, timestamps=timestamps)
        async with aclosing(self._calls.read_logs(box.worker_id, request)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def confirm(self, box: Box, execution_id: str, delivered: pb.Delivered) -> None:
        """Have the worker remember how much of the output has reached the attached client."""
        request = pb.ConfirmOutputRequest(execution=_ref(box, execution_id), delivered=delivered)
        await self._calls.confirm_output(box.worker_id, request)

    # ---- attached clients -----------------------------------------------------------------------------

    @asynccontextmanager
    async def attachment(self, execution_id: str) -> AsyncIterator[Lease]:
        """Be the one attached client for the duration of the `with` block. Raises AlreadyExistsError while another
        client is attached, through whatever coordinator, and waits a little for a client that has left."""
        if (left := self._leaving.get(execution_id)) is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(left.wait(), LEAVING_SECONDS)
        is_held = False
        try:
            async with self._leases.try_hold(f"attach/{execution_id}") as lease:
                if lease is None:
                    raise errors.AlreadyExistsError(f"another client is attached to execution {execution_id}")
                is_held = True
                yield lease
        finally:
            if is_held and (left := self._leaving.pop(execution_id, None)) is not None:
                left.set()

    def leave(self, execution_id: str) -> None:
        """Note that the attached client has left, and that its attachment ends once its input is handed on."""
        self._leaving[execution_id] = asyncio.Event()


def _ref(box: Box, execution_id: str) -> pb.ExecutionRef:
    return pb.ExecutionRef(box_id=box.id, execution_id=execution_id)
