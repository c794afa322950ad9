"""Runs a command in one request: passes its output to stdout and stderr, signals to it, and its exit code on.

The command is kept by its server under the request's Idempotency-Key: when the connection breaks, the client attaches
to it and goes on behind what it has received.
"""

from __future__ import annotations

import base64
import http.client
import json
import logging
import signal
import socket
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import FrameType

from ..errors import BoxliteError
from . import stream, terminal
from .api import ApiClient, Json
from .sse import ServerEvent, events_of

_DESCRIPTOR = {"stdout": terminal.STDOUT, "stderr": terminal.STDERR}

log = logging.getLogger("boxlite.client")


def run_command(api: ApiClient, box: str, body: Json) -> int:
    """Run a command without input to its end, and return its exit code. Raises `BoxliteError`; NotFoundError also for
    a server that has no such operation."""
    return _Run(api, box).run(body)


class _Run:
    def __init__(self, api: ApiClient, box: str) -> None:
        self._api = api.another()  # of the thread that follows the command: no other thread could close it
        self._box = box
        self._execution = ""
        self._received = 0  # bytes of output
        self._signals = 0

    def run(self, body: Json) -> int:
        if threading.current_thread() is threading.main_thread():
            code = self._follow_with_signals(body)
        else:
            code = self._follow(body)
        if code is None:
            return stream.attach_again(self._api, self._box, self._execution, self._received)
        return code if 0 <= code <= 255 else 255

    def _follow(self, body: Json) -> int | None:
        """Returns the exit code, or None when the connection breaks before it comes."""
        body = {**body, "encoding": "base64"}
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        path = self._api.path("boxes", self._box, "run")
        response = self._api.download("POST", path, "text/event-stream", body, headers, silence=stream.SILENCE)
        self._execution = response.headers.get(stream.EXECUTION_ID_HEADER, "")
        if not self._execution:
            raise BoxliteError("the server does not name the execution; is --url a BoxLite server?")
        try:
            for event in events_of(response):
                if (code := self._take(event)) is not None:
                    return code
        except (OSError, http.client.HTTPException, ValueError) as error:
            log.debug("events: %s", error)
        finally:
            self._api.close()
        return None

    def _take(self, event: ServerEvent) -> int | None:
        """Act on an event. Returns the exit code with the last one. Raises ValueError for a malformed event."""
        if event.name == "error":
            log.debug("events: %s", event.data)  # the stream ends behind it
            return None
        fields = json.loads(event.data) if event.name in (*_DESCRIPTOR, "lost", "exit") else {}
        if event.name in _DESCRIPTOR:
            data = base64.b64decode(fields["data"])
            self._received += len(data)
            return self._write(_DESCRIPTOR[event.name], data)
        if event.name == "lost":
            self._received += int(fields.get("dropped_bytes") or 0)
            stream.notice(str(fields.get("message")))
        if event.name != "exit":
            return None
        if fields.get("error"):
            stream.notice(str(fields["error"]))
        return int(fields["exit_code"])

    def _write(self, descriptor: int, data: bytes) -> int | None:
        try:
            terminal.write_all(descriptor, data)
        except BrokenPipeError:
            # A command on this machine would get SIGPIPE here: the reader of its output has gone.
            self._send_signal(signal.SIGPIPE).join(stream.SIGNAL_PATIENCE)
            return 128 + signal.SIGPIPE
        except OSError as error:
            raise BoxliteError(f"cannot write the output: {error.strerror}") from error
        return None

    # Signals

    def _follow_with_signals(self, body: Json) -> int | None:
        """Follow the command in a thread, and send the user's signals to it: a signal may come just before a call
        that waits for the server, and would wait with it. After some signals, the client leaves the command."""
        outcome = Future[int | None]()
        with _signals_as_bytes() as (numbers, end):
            threading.Thread(target=self._follow_into, args=(body, outcome, end), daemon=True).start()
            while number := numbers.recv(1)[0]:
                self._signals += 1
                if not self._execution or self._signals > stream.MAX_FORWARDED:
                    return 128 + number
                self._send_signal(number)
        return outcome.result()

    def _follow_into(self, body: Json, outcome: Future[int | None], end: socket.socket) -> None:
        with end:
            try:
                outcome.set_result(self._follow(body))
            except BaseException as error:
                outcome.set_exception(error)
            end.send(bytes(1))

    def _send_signal(self, number: int) -> threading.Thread:
        path = self._api.path("boxes", self._box, "executions", self._execution, "signal")
        return stream.send_signal(self._api, path, number)


@contextmanager
def _signals_as_bytes() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a connection: from the first come the numbers of signals of the user as bytes; the second, which the
    caller closes, adds to them."""
    reader, writer = socket.socketpair()
    # A signal that the parent process ignores stays ignored: shells do that for jobs in the background.
    caught = [number for number in stream.SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    with reader, writer:
        writer.setblocking(False)
        former_descriptor = signal.set_wakeup_fd(writer.fileno())
        former = {number: signal.signal(number, _go_on) for number in caught}
        try:
            yield reader, writer.dup()
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(former_descriptor)


def _go_on(number: int, frame: FrameType | None) -> None:
    """Handles a signal that is read as a byte."""
