"""Getting a Docker Engine on a machine that may have none, and the few calls to it that setting up takes.

For `make run` and for the tests; the coordinator and the workers only ever use an engine that is there.
Speaks the Engine API over the standard library's HTTP client, on a Unix or a TCP socket.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

from ..errors import EngineError, ImageError
from .machine import apt_install, environment, which
from .namespace import BRIDGE, POOL, Namespace, namespace, write_port_proxy

_NEEDED = (  # by a private engine: command and package
    ("dockerd", "docker.io"),
    ("ip", "iproute2"),
    ("iptables", "iptables"),
)
_USEFUL = (
    ("slirp4netns", "slirp4netns"),  # without it the engine has no outgoing connections, and says so
    ("nft", "nftables"),  # without it workers cannot filter what boxes send, and say so
)
DEFAULT_SOCKET = "unix:///var/run/docker.sock"
START_SECONDS = 60.0  # for a dockerd to answer
STOP_SECONDS = 30.0  # for a dockerd to end, its containers being dead already

log = logging.getLogger(__name__)


# ---- The Engine API --------------------------------------------------------------------------------------


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _connect(docker_host: str, timeout: float) -> http.client.HTTPConnection:
    url = urlsplit(docker_host)
    if url.scheme == "unix":
        return _UnixConnection(url.path, timeout)
    if url.scheme in ("tcp", "http") and url.hostname:
        return http.client.HTTPConnection(url.hostname, url.port or 2375, timeout=timeout)
    raise EngineError(f"DOCKER_HOST is {docker_host!r}; use unix:///path or tcp://host:port")


def request(docker_host: str, method: str, target: str, body: bytes | None = None, *, timeout: float = 60) -> bytes:
    """The body of the answer. EngineError when there is none, when it is late, or when it is not 2xx."""
    connection = _connect(docker_host, timeout)
    try:
        connection.request(method, target, body, {"Content-Type": "application/x-tar"} if body else {})
        response = connection.getresponse()
        answer = response.read()
    except (OSError, http.client.HTTPException) as exc:
        raise EngineError(f"the engine at {docker_host} does not answer: {exc}") from exc
    finally:
        connection.close()
    if response.status >= 300:
        text = answer.decode(errors="replace").strip()
        raise EngineError(f"the engine refused {method} {target}: {response.status} {text}")
    return answer


def answers(docker_host: str) -> bool:
    """Whether an engine answers there."""
    try:
        return request(docker_host, "GET", "/_ping", timeout=5) == b"OK"
    except EngineError:
        return False


def containers(docker_host: str, *labels: str, running_only: bool = False) -> list[str]:
    """Ids of the containers that carry all `labels`, each a key or `key=value`."""
    query = {"all": str(not running_only).lower(), "filters": json.dumps({"label": list(labels)})}
    found = json.loads(request(docker_host, "GET", f"/containers/json?{urlencode(query)}"))
    return [container["Id"] for container in found]


def has_image(docker_host: str, reference: str) -> bool:
    try:
        request(docker_host, "GET", f"/images/{quote(reference)}/json")
    except EngineError:
        return False
    return True


def pull_image(docker_host: str, reference: str, *, silence_seconds: float = 20) -> None:
    """Pull `name:tag`. ImageError with the engine's reason, or when no progress comes for that long."""
    name, _, tag = reference.rpartition(":")
    connection = _connect(docker_host, silence_seconds)
    try:
        connection.request("POST", f"/images/create?{urlencode({'fromImage': name, 'tag': tag})}")
        response = connection.getresponse()
        for line in response:  # a line of JSON each step; the status was sent before the first of them
            event = json.loads(line)
            if reason := event.get("error") or event.get("message"):
                raise ImageError(f"{reference} cannot be pulled: {reason}")
    except TimeoutError as exc:
        raise ImageError(f"{reference} cannot be pulled: no progress for {silence_seconds:.0f} s") from exc
    except (OSError, http.client.HTTPException, ValueError) as exc:
        raise EngineError(f"the engine at {docker_host} broke off a pull: {exc}") from exc
    finally:
        connection.close()


def tag_image(docker_host: str, source: str, reference: str) -> None:
    """Give the image `source` the further name `name:tag`."""
    name, _, tag = reference.rpartition(":")
    request(docker_host, "POST", f"/images/{quote(source)}/tag?{urlencode({'repo': name, 'tag': tag})}")


# ---- A private engine ------------------------------------------------------------------------------------


@contextlib.contextmanager
def ensure_engine(directory: Path) -> Iterator[str]:
    """The DOCKER_HOST of an engine that answers: the user's own, else a private one in `directory`.

    The private one ends with the context. EngineError says what to do where it cannot be had: it takes root,
    and on anything but Debian and Ubuntu a dockerd that is installed.
    """
    named = os.environ.get("DOCKER_HOST")
    docker_host = named or DEFAULT_SOCKET
    if not answers(docker_host):
        if named:  # somebody's choice: not ours to replace
            raise EngineError(f"no engine answers at DOCKER_HOST={named}; start it, or unset DOCKER_HOST")
        if os.geteuid() != 0:
            raise EngineError(
                f"no Docker Engine answers at {docker_host}; start it, join its group "
                "(usermod -aG docker USER), set DOCKER_HOST, or run this as root"
            )
        if which("dockerd") is None:
            apt_install("docker.io")
            _wait_for_service(docker_host)
    if answers(docker_host):
        yield docker_host
        return
    with private_engine(directory) as docker_host:
        yield docker_host


def private_host(directory: Path) -> str:
    """The DOCKER_HOST of a private engine that keeps all it has in `directory`."""
    return f"unix://{directory / 'docker.sock'}"


@contextlib.contextmanager
def private_engine(directory: Path, *, extra_args: Sequence[str] = ()) -> Iterator[str]:
    """The DOCKER_HOST of a `private_dockerd`."""
    with private_dockerd(directory, extra_args=extra_args) as dockerd:
        yield dockerd.docker_host


@contextlib.contextmanager
def private_dockerd(directory: Path, *, extra_args: Sequence[str] = ()) -> Iterator[Dockerd]:
    """A dockerd with all that it keeps in `directory`; it ends with the context.

    It touches none of the machine's interfaces, firewall rules, sysctls and mounts. Needs root; installs what
    is missing by apt. Keep the path of `directory` short: a socket's path has at most 107 bytes. EngineError
    names the log when dockerd does not start.
    """
    with private_namespace(directory) as own:
        dockerd = Dockerd(directory, own, extra_args)
        try:
            dockerd.start()
            log.info("started a private Docker Engine at %s (log: %s)", dockerd.docker_host, directory / "log")
            yield dockerd
        finally:
            dockerd.stop()


@contextlib.contextmanager
def private_namespace(directory: Path) -> Iterator[Namespace]:
    """The namespaces for a `Dockerd` in `directory`. Installs what both need by apt where it is missing."""
    for command, package in _NEEDED:
        if which(command) is None:
            apt_install(package)
    for command, package in _USEFUL:
        if which(command) is None:
            with contextlib.suppress(EngineError):
                apt_install(package)
    directory.mkdir(parents=True, exist_ok=True)
    if answers(f"unix://{directory / 'docker.sock'}"):
        raise EngineError(f"an engine runs in {directory} already")
    with namespace(directory) as own:
        yield own


class Dockerd:
    """A dockerd in namespaces of its own, with all that it keeps in `directory`."""

    def __init__(
        self, directory: Path, own: Namespace, extra_args: Sequence[str] = (), *, with_bridge: bool = True
    ) -> None:
        self.docker_host = private_host(directory)
        self._directory = directory
        # Without a file of its own it would read the machine's, whose settings clash with these flags.
        config = directory / "daemon.json"
        config.write_text("{}")
        proxy = directory / "port-proxy"
        write_port_proxy(proxy)
        command = ["dockerd", "--config-file", str(config), "--host", self.docker_host]
        # With rules of its own, dockerd would load br_netfilter into the machine's kernel; NAT is set up without it.
        command += ["--iptables=false", "--userland-proxy-path", str(proxy)]
        # Each worker has a network: tests have many workers.
        command += ["--default-address-pool", f"base={POOL},size=24"]
        command += ["--bip", BRIDGE] if with_bridge else ["--bridge", "none"]
        command += ["--data-root", str(directory / "data"), "--exec-root", str(directory / "exec")]
        command += ["--pidfile", str(directory / "pid"), *extra_args]
        # dockerd ends with this process, even if this process is killed.
        self._command = ["setpriv", "--pdeathsig", "TERM", *own.command(*command)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and return when it answers. EngineError names the log when it does not."""
        # Left by one that was killed; dockerd would take any process that has the number now for itself.
        (self._directory / "pid").unlink(missing_ok=True)
        self._containerd()
        with (self._directory / "log").open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # not by the terminal's Ctrl-C, while boxes still run
                env=environment(),
            )
        deadline = time.monotonic() + START_SECONDS
        while not answers(self.docker_host):
            if self._process.poll() is not None or time.monotonic() > deadline:
                lines = "\n".join((self._directory / "log").read_text(errors="replace").splitlines()[-8:])
                raise EngineError(f"dockerd did not start; the end of {self._directory / 'log'}:\n{lines}")
            time.sleep(0.1)

    def kill(self) -> None:
        """End it as a crash would. What runs in its containers goes on until the next dockerd finds it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """End it, and what it started."""
        if self._process is None:
            return
        with contextlib.suppress(EngineError):  # dockerd itself would give each container 10 s
            for container in containers(self.docker_host, running_only=True):
                with contextlib.suppress(EngineError):  # it ended by itself
                    request(self.docker_host, "POST", f"/containers/{container}/kill")
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning("dockerd does not end; killing it (log: %s)", self._directory / "log")
            self.kill()
        if (containerd := self._containerd()) is not None:
            os.kill(containerd, signal.SIGKILL)

    def _containerd(self) -> int | None:
        """The pid of the containerd of a dockerd that did not end by itself."""
        pid_file = self._directory / "exec/containerd/containerd.pid"
        with contextlib.suppress(OSError, ValueError):
            pid = int(pid_file.read_text())
            if str(self._directory).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        pid_file.unlink(missing_ok=True)  # dockerd takes it for alive even if it is only not waited for
        return None


def _wait_for_service(docker_host: str) -> None:
    """Where an init system runs, apt has asked it to start the engine."""
    deadline = time.monotonic() + START_SECONDS
    while Path("/run/systemd/system").exists() and time.monotonic() < deadline and not answers(docker_host):
        time.sleep(0.2)
