"""Attaches to an execution: passes its output to stdout and stderr, stdin and signals to it, and its exit code on.

The socket is driven by asyncio, not by threads: a command such as `cat` reads no more input until its output is
taken, so sending and receiving must never wait for each other.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlencode

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from ..errors import BoxliteError, UnsupportedError, UpstreamUnavailableError
from . import terminal
from .api import CONNECT_TIMEOUT, ApiClient, error_from, unreachable

EXECUTION_ID_HEADER = "x-boxlite-execution-id"
RECONNECT_DELAYS = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # seconds, one for each attempt that fails in a row
STABLE = 15.0  # seconds for which a connection must live to reset the delays; longer than a failed attempt takes
SILENCE = 45.0  # seconds without a byte, pings included, after which the server is considered dead
PING_INTERVAL = 15.0  # seconds
SIGNAL_PATIENCE = 2.0  # seconds to wait for the delivery of SIGPIPE before the client exits

DETACH_KEYS = b"\x10\x11"  # Ctrl-P Ctrl-Q, as in docker

_CHUNK = 65536
MAX_FORWARDED = 3  # signals that are forwarded; the next one ends the client itself
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_DESCRIPTOR = {b"\x01": terminal.STDOUT, b"\x02": terminal.STDERR}  # by the first byte of a frame

log = logging.getLogger("boxlite.client")


def attach_execution(
    api: ApiClient, box: str, execution: str, *, stdin: bool, tty: bool, as_visitor: bool = False
) -> int:
    """Attach to an existing execution, stream until it ends, and return its exit code.

    `as_visitor`: the command is another's. The end of stdin does not end its input, and the keys Ctrl-P Ctrl-Q of a
    terminal leave it: the exit code is 0 then.
    """
    return asyncio.run(_Session(api, box, execution, stdin=stdin, tty=tty, as_visitor=as_visitor).run())


def attach_again(api: ApiClient, box: str, execution: str, received: int) -> int:
    """Go on with an execution without input of whose output `received` bytes have come over another connection, which
    has broken. Returns its exit code."""
    session = _Session(api, box, execution, stdin=False, tty=False)
    session._received = received
    return asyncio.run(session.run())


def attach_main(api: ApiClient, box: str, start: Callable[[], object], *, stdin: bool, tty: bool) -> int:
    """Attach to the main command of a box, call `start` in a thread, stream until the command ends, and return its
    exit code."""
    return asyncio.run(_Session(api, box, None, start=start, stdin=stdin, tty=tty).run())


def visit_main(api: ApiClient, box: str, *, stdin: bool, tty: bool) -> int:
    """Attach to the main command of a box as a visitor, see `attach_execution`."""
    return asyncio.run(_Session(api, box, None, stdin=stdin, tty=tty, as_visitor=True).run())


class _Connection(ClientConnection):
    """A connection that records when the server last sent anything, control frames included."""

    last_heard = 0.0  # time.monotonic()

    def data_received(self, data: bytes) -> None:
        self.last_heard = time.monotonic()
        super().data_received(data)


class _Session:
    def __init__(
        self,
        api: ApiClient,
        box: str,
        execution: str | None,
        *,
        stdin: bool,
        tty: bool,
        start: Callable[[], object] | None = None,
        as_visitor: bool = False,
    ) -> None:
        self._api = api
        self._box = box
        self._execution = execution
        self._start = start
        self._stdin = stdin
        self._tty = tty
        self._raw = tty and stdin
        self._as_visitor = as_visitor
        self._main: asyncio.Task[Any] | None = None
        self._held = b""  # keys that may be the first of DETACH_KEYS
        self._stdin_ended = not stdin
        self._stdin_bytes = 0
        self._pump: threading.Thread | None = None
        self._started = False
        self._received: int | None = None  # bytes of output; None before the first socket
        self._last_heard = 0.0
        self._server_says = ""
        self._signals = 0
        self._leave_with: int | None = None
        self._socket: _Connection | None = None
        self._attached = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        self._main = asyncio.current_task()
        with self._signals_caught():
            try:
                return await self._to_the_end()
            except asyncio.CancelledError:
                if self._leave_with is None:
                    raise
                return self._leave_with

    async def _to_the_end(self) -> int:
        try:
            code = await self._attach() if self._received is None else None
        except InvalidStatus as error:
            raise _refusal(error) from error
        except (OSError, WebSocketException) as error:
            if self._execution is None:
                raise unreachable(self._api.url, error) from error
            code = None  # the command is already running
        if code is None:
            code = await self._reattach()
        return code if 0 <= code <= 255 else 255

    async def _reattach(self) -> int:
        """Attach again until an exit code comes. The server continues after the output that has been received."""
        failures = 0
        if self._stdin_bytes:
            self._notice("the connection broke; the last of the input may not have arrived")
        while failures < len(RECONNECT_DELAYS):
            await asyncio.sleep(RECONNECT_DELAYS[failures])
            began, received = time.monotonic(), self._received
            try:
                code = await self._attach()
            except InvalidStatus as error:
                status = error.response.status_code
                if status in (404, 410):
                    break
                if status in (401, 403):
                    raise _refusal(error) from error
                log.debug("attach: HTTP %d", status)  # 409: the server has not noticed yet that the old socket broke
            except (OSError, WebSocketException) as error:
                log.debug("attach: %s", error)
            else:
                if code is not None:
                    return code
            worked = self._received != received or self._last_heard - began >= STABLE
            failures = 0 if worked else failures + 1
        return await self._final_status()

    async def _final_status(self) -> int:
        """Ask the server for the exit code. Raises `UpstreamUnavailableError` when it has none."""
        reason = self._server_says
        try:
            execution = await asyncio.to_thread(self._api.get, self._path())
        except BoxliteError as error:
            reason = error.message
        else:
            code = execution.get("exit_code")
            if execution.get("status") != "running" and isinstance(code, int):
                self._notice("the connection broke; the last of the output is lost")
                return code
            reason = execution.get("error_message") or reason
        raise UpstreamUnavailableError(
            "lost the connection to the command, which may still be running" + (f": {reason}" if reason else "")
        )

    # One socket

    async def _attach(self) -> int | None:
        """Attach once and stream. Returns the exit code, or None when the socket breaks before it comes.

        Raises `InvalidStatus`, OSError or another WebSocketException when the handshake fails.
        """
        path = self._path("attach") if self._execution else self._api.path("boxes", self._box, "attach")
        query = {} if self._received is None else {"received": self._received}
        if self._as_visitor and not self._stdin:
            query["stdin"] = 0
        path += "?" + urlencode(query) if query else ""
        async with connect(
            self._api.websocket_url(path),
            ssl=self._api.tls,
            additional_headers=self._api.headers,
            create_connection=_Connection,
            compression=None,
            proxy=None,
            open_timeout=CONNECT_TIMEOUT,
            close_timeout=2,
            ping_interval=PING_INTERVAL,
            ping_timeout=None,  # the server may delay the pong while it waits for the command to take input
            max_size=None,
        ) as socket:
            assert isinstance(socket, _Connection)
            try:
                await self._begin(socket)
                with terminal.raw_mode(self._raw):
                    return await self._receive(socket)
            except ConnectionClosed as error:
                log.debug("socket: %s", error)
                return None
            finally:
                self._attached.clear()
                self._socket = None
                self._last_heard = socket.last_heard

    async def _begin(self, socket: _Connection) -> None:
        """Start the command if necessary, and send what a new socket needs: terminal size and end of input."""
        if self._execution is None:
            assert socket.response is not None
            self._execution = socket.response.headers.get(EXECUTION_ID_HEADER)
            if not self._execution:
                raise UnsupportedError("the server does not name the execution of a box's main command")
        if not self._started and self._start is not None:
            await asyncio.to_thread(self._start)
        self._started = True
        self._received = self._received or 0
        self._socket = socket
        # If the command has already ended, the socket may be closed, but the output is still to be read.
        with suppress(ConnectionClosed):
            if self._tty:
                await self._resize(socket)
            if self._stdin_ended and not self._as_visitor:
                await socket.send(_frame("stdin_eof"))
        self._attached.set()
        if self._stdin and self._pump is None:
            loop = asyncio.get_running_loop()
            # A daemon thread: a read of stdin cannot be interrupted, and must not keep the client from exiting.
            self._pump = threading.Thread(target=self._pump_stdin, args=(loop,), name="stdin", daemon=True)
            self._pump.start()

    async def _receive(self, socket: _Connection) -> int | None:
        while True:
            try:
                async with asyncio.timeout(SILENCE):
                    frame = await socket.recv()
            except TimeoutError:
                if time.monotonic() - socket.last_heard < SILENCE:
                    continue
                log.debug("socket: silent for %g s", SILENCE)
                return None
            if isinstance(frame, str):
                message = _parse(frame)
                if message.get("type") == "exit":
                    return int(message.get("exit_code", 255))
                if message.get("type") == "error":
                    self._server_says = str(message.get("message"))
                    self._count(message.get("dropped_bytes"))
                    self._notice(self._server_says)
                continue
            self._count(len(frame) - 1)
            if not await self._write(frame):
                # A command on this machine would get SIGPIPE here: the reader of its output has gone.
                await asyncio.to_thread(self._send_signal(signal.SIGPIPE).join, SIGNAL_PATIENCE)
                return 128 + signal.SIGPIPE

    def _count(self, size: object) -> None:
        if isinstance(size, int):
            self._received = (self._received or 0) + size

    async def _write(self, frame: bytes) -> bool:
        """Write an output frame. Returns False when the reader of this process's output has gone."""
        descriptor = _DESCRIPTOR.get(frame[:1])
        if descriptor is None:
            return True
        try:
            # In a thread, so that pings are answered while the reader of the output is slow.
            await asyncio.to_thread(terminal.write_all, descriptor, frame[1:])
        except BrokenPipeError:
            return False
        except OSError as error:
            raise BoxliteError(f"cannot write the output: {error.strerror}") from error
        return True

    def _path(self, *rest: str) -> str:
        assert self._execution is not None
        return self._api.path("boxes", self._box, "executions", self._execution, *rest)

    # Input

    def _pump_stdin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Send stdin to the socket chunk by chunk, as fast as the server takes it. The body of a thread."""
        try:
            while True:
                try:
                    chunk = os.read(terminal.STDIN, _CHUNK)
                except OSError:  # stdin is closed, or its terminal has hung up
                    chunk = b""
                if not chunk and self._as_visitor:
                    return
                keys, leaves = self._without_detach_keys(chunk)
                if keys or not chunk:
                    asyncio.run_coroutine_threadsafe(self._send_stdin(keys), loop).result()
                if leaves:
                    loop.call_soon_threadsafe(self._leave, 0)
                if leaves or not chunk:
                    return
        except (CancelledError, RuntimeError):
            log.debug("stdin: the session ended first")

    def _without_detach_keys(self, chunk: bytes) -> tuple[bytes, bool]:
        """The input in front of the keys that leave the command, and whether they came."""
        if not (self._as_visitor and self._raw):
            return chunk, False
        before, found, _ = (self._held + chunk).partition(DETACH_KEYS)
        self._held = b"" if found or not before.endswith(DETACH_KEYS[:1]) else DETACH_KEYS[:1]
        return before.removesuffix(self._held), bool(found)

    async def _send_stdin(self, chunk: bytes) -> None:
        """Send a chunk over this socket, or over the next if this one breaks. An empty chunk ends the input."""
        if not chunk:
            self._stdin_ended = True
        while True:
            await self._attached.wait()
            socket = self._socket
            assert socket is not None
            try:
                await socket.send(chunk or _frame("stdin_eof"))
            except ConnectionClosed:
                if self._socket is socket:
                    self._attached.clear()
                continue
            self._stdin_bytes += len(chunk)
            return

    async def _resize(self, socket: _Connection) -> None:
        size = terminal.size()
        if size is not None:
            await socket.send(_frame("resize", cols=size[0], rows=size[1]))

    # Signals

    @contextmanager
    def _signals_caught(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        # A signal that the parent process ignores stays ignored: shells do that for jobs in the background.
        caught = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        for number in caught:
            loop.add_signal_handler(number, self._on_signal, number)
        if self._tty:
            caught.append(signal.SIGWINCH)
            loop.add_signal_handler(signal.SIGWINCH, self._on_resize)
        try:
            yield
        finally:
            for number in caught:
                loop.remove_signal_handler(number)

    def _on_signal(self, number: int) -> None:
        self._signals += 1
        if self._socket is None or self._signals > MAX_FORWARDED:
            self._leave(128 + number)
        else:
            self._send_signal(number)

    def _leave(self, code: int) -> None:
        """Let the command go on without this client, which ends with the exit code `code`."""
        self._leave_with = code
        assert self._main is not None
        self._main.cancel()

    def _on_resize(self) -> None:
        size = terminal.size()
        if self._socket is not None and size is not None:
            self._spawn(self._send_size(self._socket))

    def _send_signal(self, number: int) -> threading.Thread:
        """On the socket, the signal would wait behind input that the command does not read."""
        return send_signal(self._api, self._path("signal"), number)

    async def _send_size(self, socket: _Connection) -> None:
        with suppress(ConnectionClosed):
            await self._resize(socket)

    def _spawn(self, act: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(act)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _notice(self, text: str) -> None:
        notice(text, "\r\n" if self._raw else "\n")


def send_signal(api: ApiClient, path: str, number: int) -> threading.Thread:
    """Send a signal with a request of its own, in a thread."""
    another = api.another()

    def send() -> None:
        try:
            another.request("POST", path, {"signal": int(number)})
        except BoxliteError as error:
            log.debug("signal %d: %s", number, error.message)
        finally:
            another.close()

    # A daemon thread: a server that does not answer must not keep the client from exiting.
    thread = threading.Thread(target=send, name=f"signal {number}", daemon=True)
    thread.start()
    return thread


def notice(text: str, end: str = "\n") -> None:
    """Tell the user something about the command."""
    with suppress(OSError):
        terminal.write_all(terminal.STDERR, f"boxlite: {text}{end}".encode())


def _refusal(error: InvalidStatus) -> BoxliteError:
    return error_from(error.response.status_code, bytes(error.response.body or b""))


def _frame(kind: str, **fields: int) -> str:
    return json.dumps({"type": kind, **fields})


def _parse(frame: str) -> dict[str, Any]:
    try:
        message = json.loads(frame)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}
