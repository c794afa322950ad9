"""The WebSocket paths: attach to an execution, to a box's main command, or to a new terminal.

The frames are described at `attachExecution` and `openTerminal` in openapi.yaml. Connexion does not route
WebSockets, so this module serves the operations that the edge has found. A request is refused, where possible, before
the upgrade, with a plain HTTP answer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import NamedTuple
from urllib.parse import parse_qs

from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from .... import errors
from ...._gen import worker_pb2 as pb
from ...core import Core
from ...store import Box
from ..errors import error_response
from ..operations import OPERATION
from .progress import Progress
from .session import AttachOptions, Session, is_size

_OPERATIONS = ("attachExecution", "attachBox", "openTerminal")

EXECUTION_ID_HEADER = b"x-boxlite-execution-id"
DEFAULT_COMMAND = "bash"
MAX_ARGUMENT = 4096  # characters of the command, as in openapi.yaml
MAX_ARGUMENTS = 4096


class Attachment(NamedTuple):
    """The execution that a client asked to attach to. `named`: the client knows the execution's id already."""

    box: Box
    execution_id: str
    options: AttachOptions
    named: bool = False


class Attach:
    """The ASGI application of all WebSocket paths."""

    def __init__(self, core: Core) -> None:
        self._boxes = core.boxes
        self._executions = core.executions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        socket = WebSocket(scope, receive, send)
        try:
            found = await self._find(scope)
            # What a client has received is asked under the lease: a client that left just now may have received more.
            async with (
                self._executions.attachment(found.execution_id) as lease,
                self._output(found) as (execution, events),
            ):
                headers = [] if found.named else [(EXECUTION_ID_HEADER, found.execution_id.encode())]
                session = Session(self._executions, socket, found.box, execution, found.options, events)
                await _accept(socket, headers)
                await session.run(lease.lost)
        except WebSocketDisconnect:
            return
        except Exception as exc:
            with suppress(OSError):  # the client went away meanwhile
                await socket.send_denial_response(error_response(scope, exc))

    @asynccontextmanager
    async def _output(self, found: Attachment) -> AsyncIterator[tuple[pb.Execution, AsyncIterator[pb.OutputEvent]]]:
        """The execution, and its output behind what the client has received. Raises NotFoundError for an unknown
        execution."""
        box, execution_id, received = found.box, found.execution_id, found.options.received
        if brief := self._executions.take_brief(box, execution_id):
            yield brief, _events_of(brief)
            return
        if received is None:
            async with self._executions.resumed(box, execution_id) as resumed:
                yield resumed
            return
        execution = await self._executions.state(box, execution_id)
        position = Progress(execution.delivered, received).start_position
        async with aclosing(self._executions.read(box, execution_id, position)) as events:
            yield execution, events

    async def _find(self, scope: Scope) -> Attachment:
        operation, path = scope.get(OPERATION), scope["path_params"]
        if operation not in _OPERATIONS:
            raise errors.NotFoundError(f"no such WebSocket path: {scope['path']}")
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if operation == "openTerminal":
            return await self._open_terminal(path["prefix"], path["box_id"], query)
        options = _options(query)
        if operation == "attachBox":
            box, execution = await self._executions.attach_box(path["prefix"], path["box_id"])
            return Attachment(box, execution.execution_id, options)
        box = await self._boxes.get(path["prefix"], path["box_id"])
        return Attachment(box, path["execution_id"], options, named=True)

    async def _open_terminal(self, prefix: str, id_or_name: str, query: dict[str, list[str]]) -> Attachment:
        command, args = _last(query, "command") or DEFAULT_COMMAND, query.get("args", [])
        if len(args) > MAX_ARGUMENTS or len(command) > MAX_ARGUMENT or any("\0" in word for word in (command, *args)):
            raise errors.InvalidArgumentError("'command' and 'args' are no command line: too long, or with NUL in it")
        cols, rows = _size(query, "cols", 80), _size(query, "rows", 24)
        request = {"command": command, "args": args, "tty": True, "cols": cols, "rows": rows}
        box, execution = await self._executions.start(prefix, id_or_name, request, expects_reader=True)
        return Attachment(box, execution.execution_id, AttachOptions(channels=False))


async def _events_of(execution: pb.Execution) -> AsyncIterator[pb.OutputEvent]:
    for event in execution.events:
        yield event


async def _accept(socket: WebSocket, headers: list[tuple[bytes, bytes]]) -> None:
    """Raises WebSocketDisconnect when the client went away while its request was dealt with."""
    try:
        await socket.accept(headers=headers)
    except OSError as exc:
        raise WebSocketDisconnect(code=1006) from exc


def _options(query: dict[str, list[str]]) -> AttachOptions:
    stdin = _last(query, "stdin") or "1"
    if stdin not in ("0", "1"):
        raise errors.InvalidArgumentError(f"stdin: '{stdin}' is neither 0 nor 1")
    received, window = _count(query, "received", 0), _count(query, "window", 1)
    return AttachOptions(takes_input=stdin == "1", received=received, window=window)


def _count(query: dict[str, list[str]], name: str, minimum: int) -> int | None:
    text = _last(query, name)
    number = None if text is None else _number(name, text, 2**63 - 1)
    if number is not None and number < minimum:
        raise errors.InvalidArgumentError(f"{name}: {number} is less than {minimum}")
    return number


def _size(query: dict[str, list[str]], name: str, default: int) -> int:
    text = _last(query, name)
    number = default if text is None else _number(name, text, 65535)
    if not is_size(number):
        raise errors.InvalidArgumentError(f"{name}: {number} is not between 1 and 65535")
    return number


def _number(name: str, text: str, maximum: int) -> int:
    if text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= maximum:
        return int(text)
    raise errors.InvalidArgumentError(f"{name}: '{text}' is not a number from 0 to {maximum}")


def _last(query: dict[str, list[str]], name: str) -> str | None:
    return query[name][-1] if name in query else None
