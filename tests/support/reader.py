"""A machine of somebody who reads the pages and types their commands: a network of its own, so that ports are as the
pages have them, /etc, /opt and /var/lib of its own, a home, and a working directory with a checkout.

What serves until Ctrl-C is started as in another terminal: the command returns when it is ready, and it is ended with
the machine.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from boxlite_server.local import machine
from boxlite_server.worker.kernel.netns import NetworkNamespace
from support.child import BOUND
from support.sdk import NEWEST, python_with, sdk_python

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
NAMES = ("coordinator", "coordinator.internal", "db.example", "boxes.example.com")  # of hosts in the pages
BLOCK_SECONDS = 300

# In the machine's mount namespace: /etc is a copy, /opt has what it had and can be written, and /var/lib is empty.
_MOUNTS = """
mount --bind {etc} /etc
mkdir {opt}.old && mount --rbind /opt {opt}.old
for entry in {opt}.old/*; do [ ! -e "$entry" ] || ln -s "$entry" {opt}/; done
mount --bind {opt} /opt
mount --bind {lib} /var/lib
ip link set lo up
echo && exec sleep infinity
"""

# In place of `boxlite-server`: commands that serve go on in the background, the others are the real ones.
_SERVING = """
import http.client, os, shutil, signal, ssl, subprocess, sys, time
arguments, here = sys.argv[1:], os.path.dirname(os.path.abspath(__file__))
path = os.pathsep.join(each for each in os.environ["PATH"].split(os.pathsep) if each != here)
real = shutil.which("boxlite-server", path=path)
if not arguments or arguments[0] not in ("coordinator", "worker", "dev") or "--help" in arguments:
    os.execv(real, [real, *arguments])

def given(flag, default):
    return int(arguments[arguments.index(flag) + 1]) if flag in arguments else default

port, asked = given("--port", 8200), {"coordinator": "/v1/health", "dev": "/v1/health/ready", "worker": "/readyz"}
if arguments[0] == "worker":
    port = given("--health-port", 9101)

def is_ready():
    for kind, more in ((http.client.HTTPConnection, {}),
                       (http.client.HTTPSConnection, {"context": ssl._create_unverified_context()})):
        connection = kind("127.0.0.1", port, timeout=5, **more)
        try:
            connection.request("GET", asked[arguments[0]])
            if connection.getresponse().status == 200:
                return True
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
    return False

state = os.environ["READER"]
if os.environ.get("RESTARTS"):
    former = int(open(os.path.join(state, arguments[0])).read())
    os.kill(former, signal.SIGTERM)
    while os.path.exists(f"/proc/{former}") and "\\nState:\\tZ" not in open(f"/proc/{former}/status").read():
        time.sleep(0.05)
log = os.path.join(state, f"{arguments[0]}-{os.getpid()}.log")
with open(log, "wb") as output:
    server = subprocess.Popen([real, *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                              start_new_session=True)
with open(os.path.join(state, "pids"), "a") as pids, open(os.path.join(state, arguments[0]), "w") as latest:
    print(server.pid, file=pids)
    print(server.pid, file=latest)
ends = time.monotonic() + 60
while not is_ready():
    if server.poll() is not None or time.monotonic() > ends:
        sys.exit(f"{arguments} does not serve:\\n" + open(log).read())
    time.sleep(0.1)
"""


# In place of `systemctl`: what a unit starts is started, with its variables, by root. The home of a worker is one that
# the engine sees too.
_SYSTEMCTL = """
import os, re, shlex, subprocess, sys
verb, *words = [word for word in sys.argv[1:] if not word.startswith("-")]
for unit in words:
    with open(f"/etc/systemd/system/{unit}.service") as file:
        text = file.read().replace("\\\\\\n", " ")
    env = {**os.environ, **({"RESTARTS": "1"} if verb == "restart" else {})}
    for kind, value in re.findall(r"^(Environment|EnvironmentFile)=-?(.*)$", text, re.MULTILINE):
        file = os.path.exists(value) and open(value).read()
        env.update(line.split("=", 1) for line in ([value] if kind == "Environment" else (file or "").splitlines()))
    command = shlex.split(re.search(r"^ExecStart=(.*)$", text, re.MULTILINE)[1])
    home = os.path.join(os.environ["HOME"], "worker")
    command = [word.replace("/var/lib/boxlite-worker", home) for word in command[1:]]
    subprocess.run(["boxlite-server", *command], env=env, check=True)
"""


class Reader:
    """Somebody at such a machine, in `directory`, with the engine at `docker_host`. Needs root."""

    def __init__(self, directory: Path, docker_host: str) -> None:
        self.home = directory / "home"
        self.here = directory / "here"  # where commands are typed; a checkout
        self._state = directory / "state"
        self._etc, self._opt, self._lib = directory / "etc", directory / "opt", directory / "lib"
        self._commands = directory / "commands"
        for each in (self.home, self._state, self._opt, self._lib, self._commands):
            each.mkdir()
        shutil.copytree(ROOT, self.here, symlinks=True, ignore=shutil.ignore_patterns(".*", "__pycache__", "dist"))
        (self.here / ".venv").symlink_to(sys.prefix)
        shutil.copytree("/etc", self._etc, symlinks=True, ignore_dangling_symlinks=True)
        (self._etc / "hosts").write_text(f"127.0.0.1 localhost {' '.join(NAMES)}\n")
        self._install("boxlite-server", sys.executable, _SERVING)
        self._install("systemctl", sys.executable, _SYSTEMCTL)
        self._docker_host = docker_host
        self._holder: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the process that holds the namespaces open."""
        assert self._holder is not None
        return self._holder.pid

    @contextlib.contextmanager
    def at_work(self) -> Iterator[Reader]:
        """Make the namespaces for the duration of the `with` block, and end what serves after it."""
        script = _MOUNTS.format(etc=self._etc, opt=self._opt, lib=self._lib)
        command = [*BOUND, "unshare", "--net", "--mount", "--propagation", "private", "sh", "-ec", script]
        env = machine.environment()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=env) as self._holder:
            try:
                assert self._holder.stdout is not None
                assert self._holder.stdout.readline(), "the machine cannot be made"
                yield self
            finally:
                self._end_servers()
                self._holder.kill()

    def use_pipx(self) -> None:
        """Have the command `pipx`, which reaches the package index in the network of the tests' machine. It is
        installed from there at first use."""
        online = [
            "nsenter",
            f"--net=/proc/{os.getpid()}/ns/net",
            "--",
            python_with("pipx", "pipx>=1.7,<2"),
            "-m",
            "pipx",
        ]
        self._install("pipx", sys.executable, f"import os, sys\nos.execvp('nsenter', {online} + sys.argv[1:])\n")

    def type(self, language: str, text: str, *, online: bool = False, must: bool = True) -> str:
        """Run a block, and return what it prints. `online`: in the network of the tests' machine."""
        if language == "python":
            program = self._state / "block.py"
            # The SDK's own threads may abort a process whose interpreter is taken down.
            program.write_text(f"{text}\nimport os, sys\nsys.stdout.flush()\nos._exit(0)\n")
            text = shlex.join([sdk_python(NEWEST), str(program)])
        namespaces = [f"--mount=/proc/{self.pid}/ns/mnt"] + ([] if online else [f"--net=/proc/{self.pid}/ns/net"])
        within = [*BOUND, "nsenter", *namespaces, f"--wd={self.here}", "--"]
        done = subprocess.run(
            [*within, "bash", "-eo", "pipefail", "-c", text],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=BLOCK_SECONDS,
            check=False,
        )
        assert not must or done.returncode == 0, f"{text}\n{done.stdout}\n{self.logs()}"
        return done.stdout

    def serve(self, port: int, target: int) -> contextlib.AbstractContextManager[None]:
        """Lead a port of this machine's loopback to one of the tests' machine's loopback."""
        listener = NetworkNamespace(self.pid).within(lambda: socket.create_server(("127.0.0.1", port)))
        return _relayed(listener, target)

    def logs(self) -> str:
        """The ends of the logs of all that serves."""
        ends = [file.read_text(errors="replace")[-3000:] for file in sorted(self._state.glob("*.log"))]
        return "\n".join(ends)

    def _environment(self) -> dict[str, str]:
        """Without anybody's settings for this product."""
        env = {key: value for key, value in os.environ.items() if not key.startswith("BOXLITE_")}
        path = [self._commands, self.home / ".local/bin", BIN, *machine.environment()["PATH"].split(os.pathsep)]
        return {
            **env,
            "PATH": os.pathsep.join(map(str, path)),
            "HOME": str(self.home),
            "NO_PROXY": "127.0.0.1,coordinator",
            "DOCKER_HOST": self._docker_host,
            "READER": str(self._state),
            "PIP_NO_BUILD_ISOLATION": "0",  # which turns it off: what a build needs is in the tests' environment
        }

    def _install(self, name: str, python: str, program: str) -> None:
        """Put a command of that name in front of all others."""
        file = self._commands / name
        file.write_text(f"#!{python}\n{textwrap.dedent(program)}")
        file.chmod(0o755)

    def _end_servers(self) -> None:
        """Workers first, as they were started last."""
        pids = self._state / "pids"
        for pid in reversed(_numbers(pids)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
                _await_end(pid)
        pids.unlink(missing_ok=True)


def _numbers(file: Path) -> Sequence[int]:
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def _await_end(pid: int, seconds: float = 30.0) -> None:
    descriptor = os.pidfd_open(pid)
    try:
        if not select.select([descriptor], [], [], seconds)[0]:
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _relayed(listener: socket.socket, target: int) -> Iterator[None]:
    def copy(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                near, far = listener.accept()[0], socket.create_connection(("127.0.0.1", target))
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=copy, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
