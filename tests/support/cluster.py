"""A coordinator and workers as processes of their own, driven as a user would drive them."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from boxlite_server.local import dockerd, machine
from support.child import BOUND
from support.secrets import PLANTED, Search

START_SECONDS = 60.0
STOP_SECONDS = 30.0


def free_port() -> int:
    """A TCP port that nobody listens on, and that the kernel gives to no connection until somebody does."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_768)
        with suppress(OSError), socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
            return port


# Where the registry of the tests is; workers may pull from it although it is no public one.
REGISTRY = f"127.0.0.1:{free_port()}"
_ALLOWED = ["--allow-registry", "public", "--allow-registry", REGISTRY, "--publish-ports", "1024-65535"]


def wait_until(holds: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
    """Ask again and again; AssertionError when it does not hold in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.05)


class Process:
    """One `boxlite-server` process, and its log, which goes on through restarts."""

    def __init__(
        self,
        name: str,
        log: Path,
        ready: tuple[int, str],
        command: list[str],
        env: dict[str, str],
        tls: ssl.SSLContext | None = None,
        within: Sequence[str] = (),
    ):
        self.name = name
        self._tls = tls  # for the request that shows whether it is ready
        self.log = log
        self._ready = ready
        self._command = command
        self._env = env
        self._within = within  # a command that runs the command behind it, such as nsenter
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def launch(self) -> None:
        """Start it, and return at once."""
        assert not self.running, f"{self.name} runs already"
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [*BOUND, *self._within, sys.executable, "-m", "boxlite_server", *self._command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._env,
            )

    def start(self) -> None:
        """Start it, and return when it is ready."""
        self.launch()
        port, path = self._ready

        def ready() -> bool:
            assert self.running, f"{self.name} ended at once"
            try:
                return call(port, "GET", path, tls=self._tls)[0] == 200
            except OSError:
                return False

        try:
            wait_until(ready, f"{self.name} is ready")
        except AssertionError as error:
            self.kill()
            raise AssertionError(f"{error}\n{self.tail()}") from None

    def stop(self) -> None:
        """End it by SIGTERM; it must do so in good time and with exit code 0."""
        assert self.running, f"{self.name} is not running:\n{self.tail()}"
        os.kill(self.pid, signal.SIGTERM)
        assert self._process is not None
        try:
            code = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not end on SIGTERM:\n{self.tail()}") from None
        assert code == 0, f"{self.name} ended with {code}:\n{self.tail()}"

    def kill(self) -> None:
        """End it by SIGKILL, as a crash would; nothing when it has ended."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def restart(self, *, within: Sequence[str] | None = None) -> None:
        """Stop it, if it runs, and start it again on the same data and ports; `within`: by another command."""
        if self.running:
            self.stop()
        if within is not None:
            self._within = within
        self.start()

    def tail(self, lines: int = 40) -> str:
        """The end of its log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join([f"--- {self.name}: {self.log}", *text.splitlines()[-lines:]])


class Worker(Process):
    """A worker with its own data directory."""

    port: int
    health_port: int
    home: Path
    docker_host: str


class Coordinator(Process):
    """One more of a cluster's coordinators."""

    port: int


class Cluster:
    """A coordinator and any number of workers, with all their data in `directory`. Where the database is shared
    there may be more coordinators; requests and workers go to the first one unless a test says otherwise."""

    def __init__(self, directory: Path, docker_host: str, *, api_key: str | None = None, database: str | None = None):
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.docker_host = docker_host
        self.api_key = api_key
        self.secrets = {api_key} if api_key else set()  # that nobody may find afterwards
        self.database = database or str(directory / "coordinator.db")
        self.port = free_port()
        self.coordinator: Process | None = None
        self.others: list[Coordinator] = []
        self.workers: list[Worker] = []
        self.certs: Path | None = None  # where the certificates are, see `use_tls`

    @property
    def url(self) -> str:
        return f"{'https' if self.certs else 'http'}://127.0.0.1:{self.port}"

    @property
    def tls(self) -> ssl.SSLContext | None:
        """What a client needs that trusts the cluster's authority."""
        return ssl.create_default_context(cafile=self.certs / "ca.crt") if self.certs else None

    def use_tls(self) -> Path:
        """Make an authority and the certificate of the coordinator, which is to be started with them. Returns where
        they are."""
        self.certs = self.directory / "certs"
        self.run("certs", "init", "--dir", str(self.certs))
        self.issue("--coordinator", "127.0.0.1")
        return self.certs

    def issue(self, *flags: str) -> Path:
        """Issue a certificate of the cluster's authority; its path."""
        return Path(self.run("certs", "issue", "--dir", str(self.certs), *flags))

    def join_token(self) -> str:
        return self.new_key("--worker", "--tls-ca", f"{self.certs}/ca.crt")

    def run(self, *arguments: str) -> str:
        """Run a command of `boxlite-server` to its end; what it prints."""
        command = [sys.executable, "-m", "boxlite_server", *arguments]
        return subprocess.run(command, env=self._env(), check=True, capture_output=True, text=True).stdout.strip()

    @property
    def processes(self) -> list[Process]:
        """All, workers first."""
        return [*self.workers, *self.others, *([self.coordinator] if self.coordinator else [])]

    def start_coordinator(self, *flags: str, within: Sequence[str] = ()) -> Process:
        """Start the coordinator; it answers when this returns."""
        log, ready = self.directory / "coordinator.log", (self.port, "/v1/health")
        command = self._coordinator_command(self.port, flags)
        self.coordinator = Process("coordinator", log, ready, command, self._env(), self.tls, within)
        self.coordinator.start()
        return self.coordinator

    def add_coordinator(self, *flags: str, certificate: str = "coordinator") -> Coordinator:
        """Start one more, on a database that they can share. `certificate`: the name of its certificate's files."""
        number, port = len(self.others) + 2, free_port()
        log = self.directory / f"coordinator-{number}.log"
        command = self._coordinator_command(port, flags, certificate)
        other = Coordinator(f"coordinator {number}", log, (port, "/v1/health"), command, self._env(), self.tls)
        other.port = port
        self.others.append(other)
        other.start()
        return other

    def _coordinator_command(self, port: int, flags: tuple[str, ...], certificate: str = "coordinator") -> list[str]:
        command = ["coordinator", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--database", self.database, *flags]
        if self.certs:
            command += ["--tls-cert", f"{self.certs}/{certificate}.crt", "--tls-key", f"{self.certs}/{certificate}.key"]
            command += ["--tls-ca", f"{self.certs}/ca.crt", "--tls-ca-key", f"{self.certs}/ca.key"]
        return command + (["--api-key", self.api_key] if self.api_key else [])

    def start_worker(
        self,
        *flags: str,
        name: str | None = None,
        docker_host: str | None = None,
        home: Path | None = None,
        labels: Mapping[str, str] | None = None,
        max_boxes: int | None = None,
        within: Sequence[str] = (),
    ) -> Worker:
        """Start a worker; it is registered when this returns. Without a name it gives itself one."""
        number = len(self.workers) + 1
        home = home or self.directory / f"worker-{number}"
        docker_host = docker_host or self.docker_host
        port, health_port = free_port(), free_port()
        command = ["worker", "--coordinator", self.url, "--port", str(port), "--health-port", str(health_port)]
        command += ["--home", str(home), *_ALLOWED, *flags]
        if machine.cannot_filter() and "--unfiltered-network" not in flags:
            command.append("--unfiltered-network")
        if name is not None:
            command += ["--name", name]
        for key, value in (labels or {}).items():
            command += ["--label", f"{key}={value}"]
        if max_boxes is not None:
            command += ["--max-boxes", str(max_boxes)]
        log = self.directory / f"worker-{number}.log"
        env = {**self._env(), "DOCKER_HOST": docker_host}
        worker = Worker(name or f"worker {number}", log, (health_port, "/readyz"), command, env, within=within)
        worker.port, worker.health_port, worker.home, worker.docker_host = port, health_port, home, docker_host
        self.workers.append(worker)
        worker.start()
        return worker

    def start_with_keys(self, *flags: str) -> None:
        """Start a coordinator, and a worker with a key of the workers' own, so that clients need keys too. `flags`: of
        the worker."""
        workers = self.new_key("--worker")
        self.start_coordinator()
        self.start_worker("--api-key", workers, *flags)

    def new_key(self, *flags: str) -> str:
        """Make an API key in the cluster's database; the coordinator may be running."""
        key = self.run("keys", "create", "--name", "test", *flags, "--database", self.database)
        self.secrets.add(key.split("_", 2)[2][:43])
        return key

    def http(
        self, method: str, path: str, json_body: Any = None, *, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, str], Any]:
        """Status, headers with lower-case names, and body: parsed when it is JSON, else bytes."""
        sent = dict(headers or {})
        if self.api_key:
            sent.setdefault("Authorization", f"Bearer {self.api_key}")
        status, answered, body = call(self.port, method, path, json_body, headers=sent, tls=self.tls)
        assert status < 400 or PLANTED not in str(body), "an error shows a secret"
        return status, answered, body

    def containers(self, docker_host: str | None = None) -> list[str]:
        """Ids of this cluster's containers on an engine, running or not."""
        host = docker_host or self.docker_host
        return [found for label in self._labels() for found in dockerd.containers(host, label)]

    def volumes(self, docker_host: str | None = None) -> list[str]:
        """Names of this cluster's volumes on an engine."""
        found = []
        for label in self._labels():
            filters = urlencode({"filters": json.dumps({"label": [label]})})
            answer = json.loads(dockerd.request(docker_host or self.docker_host, "GET", f"/volumes?{filters}"))
            found += [volume["Name"] for volume in answer["Volumes"] or []]
        return found

    def _labels(self) -> list[str]:
        """The label of each worker's things on its engine."""
        return [f"boxlite.worker={worker['id']}" for worker in self.http("GET", "/v1/admin/workers")[2]["workers"]]

    def tails(self) -> str:
        """The ends of all logs."""
        return "\n".join(process.tail() for process in self.processes)

    def close(self) -> None:
        """Stop what still runs, workers first; each must end well. No secret is left where nobody may find it."""
        failures = [f"a secret is shown: {place}" for place in Search(self).found()]
        for process in self.processes:
            if process.running:
                try:
                    process.stop()
                except AssertionError as error:
                    failures.append(str(error))
        assert not failures, "\n".join(failures)

    def _env(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment without anybody's settings for this product, and with `more`."""
        env = {key: value for key, value in os.environ.items() if not key.startswith("BOXLITE_")}
        return {**env, "BOXLITE_HOME": str(self.directory), **(more or {})}


def call(
    port: int,
    method: str,
    path: str,
    json_body: Any = None,
    *,
    headers: Mapping[str, str] | None = None,
    timeout: float = 60,
    tls: ssl.SSLContext | None = None,
) -> tuple[int, dict[str, str], Any]:
    """One request to this machine. `json_body` may be bytes or an iterator of bytes: they are sent as they are,
    the iterator without a Content-Length."""
    sent = dict(headers or {})
    body = json_body
    if json_body is not None and not isinstance(json_body, bytes | Iterator):
        body = json.dumps(json_body).encode()
        sent.setdefault("Content-Type", "application/json")
    if tls:
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=timeout, context=tls)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, body, sent)
        response = connection.getresponse()
        data = response.read()
    finally:
        connection.close()
    answer = {key.lower(): value for key, value in response.getheaders()}
    is_json = data and answer.get("content-type") == "application/json"
    return response.status, answer, json.loads(data) if is_json else data
