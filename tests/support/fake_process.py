"""Commands of the fake runtime: processes of this host."""

from __future__ import annotations

import contextlib
import os
import pty
import pwd
import select
import subprocess
import termios
import threading
import time
from pathlib import Path

from boxlite_server import ids
from boxlite_server.errors import ExecutionError, InvalidArgumentError, InvalidStateError
from boxlite_server.worker.commands import STDERR, STDOUT, ExecSpec
from boxlite_server.worker.kernel.processes import MARK, family, kill_all


class FakeProcess:
    """A process of this host, in its own session."""

    memory_limit_hit = 0

    def __init__(self, spec: ExecSpec, directory: Path, env: dict[str, str]) -> None:
        self._master: int | None = None
        self._mark = ids.new_id()
        command, self._tty = list(spec.command), spec.tty
        cwd = spec.working_dir or str(directory)
        if not Path(cwd).is_dir():
            raise ExecutionError(f"working directory {cwd!r} not found in the box")
        if spec.user and not _user_exists(spec.user):
            raise ExecutionError(f"user {spec.user!r} not found in the box")
        slave = subprocess.PIPE
        if spec.tty:
            self._master, slave = pty.openpty()
            self._set_size(spec.cols, spec.rows)
        try:
            self._popen = subprocess.Popen(
                command,
                stdin=slave,
                stdout=slave,
                stderr=slave,
                cwd=cwd,
                env={"PATH": os.environ["PATH"], **env, **spec.env, MARK: self._mark},
                start_new_session=True,
                user=spec.user or None,
            )
        except FileNotFoundError as exc:
            raise ExecutionError(f"command {command[0]!r} not found in the box") from exc
        except PermissionError as exc:
            raise ExecutionError(f"command {command[0]!r} cannot be executed: permission denied") from exc
        finally:
            if self._master is not None:
                os.close(slave)
        if self._master is not None:
            self._streams, self._stdin = {self._master: STDOUT}, self._master
        else:
            assert self._popen.stdin and self._popen.stdout and self._popen.stderr
            self._streams = {self._popen.stdout.fileno(): STDOUT, self._popen.stderr.fileno(): STDERR}
            self._stdin = self._popen.stdin.fileno()
        os.set_blocking(self._stdin, False)
        self._wake_read, self._wake_write = os.pipe()
        self._closed = threading.Event()
        self._lost = ""
        self._silent = 0.0  # seconds in which nothing came since the command's end

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def handle(self) -> str:
        return str(self.pid)

    @property
    def tty(self) -> bool:
        return self._tty

    @property
    def lost(self) -> str:
        return self._lost

    @property
    def exit_code(self) -> int | None:
        code = self._popen.poll()
        return code if code is None or code >= 0 else 128 - code

    def read(self) -> tuple[int, bytes] | None:
        while self._streams:
            ended, began = self._popen.poll() is not None, time.monotonic()
            poll = select.poll()
            for fd in (*self._streams, self._wake_read):
                poll.register(fd, select.POLLIN)
            ready = [fd for fd, _ in poll.poll(max(0.05 - self._silent, 0) * 1000)]
            self._silent += time.monotonic() - began if ended else 0
            if self._wake_read in ready or (ended and not ready):  # what it left running may write for ever
                return None
            for fd in ready:
                data = b""
                with contextlib.suppress(OSError):  # EIO: the terminal's other end is closed
                    data = os.read(fd, 65536)
                if data:
                    return self._streams[fd], data
                del self._streams[fd]
        return None

    def write(self, data: bytes, timeout: float) -> int:
        self._refuse_when_over()
        deadline, sent = time.monotonic() + timeout, 0
        poll = select.poll()
        poll.register(self._stdin, select.POLLOUT)
        while sent < len(data):
            try:
                sent += os.write(self._stdin, data[sent:])
            except BlockingIOError:
                left = deadline - time.monotonic()
                if left <= 0 or not poll.poll(left * 1000):
                    break
            except OSError as exc:
                raise InvalidStateError("the command takes no more input") from exc
        return sent

    def close_input(self, timeout: float) -> bool:
        if self._tty:
            with contextlib.suppress(InvalidStateError):
                return self.write(b"\x04\x04", timeout) == 2
        elif self._popen.stdin:
            self._popen.stdin.close()
        return True

    def signal(self, number: int) -> None:
        if not 1 <= number <= 64:
            raise InvalidArgumentError(f"{number} is not a signal number")
        self._refuse_when_over()
        self._popen.send_signal(number)

    def kill(self) -> None:
        if self._popen.poll() is None:
            pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
            kill_all(lambda: family(pids, self._popen.pid, self._mark))

    def resize(self, cols: int, rows: int) -> None:
        self._refuse_when_over()
        self._set_size(cols, rows)

    def _set_size(self, cols: int, rows: int) -> None:
        if self._master is not None:
            termios.tcsetwinsize(self._master, (rows, cols))

    def ends_within(self, timeout: float) -> bool:
        try:
            self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def wait(self) -> int:
        while (code := self.exit_code) is None:
            if self._closed.wait(0.01):
                self._lost = "the exit code is lost"
                return 137
        return code

    def close(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            os.write(self._wake_write, b"x")

    def _refuse_when_over(self) -> None:
        if self._popen.poll() is not None:
            raise InvalidStateError("the command has ended")


class FakeAdopted(FakeProcess):
    """A process whose first client has vanished: this client reads and writes from here on."""

    def __init__(self, process: FakeProcess) -> None:
        self.__dict__.update(process.__dict__)
        self._streams = dict(process._streams)
        self._lost = ""
        self._wake_read, self._wake_write = os.pipe()
        self._closed = threading.Event()


def _user_exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
