"""Runs the coordinator: one process, one port."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import logging
import signal
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from starlette.types import ASGIApp

from .. import errors, process
from ..formats import in_url
from .control.orphans import ORPHAN_GRACE_SECONDS
from .core import Core
from .domain.executions import RECONNECT_GRACE
from .fleet.certificates import Certificates
from .http.app import create_app
from .http.attach.protocol import WebSocketProtocol
from .http.connections import ConnectionLimits, Connections, Refused
from .http.forwarded import Forwarded, Network
from .http.handshakes import Handshakes
from .http.origins import Origins, bound_names
from .http.protocol import MAX_HEAD_BYTES, HttpProtocol
from .limits import KEEPALIVE_SECONDS, Policy
from .store.connection import shown

if TYPE_CHECKING:
    from ..tls.files import Files, Material, Watched

log = logging.getLogger(__name__)

GRACE_SECONDS = 10
LAST_WORD_SECONDS = 1.0  # at the shutdown, for clients over TLS without a request to answer the end of the connection
MIN_KEY = 16  # characters of `api_key`


@dataclass(frozen=True)
class CoordinatorConfig:
    database: Path | str  # an SQLite file, or a PostgreSQL URL
    host: str = "127.0.0.1"
    port: int = 8200  # 0: any free one
    api_key: str | None = None
    no_auth: bool = False
    allowed_origins: tuple[str, ...] = ()  # of other web sites whose pages may use the API; * for all
    allowed_hosts: tuple[str, ...] = ()  # names of this coordinator, beside its own, without an API key; * for any
    trusted_proxies: tuple[Network, ...] = ()  # whose X-Forwarded-For is taken for the address of a client
    limits: ConnectionLimits = field(default_factory=ConnectionLimits)
    policy: Policy = field(default_factory=Policy)
    debug: bool = False
    reconnect_grace: float = RECONNECT_GRACE  # seconds; 0: terminals are never hung up
    orphan_grace: float = ORPHAN_GRACE_SECONDS  # seconds
    tls: Files | None = None  # the certificate for clients, and with an authority for calls to workers too
    metrics_token: str | None = None  # that may read the metrics, beside keys of operators
    ca_key: Path | None = None  # the key of that authority: workers that join get their certificates


class Server(uvicorn.Server):
    """Serves an ASGI application over HTTP/1.1 and WebSocket, within `limits`. Sets `stopping` as soon as a signal asks
    the process to end, so that long answers end. With `tls` it serves HTTPS. `refused`: see `Connections`."""

    def __init__(
        self,
        app: ASGIApp,
        limits: ConnectionLimits,
        stopping: asyncio.Event,
        *,
        debug: bool = False,
        tls: Watched | None = None,
        refused: Refused = lambda *_: None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="on",
                http=HttpProtocol,
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
                ws=WebSocketProtocol,
                ws_ping_interval=KEEPALIVE_SECONDS,
                ws_ping_timeout=None,
                ws_per_message_deflate=False,
                timeout_keep_alive=limits.idle,  # type: ignore[arg-type]  # fractions of a second are fine
                timeout_graceful_shutdown=GRACE_SECONDS,
                log_config=None,
                access_log=debug,
                server_header=False,
                proxy_headers=False,  # they would be taken from any caller on loopback; see `Forwarded`
            )
        )
        self.server_state = self._connections = Connections(limits, refused)
        self._stopping = stopping
        self._tls = tls
        self._handshakes: list[Handshakes] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([] if self._tls else sockets)
        if self._tls:
            limits, backlog = self._connections.limits, self.config.backlog
            self._handshakes = [
                Handshakes(listener, self._tls, self._new_protocol, backlog, limits.unread, self._connections.refused)
                for listener in sockets or []
            ]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for handshakes in self._handshakes:
            await handshakes.close()
        if self._tls:
            asyncio.get_running_loop().call_later(LAST_WORD_SECONDS, self._connections.abort_idle)
        await super().shutdown(sockets)

    def _new_protocol(self) -> HttpProtocol:
        return HttpProtocol(self.config, self._connections, self.lifespan.state)

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:  # once in a second
            self._connections.sweep(asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._stopping.set()
        super().handle_exit(sig, frame)


def run(config: CoordinatorConfig) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code. Raises BoxliteError when the coordinator cannot start."""
    _refuse_weak_key(config.api_key)
    process.raise_descriptor_limit()
    process.come_before_boxes()
    process.keep_freed_memory()
    tls = _watched(config)
    listener = _listen(config)
    # uvicorn raises the signal that ended it once more; without these handlers an orderly end would be a failure.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    asyncio.run(_serve(config, listener, tls))
    return 0


async def _serve(config: CoordinatorConfig, listener: socket.socket, tls: Watched | None) -> None:
    core = await Core.open(
        config.database,
        config.api_key,
        config.policy,
        reconnect_grace=config.reconnect_grace,
        orphan_grace=config.orphan_grace,
        certificates=Certificates(tls, config.ca_key),
    )
    has_keys = config.api_key is not None or await core.authenticator.keys.exist()
    if not (has_keys or config.no_auth or is_loopback(config.host)):
        await core.store.close()
        raise _open_door(config.host)
    host, port = listener.getsockname()[:2]
    scheme = "https" if tls else "http"
    log.info("coordinator serves %s://%s:%s, database %s", scheme, in_url(host), port, shown(config.database))
    app = create_app(core, _origins(config, host, has_keys=has_keys), config.limits.body, config.metrics_token)
    served = Forwarded(app, config.trusted_proxies)
    refused = core.audit.note_no_request
    server = Server(served, config.limits, core.stopping, debug=config.debug, tls=tls, refused=refused)
    gc.collect()
    gc.freeze()  # permanent objects are not scanned in every collection, during which all requests wait
    await server.serve(sockets=[listener])


def _watched(config: CoordinatorConfig) -> Watched | None:
    if config.tls is None:
        return None
    from ..tls import certificates, files

    def check(material: Material) -> None:
        if material.ca is not None:
            certificates.check_coordinator(material.chain, material.ca)
            if config.ca_key:
                certificates.check_key(certificates.Issued(material.ca, files.content(config.ca_key)))

    return files.Watched(config.tls, check)


def _refuse_weak_key(api_key: str | None) -> None:
    if api_key is not None and len(api_key) < MIN_KEY:
        raise errors.InvalidArgumentError(
            f"the API key has {len(api_key)} characters, and fewer than {MIN_KEY} can be guessed; "
            "make a good one: openssl rand -hex 32"
        )


def _open_door(host: str) -> errors.InvalidArgumentError:
    return errors.InvalidArgumentError(
        f"without an API key the coordinator serves loopback addresses only, and {host} is none: "
        "make a key with `boxlite-server keys create`, or give one key for everything with --api-key-file or "
        "BOXLITE_API_KEY, or give --no-auth to let everybody in"
    )


def _origins(config: CoordinatorConfig, address: str, *, has_keys: bool) -> Origins:
    hosts = None if has_keys else bound_names(config.host, address, config.allowed_hosts)
    return Origins(hosts, config.allowed_origins)


def is_loopback(host: str) -> bool:
    """Whether all addresses that `host` stands for are loopback addresses; a name is looked up."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in found)


def _listen(config: CoordinatorConfig) -> socket.socket:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.set_inheritable(True)
    except OSError as exc:
        raise errors.InvalidArgumentError(f"cannot listen on {config.host}:{config.port}: {exc.strerror}") from exc
    return listener
