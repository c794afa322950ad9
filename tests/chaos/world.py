"""The machines: each a network namespace on one switched network, with what runs there.

This program's own namespace holds the switch, and with it the clients.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from boxlite_server.errors import EngineError
from boxlite_server.local import dockerd as engine
from boxlite_server.local.machine import SBIN, cannot_filter, run

from .isolation import must

IMAGE = "chaos:latest"
KEY = "the-key-of-the-chaos"
PORT = 8200
SWITCH = "10.213.0.254"
START_SECONDS = 60.0
NO_ANSWER = (OSError, http.client.HTTPException, ValueError, EngineError)  # of the API or of an engine

# What Docker Engine 20.10 logs of a container whose start was cut off by the engine's own end.
_REMAINS = re.compile(r"Container not cleaned up from containerd|task [0-9a-f]+: already exists")


class Machine:
    """A host: a network namespace, and its one cable to the switch."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address
        must("ip", "netns", "add", name)
        must("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        must("ip", "link", "set", name, "master", "lan", "up")
        must("ip", "-n", name, "link", "set", "lo", "up")
        must("ip", "-n", name, "address", "add", f"{address}/24", "dev", "eth0")
        must("ip", "-n", name, "link", "set", "eth0", "up")

    def here(self, *command: str) -> list[str]:
        """The command, to be run on this machine."""
        return ["nsenter", f"--net=/run/netns/{self.name}", "--", *command]

    def cut(self) -> None:
        """Pull the cable: both ends see it."""
        must("ip", "link", "set", self.name, "down")

    def silence(self) -> None:
        """Have the switch drop every frame, without any end noticing."""
        must("bridge", "link", "set", "dev", self.name, "state", "0")

    def mute(self, towards: str = "0.0.0.0/0") -> None:
        """Lose what the machine sends; it still receives."""
        must(*self.here("iptables", "-I", "OUTPUT", "-o", "eth0", "-d", towards, "-j", "DROP"))

    def mend(self) -> None:
        """Undo what was done to its connection."""
        must("ip", "link", "set", self.name, "up")
        forward = ("bridge", "link", "set", "dev", self.name, "state", "3")
        wait_until(lambda: run(*forward).returncode == 0, f"the link to {self.name} is up again")
        must(*self.here("iptables", "-F", "OUTPUT"))


class Process:
    """A program on a machine; its log goes on through its lives."""

    def __init__(self, machine: Machine, name: str, command: list[str], logs: Path, env: dict[str, str] | None = None):
        self.machine = machine
        self.name = name
        self.log = logs / f"{name}.log"
        self.expected = True  # whether it is to run, by our own doing
        self._command = machine.here(*command)
        self._env = {**os.environ, **(env or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        return self._process.poll() if self._process else None

    @property
    def said(self) -> str:
        """What it has logged since its last start."""
        return self.log.read_text(errors="replace").rpartition("--- started at ")[2].partition("\n")[2]

    def start(self) -> None:
        self.expected = True
        with self.log.open("ab") as output:
            output.write(f"--- started at {time.strftime('%H:%M:%S')}\n".encode())
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=self._env
            )

    def signal(self, number: int) -> None:
        if number in (signal.SIGKILL, signal.SIGTERM):
            self.expected = False
        if self._process is not None and self.running:
            self._process.send_signal(number)

    def wait(self, seconds: float | None = None) -> int:
        """Its exit code; subprocess.TimeoutExpired when it has none in time."""
        assert self._process is not None
        return self._process.wait(seconds)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()


class Engine(Process):
    """A Docker Engine on a machine."""

    def __init__(self, machine: Machine, directory: Path, logs: Path, cgroup: str) -> None:
        self.directory = directory
        self.docker_host = f"unix://{directory / 'docker.sock'}"
        directory.mkdir()
        (directory / "daemon.json").write_text("{}")  # else it reads the machine's own settings
        command = ["dockerd", "--config-file", str(directory / "daemon.json"), "--host", self.docker_host]
        command += ["--data-root", str(directory / "data"), "--exec-root", str(directory / "exec")]
        # With firewall rules of its own, dockerd would load br_netfilter into the machine's kernel.
        command += ["--pidfile", str(directory / "pid"), "--cgroup-parent", f"/{cgroup}", "--iptables=false"]
        path = f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{SBIN}"
        super().__init__(machine, f"engine-{machine.name}", command, logs, {"PATH": path})

    def start(self) -> None:
        (self.directory / "pid").unlink(missing_ok=True)  # another process may have the pid by now
        super().start()

    def lose_power(self) -> None:
        """End everything that the engine runs, as a power cut would; `kill` ends the engine itself."""
        runtime = self.directory / "exec/containerd"
        for pid in [*runtime.glob("containerd.pid"), *runtime.glob("daemon/*/moby/*/init.pid")]:
            with suppress(OSError, ValueError):
                os.kill(int(pid.read_text()), signal.SIGKILL)
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                words = entry.read_bytes().split(b"\0")
                if b"containerd-shim" in words[0] and any(str(runtime).encode() in word for word in words):
                    os.kill(int(entry.parent.name), signal.SIGKILL)

    def cure(self) -> None:
        """Start the engine once more if it met what a killed one left of a container's start: Docker Engine 20.10
        never starts that container again until then, and nothing else in its API helps. Shims that have outlived
        their containers are killed in between, as a restart of the machine would do."""
        if self.running and _REMAINS.search(self.said):
            print(f"{self.name} cannot start a container: it is started once more", flush=True)
            self.signal(signal.SIGTERM)
            self.wait()
            self.lose_power()
            self.start()

    def inventory(self) -> dict[str, list[dict[str, Any]]]:
        """What is on the engine and carries labels of ours. Raises EngineError."""
        labelled = urlencode({"all": "true", "filters": json.dumps({"label": ["boxlite.cluster"]})})
        containers = json.loads(engine.request(self.docker_host, "GET", f"/containers/json?{labelled}"))
        images = json.loads(engine.request(self.docker_host, "GET", f"/images/json?{labelled}"))
        parents = {found["ParentId"] for found in images}
        volumes = json.loads(engine.request(self.docker_host, "GET", f"/volumes?{labelled}"))
        return {
            "containers": [
                {
                    "name": found["Names"][0],
                    "state": found["State"],
                    "labels": found["Labels"],
                    "command": found["Command"],
                }
                for found in containers
            ],
            "images": [
                {"tags": found["RepoTags"], "labels": found["Labels"]}
                for found in images
                # What a removed box left goes with the last disk that stands on it.
                if found["Id"] not in parents or found["RepoTags"] not in ([], ["<none>:<none>"])
            ],
            "volumes": [{"name": found["Name"], "labels": found["Labels"]} for found in volumes["Volumes"] or []],
        }


class Host:
    """A machine with an engine and a worker."""

    def __init__(self, machine: Machine, engine: Engine, worker: Process) -> None:
        self.machine = machine
        self.engine = engine
        self.worker = worker


class World:
    """Everything there is, built from nothing; `url` is where clients go."""

    def __init__(self, directory: Path, cgroup: str) -> None:
        self.directory = directory
        self.logs = directory / "logs"
        self.logs.mkdir()
        self.cgroup = cgroup
        self.coordinators: list[Process] = []
        self.hosts: list[Host] = []
        self.database: Process | None = None
        self.url = f"http://10.213.0.1:{PORT}"
        must("ip", "link", "add", "lan", "type", "bridge")
        must("ip", "address", "add", f"{SWITCH}/24", "dev", "lan")
        must("ip", "link", "set", "lan", "up")

    @property
    def processes(self) -> list[Process]:
        """What we keep running, in the order in which it starts."""
        hosts = [process for host in self.hosts for process in (host.engine, host.worker)]
        return [*([self.database] if self.database else []), *self.coordinators, *hosts]

    @property
    def machines(self) -> list[Machine]:
        found = {process.machine.name: process.machine for process in self.processes}
        return list(found.values())

    def add_coordinator(self, *flags: str) -> Process:
        number = len(self.coordinators) + 1
        machine = Machine(f"coordinator-{number}", f"10.213.0.{number}")
        command = [sys.executable, "-m", "boxlite_server", "coordinator", "--host", "0.0.0.0", "--port", str(PORT)]
        process = Process(machine, machine.name, [*command, "--api-key", KEY, *flags], self.logs, self._env())
        self.coordinators.append(process)
        process.start()
        return process

    def add_host(self, image: bytes, *, max_boxes: int) -> None:
        """A machine with an engine, the test image on it, and a worker."""
        number = len(self.hosts) + 1
        machine = Machine(f"worker-{number}", f"10.213.0.{number + 10}")
        docker = Engine(machine, self.directory / f"e{number}", self.logs, self.cgroup)
        docker.start()
        wait_until(lambda: engine.answers(docker.docker_host), f"{docker.name} answers")
        changes = urlencode({"fromSrc": "-", "repo": "chaos", "tag": "latest", "changes": "ENV PATH=/bin"})
        engine.request(docker.docker_host, "POST", f"/images/create?{changes}&changes=CMD+%5B%22sh%22%5D", image)
        command = [sys.executable, "-m", "boxlite_server", "worker", "--coordinator", self.url, "--api-key", KEY]
        command += ["--name", machine.name, "--home", str(self.directory / f"w{number}")]
        command += ["--max-boxes", str(max_boxes), "--insecure-grpc"]
        command += ["--unfiltered-network"] if cannot_filter() else []
        env = {**self._env(), "DOCKER_HOST": docker.docker_host}
        worker = Process(machine, machine.name, command, self.logs, env)
        self.hosts.append(Host(machine, docker, worker))
        worker.start()

    def heal(self) -> None:
        """End whatever goes on: links mended, what is frozen thawed, what is dead started."""
        for machine in self.machines:
            machine.mend()
        for process in self.processes:
            process.signal(signal.SIGCONT)
            if not process.running:
                process.start()

    def close(self) -> None:
        """End all processes; their namespaces go with them."""
        for process in reversed(self.processes):
            process.signal(signal.SIGCONT)
            process.kill()

    def _env(self) -> dict[str, str]:
        unset = {name: "" for name in os.environ if name.startswith("BOXLITE_")}
        return {**unset, "BOXLITE_HOME": str(self.directory / "home"), "PYTHONUNBUFFERED": "1"}


def wait_until(holds: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
    """Ask again and again; RuntimeError when it does not hold in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.2)


def survey(world: World, ask: Callable[[str], Any]) -> dict[str, Any]:
    """All there is, as clients, operators and engines see it; `ask` gives the JSON of a GET.

    Raises EngineError or OSError when somebody does not answer.
    """
    return {
        "boxes": list(pages(ask)),
        "workers": ask("/v1/admin/workers")["workers"],
        "engines": {host.machine.name: host.engine.inventory() for host in world.hosts},
    }


def pages(ask: Callable[[str], Any]) -> Iterator[dict[str, Any]]:
    """Every box of a list, page by page."""
    token = ""
    while True:
        answer = ask(f"/v1/boxes{f'?pageToken={token}' if token else ''}")
        yield from answer["boxes"]
        token = answer.get("next_page_token")
        if not token:
            return
