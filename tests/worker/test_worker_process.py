"""The worker as a process: its start, its health, and its end."""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.child import BOUND

from boxlite_server.errors import BoxliteError
from boxlite_server.worker.main import WorkerConfig, bind_host
from boxlite_server.worker.membership.coordinator import split_url
from boxlite_server.worker.membership.identity import Identity
from boxlite_server.worker.monitoring.health import HealthServer


def get(port: int, path: str, method: str = "GET") -> tuple[int, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, json.loads(body) if body else {}


def test_health() -> None:
    reason: list[str | None] = ["not yet"]
    server = HealthServer("127.0.0.1", 0, lambda: reason[0])
    server.start()
    assert get(server.port, "/healthz") == (200, {"status": "ok"})
    assert get(server.port, "/readyz") == (503, {"status": "not_ready", "reason": "not yet"})
    reason[0] = None
    assert get(server.port, "/readyz?x=1") == (200, {"status": "ready"})
    assert get(server.port, "/readyz", "HEAD") == (200, {})
    assert get(server.port, "/else")[0] == 404
    with pytest.raises(BoxliteError, match="cannot serve health"):
        HealthServer("127.0.0.1", server.port, lambda: None)
    server.stop()


@pytest.mark.parametrize(
    ("host", "coordinator", "expected"),
    [
        (None, "http://127.0.0.1:8200", "127.0.0.1"),
        (None, "http://localhost:8200", "127.0.0.1"),
        (None, "http://192.0.2.1:8200", None),
        ("192.0.2.9", "http://127.0.0.1:8200", "192.0.2.9"),
        ("0.0.0.0", "http://127.0.0.1:8200", "0.0.0.0"),
    ],
)
def test_bind_host(tmp_path: Path, host: str | None, coordinator: str, expected: str | None) -> None:
    config = WorkerConfig(coordinator=coordinator, home=tmp_path, host=host)
    found = bind_host(config, split_url(coordinator))
    assert found == expected if expected else found in ("::", "0.0.0.0")


class WorkerProcess:
    def __init__(self, home: Path, *flags: str) -> None:
        command = [*BOUND, sys.executable, "-m", "boxlite_server", "worker", "--coordinator", "http://127.0.0.1:9"]
        command += ["--home", str(home), "--port", "0", "--health-port", "0", *flags]
        env = {**os.environ, "DOCKER_HOST": f"unix://{home}/none.sock", "PYTHONFAULTHANDLER": "1"}
        self.popen = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)

    def line(self, pattern: str) -> re.Match[str]:
        assert self.popen.stderr is not None
        seen = []
        for line in self.popen.stderr:
            seen.append(line)
            if match := re.search(pattern, line):
                return match
        pytest.fail(f"no line like {pattern!r} in {seen}")

    def exit(self) -> tuple[int, str]:
        """Wait for the end: the exit code and the rest of the log. A process that hangs is made to log where."""
        try:
            _, log = self.popen.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.popen.send_signal(signal.SIGABRT)
            pytest.fail(f"the worker hangs:\n{self.popen.communicate()[1]}")
        return self.popen.returncode, log

    def end(self) -> None:
        self.popen.kill()
        self.popen.communicate()


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[list[WorkerProcess]]:
    started: list[WorkerProcess] = []
    yield started
    for worker in started:
        worker.end()


SERVES = r"worker (\S+) serves at http://127\.0\.0\.1:(\d+) \(health on port (\d+)\)"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_without_coordinator_and_engine_and_ends_in_order(
    tmp_path: Path, workers: list[WorkerProcess], number: signal.Signals
) -> None:
    workers.append(WorkerProcess(tmp_path, "--name", "mine"))
    name, port, health = workers[0].line(SERVES).groups()
    assert name == "mine"
    assert get(int(health), "/healthz")[0] == 200
    status, body = get(int(health), "/readyz")
    assert status == 503
    assert "does not answer" in body["reason"]
    socket.create_connection(("127.0.0.1", int(port)), 60).close()
    workers[0].popen.send_signal(number)
    code, log = workers[0].exit()
    assert code == 0
    assert "shutting down" in log
    assert "Traceback" not in log
    assert Identity.load(tmp_path, None, random.Random()).name == "mine"


PAIR = ["--tls-cert", "none.crt", "--tls-key", "none.crt"]
TOKEN = f"blx_AbCdEf123456_{'x' * 43}.{'0' * 64}"


def test_what_cannot_be_served_is_said_in_one_line(tmp_path: Path, workers: list[WorkerProcess]) -> None:
    workers.append(WorkerProcess(tmp_path))
    port = workers[0].line(SERVES).group(2)
    other = tmp_path / "other"
    for home, flags, expected in [
        (tmp_path, [], "another worker runs with the home"),
        (other, ["--port", port], "cannot serve on 127.0.0.1"),
        (other, ["--health-port", port], "cannot serve health"),
        (other, ["--host", "192.0.2.1", "--insecure-grpc"], "cannot serve"),
        (other, ["--host", "0.0.0.0"], "give --insecure-grpc"),
        (other, ["--coordinator", "http://192.0.2.1:8200"], "give --insecure-grpc"),
        (other, ["--tls-cert", "w.crt"], "belong together"),
        (other, ["--tls-cert", "w.crt", "--tls-key", "w.key"], "--tls-ca has to name the authority"),
        (other, ["--tls-ca", "ca.crt"], "need --tls-cert and --tls-key"),
        (other, [*PAIR, "--tls-ca", "none.crt"], "cannot read none.crt"),
        (other, ["--join", TOKEN], "a worker joins over https"),
        (other, ["--join", TOKEN, *PAIR, "--tls-ca", "ca.crt"], "leave out the token"),
    ]:
        workers.append(WorkerProcess(home, *flags))
        code, log = workers[-1].exit()
        assert code == 1
        assert expected in log
        assert "Traceback" not in log
