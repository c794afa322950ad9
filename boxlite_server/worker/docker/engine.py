"""The connection to Docker Engine: client, errors, and raw streams.

With the other `docker_*.py` the only code that knows docker.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import docker
import docker.errors
import docker.utils

from ...errors import (
    EngineError,
    InvalidArgumentError,
    InvalidStateError,
    NotFoundError,
    ResourceExhaustedError,
)

CALL_TIMEOUT = 60.0  # seconds that an answer may be silent, unless the call says otherwise
STREAM_TIMEOUT = 300.0  # the same where the client library knows no bound: pulls and events
_POOL = 64  # connections kept; more are opened when needed


def reason(exc: Exception) -> str:
    """What the engine itself says, without the client library's decoration."""
    if isinstance(exc, docker.errors.APIError) and exc.explanation:
        text = exc.explanation
        return text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    return str(exc)


def is_full(text: str) -> bool:
    """Whether the engine says that its disk is."""
    return any(part in text.lower() for part in ("no space left", "quota exceeded"))


@contextmanager
def engine_errors(what: str) -> Iterator[None]:
    """Turns the engine's and the client library's exceptions into ours; `what` names the attempt."""
    try:
        yield
    except docker.errors.APIError as exc:
        text = f"{what}: {reason(exc)}"
        match exc.status_code:
            case 400:
                raise InvalidArgumentError(text) from exc
            case 404:
                raise NotFoundError(text) from exc
            case 409:
                raise InvalidStateError(text) from exc
            case _ if is_full(text):
                raise ResourceExhaustedError(f"{text} (the disk of the container engine is full)") from exc
            case _:
                raise EngineError(text) from exc
    # The HTTP library's exceptions are OSErrors, as are the socket's own.
    except (docker.errors.DockerException, OSError) as exc:
        raise EngineError(f"{what}: the container engine does not answer: {exc}") from exc


class _Client(docker.APIClient):
    """Every call has a timeout: the library gives some of its streams and its hand-overs none."""

    def _set_request_timeout(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        if kwargs.setdefault("timeout", self.timeout) is None:
            kwargs["timeout"] = STREAM_TIMEOUT
        return kwargs

    def request(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("timeout") is None:
            kwargs["timeout"] = self.timeout
        return super().request(*args, **kwargs)


class Engine:
    """Docker Engine as DOCKER_HOST and its companions name it, or at `url`. Connects at first use."""

    def __init__(self, url: str | None = None) -> None:
        self._url = url
        self._client: docker.APIClient | None = None
        self._lock = threading.Lock()

    @property
    def api(self) -> Any:  # its published types are incomplete
        """The `docker.APIClient`; raises `EngineError` while the engine cannot be reached."""
        with self._lock:
            if self._client is None:
                with engine_errors("cannot reach the container engine"):
                    self._client = self._connect()
            return self._client

    @property
    def socket_path(self) -> str | None:
        """Where the engine's Unix socket is, if it has one."""
        path = getattr(getattr(self.api, "_custom_adapter", None), "socket_path", None)
        return path if isinstance(path, str) else None

    def close(self) -> None:
        """Drop the connections."""
        with self._lock:
            if self._client is not None:
                self._client.close()

    def _connect(self) -> docker.APIClient:
        options: dict[str, Any] = {"base_url": self._url} if self._url else {**docker.utils.kwargs_from_env()}
        if options.get("tls") or str(options.get("base_url", "")).startswith(("ssh:", "npipe:", "https:")):
            raise EngineError("the worker's engine must be on the worker's host, at a unix or plain tcp socket")
        return _Client(version="auto", timeout=CALL_TIMEOUT, max_pool_size=_POOL, **options)  # type: ignore[arg-type]


def engine_life(engine: Engine) -> str:
    """Differs after each start of the engine and of its host, and at no other time.

    The engine makes its default network anew whenever it starts without running containers. Where it has none
    (`--bridge=none`), it is known by its process, as long as the worker sees that.
    """
    try:
        with engine_errors("cannot ask the engine for its network"):
            made = str(engine.api.inspect_network("bridge")["Created"])
    except NotFoundError:
        made = _process_behind(engine.socket_path)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return hashlib.sha256(f"{boot} {made}".encode()).hexdigest()[:16]


def _process_behind(socket_path: str | None) -> str:
    """Who listens at a Unix socket: its pid and when it started."""
    with suppress(OSError, IndexError):
        if socket_path:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(5)
                connection.connect(socket_path)
                size = struct.calcsize("3i")
                credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
            pid = struct.unpack("3i", credentials)[0]
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return f"{pid} {fields[19]} of {os.uname().nodename}"
    return ""
