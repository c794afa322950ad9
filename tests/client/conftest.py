from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.fake_server import FakeServer

from boxlite_server.client import cli, stream

Boxlite = Callable[..., int]
Popen = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeServer]:
    fake = FakeServer()
    for name in ("BOXLITE_API_KEY", "BOXLITE_REST_PATH_PREFIX", "BOXLITE_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BOXLITE_HOME", str(tmp_path / "home"))  # where no profiles are yet
    monkeypatch.setenv("BOXLITE_REST_URL", fake.url)
    monkeypatch.setattr(stream, "RECONNECT_DELAYS", (0, 0, 0))
    yield fake
    fake.close()
    assert not fake.failures


@pytest.fixture
def boxlite(server: FakeServer) -> Boxlite:
    """Run the command in this process; its exit code."""
    return lambda *argv: cli.main(list(argv))


@pytest.fixture
def popen(server: FakeServer) -> Iterator[Popen]:
    """Run the command as a process, with pipes unless the test says otherwise."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(*argv: str, **kwargs: object) -> subprocess.Popen[bytes]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | kwargs
        command = [sys.executable, "-m", "boxlite_server.client", *argv]
        processes.append(subprocess.Popen(command, **pipes))  # type: ignore[call-overload]
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
