"""A PostgreSQL server of our own, so that what is tested against it is tested against the real one."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psycopg
from psycopg import sql

from boxlite_server.local import machine
from support.cluster import free_port, wait_until

_FAST = ("fsync=off", "full_page_writes=off", "shared_buffers=32MB", "max_connections=300")
_names = count(1)


class Server:
    """One server on loopback with all that it keeps in `directory`; anybody on this machine may connect."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.log = directory / "log"
        self._data = directory / "data"
        self._process: subprocess.Popen[bytes] | None = None
        flags = ["--auth=trust", "--username=boxlite", "--encoding=UTF8", "--locale=C", "--no-sync"]
        made = machine.run(*_as_user(), str(_program("initdb")), "-D", str(self._data), *flags)
        assert made.returncode == 0, made.stderr

    @property
    def pid(self) -> int:
        """Of the server's first process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it; it takes connections when this returns."""
        settings = ["listen_addresses=127.0.0.1", f"port={self.port}", "unix_socket_directories=", *_FAST]
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                # SIGINT ends it without waiting for its clients; so does our own end.
                [*_as_user("--pdeathsig", "INT"), str(_program("postgres")), "-D", str(self._data)]
                + [flag for setting in settings for flag in ("-c", setting)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait_until(self._answers, f"PostgreSQL answers (log: {self.log})")

    def stop(self, *, at_once: bool = False) -> None:
        """End it and its clients' sessions; `at_once` as a crash would."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT if at_once else signal.SIGINT)
            self._process.wait(30)

    def new_database(self, name: str | None = None) -> str:
        """The URL of an empty database, which has that name, or one of its own."""
        name = name or f"test_{os.getpid()}_{next(_names)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url(name)

    def url(self, database: str) -> str:
        return f"postgresql://boxlite@127.0.0.1:{self.port}/{database}"

    def _answers(self) -> bool:
        assert self._process is not None and self._process.poll() is None, self.log.read_text()[-2000:]
        try:
            psycopg.connect(self.url("postgres"), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True


def installed() -> bool:
    """Whether this machine has a server's programs."""
    return _program("initdb") is not None


@contextmanager
def private_server() -> Iterator[Server]:
    """A running server, gone with all its data at the end.

    Installs postgresql by apt where it is missing; EngineError where that cannot be.
    """
    if not installed():
        machine.apt_install("postgresql")
    directory = Path(tempfile.mkdtemp(prefix="boxlite-postgresql-"))
    try:
        if os.geteuid() == 0:
            os.chown(directory, *_user())
        server = Server(directory)
        try:
            server.start()
            yield server
        finally:
            server.stop(at_once=True)
    finally:
        shutil.rmtree(directory)


def _program(name: str) -> Path | None:
    """Debian keeps the server's programs out of every PATH, a folder for each version."""
    found = machine.which(name)
    if found is not None:
        return Path(found)
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return installed[-1] if installed else None


def _as_user(*flags: str) -> list[str]:
    """How to start a program of PostgreSQL's: it refuses to run as root."""
    if os.geteuid() != 0:
        return ["setpriv", *flags]
    user, group = _user()
    return ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", *flags]


def _user() -> tuple[int, int]:
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid
    raise AssertionError("this machine has no user 'nobody'")
