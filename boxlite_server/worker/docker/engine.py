"""The connection to Docker Engine: client, errors, raw answers and connections.

The only module that imports `docker` and `requests`, and that touches private names of theirs.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import os
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlencode, urlsplit

import docker
import docker.auth
import docker.errors
import docker.utils
import requests
import requests.adapters
from docker.transport import UnixHTTPAdapter

from ...errors import (
    BoxliteError,
    EngineError,
    InvalidArgumentError,
    InvalidStateError,
    NotFoundError,
    ResourceExhaustedError,
)
from ...metrics import worker as metrics
from ..commands import ExecSpec
from ..runtime import FilePart

CALL_TIMEOUT = 60.0  # seconds that an answer may be silent, unless the call says otherwise
STREAM_TIMEOUT = 300.0  # the same, for calls that the client library would never time out: pulls and events
_POOL = 64  # connections kept; more are opened when needed


T = TypeVar("T")

# ---- errors ----

# What Docker Engine 20.10 says of a container after its own end cut off the start of that container.
_CUT_OFF = re.compile("id already in use|task [0-9a-f]+: already exists")
_CUT_OFF_HELP = (
    "the container engine was killed while it started this container, and starts it again only after a restart of the "
    "engine; the box's files are well: restart the engine, then start the box"
)


@contextmanager
def engine_errors(what: str) -> Iterator[None]:
    """Turn exceptions of the engine and of the client library into this project's; `what` names the attempt."""
    try:
        yield
    except docker.errors.APIError as exc:
        text = f"{what}: {_reason(exc)}"
        match exc.status_code:
            case 400:
                raise InvalidArgumentError(text) from exc
            case 404:
                raise NotFoundError(text) from exc
            case 409:
                raise InvalidStateError(text) from exc
            case _ if is_full(text):
                metrics.ENGINE_ERRORS["disk_full"].inc()
                raise disk_is_full(text) from exc
            case _:
                metrics.ENGINE_ERRORS["failed"].inc()
                help_text = f" ({_CUT_OFF_HELP})" if _CUT_OFF.search(text) else ""
                raise EngineError(text + help_text) from exc
    # The HTTP library's exceptions are OSErrors, as are the socket's own.
    except (docker.errors.DockerException, OSError) as exc:
        metrics.ENGINE_ERRORS["unreachable"].inc()
        raise EngineError(f"{what}: the container engine does not answer: {exc}") from exc


def refusal(exc: BaseException | None) -> str | None:
    """The engine's reason, if the exception says that the engine answered with an error; None otherwise."""
    return _reason(exc) if isinstance(exc, docker.errors.APIError) else None


def act_on_all(act: Callable[[T], object], things: Iterable[T]) -> None:
    """Call `act` with each thing, and go on past failures. Raises the first of the failures once all were tried."""
    failures: list[BoxliteError] = []
    for thing in things:
        try:
            act(thing)
        except BoxliteError as exc:
            failures.append(exc)
    if failures:
        raise failures[0]


def is_full(text: str) -> bool:
    """Whether an error of the engine says that its disk is full."""
    return any(part in text.lower() for part in ("no space left", "quota exceeded"))


def disk_is_full(text: str) -> ResourceExhaustedError:
    """The error for an engine whose disk is full. `text`: what failed."""
    return ResourceExhaustedError(f"{text} (the disk of the container engine is full)")


def _reason(exc: docker.errors.APIError) -> str:
    """The engine's own text, without the client library's decoration."""
    text = exc.explanation or str(exc)
    return text.decode(errors="replace") if isinstance(text, bytes) else str(text)


# ---- answers and connections ----


class Answer:
    """The engine's answer to a call. The status and headers are there; the body may still be on its way."""

    def __init__(self, response: requests.Response) -> None:
        self._response = response
        self._raw: Any = response.raw

    @property
    def status(self) -> int:
        return self._response.status_code

    @property
    def headers(self) -> Mapping[str, str]:
        return self._response.headers

    @property
    def text(self) -> str:
        """The whole body."""
        return self._response.text

    def check(self) -> Answer:
        """This answer; raises the client library's `APIError`, with the engine's reason, if it is an error."""
        try:
            self._response.raise_for_status()
        except requests.HTTPError as exc:
            docker.errors.create_api_error_from_http_exception(exc)
        return self

    def refusal(self) -> str:
        """The engine's reason, if the answer is an error or its body, which comes late, ends in one; else empty."""
        try:
            last = json.loads(self.text.strip().rpartition("\n")[2])
        except ValueError:
            last = {}
        told = last.get("error") or last.get("message") if isinstance(last, dict) else ""
        return str(told or (self.text if self.status >= 300 else ""))

    def pieces(self, size: int) -> Iterator[bytes]:
        """The body, in pieces of `size` bytes, the last one smaller. Raises OSError when it is broken off."""
        try:
            while piece := self._raw._fp.read(size):  # the library's own loop yields each small piece of the engine
                yield piece
        except (ValueError, AttributeError, http.client.HTTPException) as exc:  # also once `close` was called
            raise OSError(f"the answer broke off: {exc}") from exc

    def read(self, size: int) -> bytes:
        """What has come of the body, at most `size` bytes; blocks. Empty once the body has ended or is broken off."""
        try:
            return bytes(self._raw._fp.read1(size))
        except (OSError, ValueError, http.client.HTTPException):
            return b""

    def never_time_out(self) -> None:
        """Let the body be silent for as long as the engine likes."""
        self._raw._connection.sock.settimeout(None)

    def abort(self) -> None:
        """Wake a thread that waits for the body; `close` alone does not. Once the body is read, this does nothing:
        its connection may serve another call."""
        with suppress(AttributeError, OSError):
            self._raw._connection.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._response.close()


class Connection(NamedTuple):
    """A connection that carries a command's input and output."""

    socket: socket.socket
    received: bytes = b""  # what came together with the HTTP header


def _hijacked(raw_socket: Any) -> Connection:
    """The connection behind the object in which the client library hands it over."""
    response, connection = raw_socket._response, raw_socket._sock
    reader = response.raw._fp.fp
    connection.settimeout(0)
    received = reader.read(len(reader.peek())) or b""
    connection.settimeout(None)
    # The library's objects refer to each other, so a socket of theirs would stay open until a garbage collection.
    own = connection.dup()
    response.close()
    return Connection(own, received)


def _send_chunks(connection: socket.socket, body: Iterable[bytes | FilePart]) -> None:
    """Send a body in HTTP's chunked form."""
    for piece in body:
        if isinstance(piece, FilePart):
            connection.sendall(b"%x\r\n" % piece.size)
            if connection.sendfile(piece.file, piece.position, piece.size) != piece.size:
                raise OSError("a file is shorter than it was")
            connection.sendall(b"\r\n")
        elif piece:
            connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
    connection.sendall(b"0\r\n\r\n")


# ---- the engine ----


class _OnePool(UnixHTTPAdapter):
    """Keeps the connections to a Unix socket in one pool. The library's own adapter has a pool for each URL, and so it
    connects anew for each container."""

    def get_connection(self, url: str | bytes, proxies: Any = None) -> Any:
        return super().get_connection("http+docker://localhost", proxies)


class _Client(docker.APIClient):
    """Keeps and reuses its connections, and sets a timeout on every call: the library sets none on some of its streams
    and hijacked connections."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.trust_env = False  # the engine is on this host: neither a proxy nor a password in a file is meant for it
        own: Any = getattr(self, "_custom_adapter", None)
        if own is not None:
            own.close()
            self.mount("http+docker://", _OnePool(f"http+unix://{own.socket_path}", self.timeout, max_pool_size=_POOL))
        else:
            self.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=_POOL))

    def _set_request_timeout(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        if kwargs.setdefault("timeout", self.timeout) is None:
            kwargs["timeout"] = STREAM_TIMEOUT
        return kwargs

    def request(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("timeout") is None:
            kwargs["timeout"] = self.timeout
        return super().request(*args, **kwargs)


def engine_sockets() -> list[Path]:
    """The paths at which engines of this host may listen; who reaches one rules the host."""
    configured = urlsplit(os.environ.get("DOCKER_HOST", ""))
    named = [Path(configured.path)] if configured.scheme == "unix" else []
    return [*named, Path("/run/docker.sock"), Path("/run/containerd/containerd.sock"), Path("/run/podman/podman.sock")]


class Engine:
    """Docker Engine at `url`, or where DOCKER_HOST and its companions say. Connects at first use."""

    def __init__(self, url: str | None = None) -> None:
        self._url = url
        self._client: docker.APIClient | None = None
        self._data = ""  # its directory, once that is known
        self._lock = threading.Lock()

    @property
    def api(self) -> Any:  # the client library's published types are incomplete
        """The `docker.APIClient`; raises `EngineError` while the engine cannot be reached."""
        with self._lock:
            if self._client is None:
                with engine_errors("cannot reach the container engine"):
                    self._client = self._connect()
            return self._client

    def _connect(self) -> docker.APIClient:
        options: dict[str, Any] = {"base_url": self._url} if self._url else {**docker.utils.kwargs_from_env()}
        if options.get("tls") or str(options.get("base_url", "")).startswith(("ssh:", "npipe:", "https:")):
            raise EngineError("the worker's engine must be on the worker's host, at a unix or plain tcp socket")
        return _Client(version="auto", timeout=CALL_TIMEOUT, **options)

    def disk_free(self) -> tuple[int, int]:
        """Bytes that are free on the disk of the engine's data, and the size of that disk."""
        with engine_errors("cannot find the disk of the container engine"):
            if not self._data:
                self._data = str(self.api.info()["DockerRootDir"])
            disk = os.statvfs(self._data)
            return disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize

    def has_credentials(self, registry: str) -> bool:
        """Whether a pull from the registry carries credentials of this host's user."""
        with engine_errors(f"cannot look up the credentials for {registry}"):
            return docker.auth.get_config_header(self.api, registry) is not None

    def call(
        self,
        method: str,
        path: str,
        params: Mapping[str, Any] | None = None,
        *,
        json: object = None,
        stream: bool = False,
        timeout: float | None = None,
    ) -> Answer:
        """Call the engine's API where the client library's own methods do not do.

        `path` follows the API's version. With `stream`, the answer's body is left to be read. `timeout`: seconds that
        the engine may be silent; None: `CALL_TIMEOUT`. Raises the client library's exceptions, but none for an answer
        that is an error.
        """
        api = self.api
        # By itself the client library asks for gzip, on which the engine spends several times of what an archive costs.
        headers = {"Accept-Encoding": "identity", **self._configured_headers()}
        url = f"{api.base_url}/v{api.api_version}{path}"
        how = {"params": params, "headers": headers, "stream": stream, "timeout": timeout}
        return Answer(api.request(method, url, json=json, **how))

    def send(
        self, method: str, path: str, params: Mapping[str, Any], body: Iterable[bytes | FilePart], *, timeout: float
    ) -> Answer:
        """Call the engine's API with a body of any size, as a tar archive. Raises OSError."""
        headers = {"Content-Type": "application/x-tar", **self._configured_headers()}
        with closing(self._dial(timeout)) as connection:
            connection.putrequest(method, f"/v{self.api.api_version}{path}?{urlencode(params, doseq=True)}")
            for name, value in {"Transfer-Encoding": "chunked", **headers}.items():
                connection.putheader(name, value)
            connection.endheaders()
            with suppress(BrokenPipeError, ConnectionResetError):  # refused before the end: the answer tells why
                _send_chunks(connection.sock, body)
            try:
                told = connection.getresponse()
                content = told.read()
            except http.client.HTTPException as exc:
                raise OSError(f"the answer is broken: {exc}") from exc
        answer = requests.Response()
        answer.status_code, answer.reason, answer.url, answer.raw = told.status, told.reason, path, io.BytesIO(content)
        return Answer(answer)

    def _dial(self, timeout: float) -> http.client.HTTPConnection:
        """A connection of the caller's own, on which each wait has `timeout` seconds."""
        path, url = self._socket_path(), urlsplit(self.api.base_url)
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=timeout)
        if path is None:
            connection.connect()
        else:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(timeout)
            try:
                connection.sock.connect(path)
            except OSError:
                connection.close()
                raise
        return connection

    def _configured_headers(self) -> dict[str, str]:
        """The headers that the client library's configuration file adds to every call."""
        return self.api._general_configs.get("HttpHeaders") or {}

    def attach(self, container_id: str, params: Mapping[str, Any]) -> Connection:
        """A connection to a container's main command."""
        return _hijacked(self.api.attach_socket(container_id, params={**params}))

    def create_exec(self, container_id: str, spec: ExecSpec, detach_keys: str) -> str:
        """Prepare a command in a container. Returns the id of the exec."""
        body = {
            "Cmd": list(spec.command),
            "Env": [f"{name}={value}" for name, value in spec.env.items()],
            "WorkingDir": spec.working_dir,
            "User": spec.user,
            "Tty": spec.tty,
            "AttachStdin": True,
            "AttachStdout": True,
            "AttachStderr": True,
            "DetachKeys": detach_keys,
            **({"ConsoleSize": [spec.rows, spec.cols]} if spec.tty else {}),
        }
        answer = self.call("POST", f"/containers/{container_id}/exec", json=body).check()
        return str(json.loads(answer.text)["Id"])

    def size_terminal(self, container: Mapping[str, Any], cols: int, rows: int) -> None:
        """Give the terminal of a container that was just started its first size, unless the engine has done so. A
        container that has ended already is ignored."""
        if container["Config"]["Tty"] and not self.sizes_terminals:
            with suppress(docker.errors.DockerException, OSError):
                self.api.resize(container["Id"], height=rows, width=cols)

    @property
    def sizes_terminals(self) -> bool:
        """Whether the engine makes terminals in the size that it is given (`ConsoleSize`, since API 1.42)."""
        return not docker.utils.version_lt(self.api.api_version, "1.42")

    def start_exec(self, exec_id: str, *, tty: bool) -> Connection:
        """Start a command that was prepared by `create_exec`. Returns the connection to it."""
        return _hijacked(self.api.exec_start(exec_id, tty=tty, socket=True))

    def life(self) -> str:
        """An identifier that changes with each start of the engine and of its host, and at no other time.

        The engine makes its default network anew whenever it starts without running containers. Where it has none
        (`--bridge=none`), the engine's process identifies its life, as long as the worker can see that process.
        """
        try:
            with engine_errors("cannot ask the engine for its network"):
                made = str(self.api.inspect_network("bridge")["Created"])
        except NotFoundError:
            made = _process_behind(self._socket_path())
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return hashlib.sha256(f"{boot} {made}".encode()).hexdigest()[:16]

    @cached_property
    def architecture(self) -> str:
        """What the engine runs, in its own words; empty if it does not say. It is asked once."""
        with engine_errors("cannot ask the engine for its version"):
            return str(self.api.version(api_version=False).get("Arch") or "")

    def refuse_when_ending(self) -> None:
        """Raise `EngineError` when the engine takes no new connections. An engine that ends still answers on those that
        it has, and would cut off what it is told to start."""
        path = self._socket_path()
        with engine_errors("the container engine takes no new calls"):
            if path:
                with socket.socket(socket.AF_UNIX) as connection:
                    connection.settimeout(CALL_TIMEOUT)
                    connection.connect(path)
            else:
                where = urlsplit(self.api.base_url)
                socket.create_connection((where.hostname, where.port or 2375), CALL_TIMEOUT).close()

    @property
    def pid(self) -> int:
        """The process that listens at the engine's socket, in whose network namespace the engine is. Raises
        `EngineError` when the worker cannot see it."""
        path = self._socket_path()
        with engine_errors("cannot find the engine's process"):
            pid = _listener(path) if path else 0
        if not pid:
            raise EngineError("the worker cannot see the engine's process: it is in a container or on another host")
        return pid

    def _socket_path(self) -> str | None:
        """The path of the engine's Unix socket, if it has one."""
        path = getattr(getattr(self.api, "_custom_adapter", None), "socket_path", None)
        return path if isinstance(path, str) else None

    def close(self) -> None:
        """Drop the connections."""
        with self._lock:
            if self._client is not None:
                self._client.close()


def _listener(socket_path: str) -> int:
    """The pid of the process that listens at a Unix socket; 0 if this process cannot see it. Raises OSError."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(socket_path)
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])


def _process_behind(socket_path: str | None) -> str:
    """The pid and start time of the process that listens at a Unix socket; empty if they cannot be found."""
    with suppress(OSError, IndexError):
        if socket_path:
            pid = _listener(socket_path)
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return f"{pid} {fields[19]} of {os.uname().nodename}"
    return ""
