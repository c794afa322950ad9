"""Accepts connections for HTTPS, and bounds what their TLS handshakes may cost: connections count among those of the
server only after that."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING

from .connections import Refused

if TYPE_CHECKING:
    from ...tls.files import Watched

MAX_HANDSHAKES = 512  # under way at a time, and no more than an eighth of the limit of open files
HANDSHAKE_SECONDS = 10.0
RETRY_SECONDS = 1.0  # after a connection that could not be accepted, since all open files are in use

log = logging.getLogger(__name__)


class Handshakes:
    """Gives each connection that comes to `listener` to a new protocol, once it is encrypted with the certificate that
    `tls` has at that time. Where too many handshakes are under way, the oldest is broken off. `unread`: seconds that a
    client may take for what is left when its connection is closed. `refused`: see `Connections`."""

    def __init__(
        self,
        listener: socket.socket,
        tls: Watched,
        new_protocol: Callable[[], asyncio.Protocol],
        backlog: int,
        unread: float,
        refused: Refused,
    ) -> None:
        self._listener = listener
        self._unread = unread
        self._refused = refused
        self._tls = tls
        self._new_protocol = new_protocol
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = MAX_HANDSHAKES if files == resource.RLIM_INFINITY else min(MAX_HANDSHAKES, max(files // 8, 1))
        self._under_way: dict[asyncio.Task[None], None] = {}  # the oldest first
        listener.setblocking(False)
        listener.listen(backlog)
        self._accepting = asyncio.create_task(self._accept())

    async def close(self) -> None:
        """Accept no more connections, and break off the handshakes under way."""
        ended = [self._accepting, *self._under_way]
        for task in ended:
            task.cancel()
        await asyncio.gather(*ended, return_exceptions=True)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(self._listener)
            except OSError as exc:
                log.warning("a connection cannot be accepted: %s", exc.strerror)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if len(self._under_way) >= self._most:
                oldest = next(iter(self._under_way))
                del self._under_way[oldest]
                oldest.cancel()
            task = asyncio.create_task(self._shake_hands(connection, address))
            self._under_way[task] = None
            task.add_done_callback(lambda done: self._under_way.pop(done, None))

    async def _shake_hands(self, connection: socket.socket, address: tuple[str, int]) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._new_protocol,
                connection,
                ssl=self._tls.current().server,
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=self._unread,
            )
        except OSError as exc:  # ssl.SSLError and timeouts are OSErrors
            log.debug("a TLS handshake failed: %s", exc)
            if isinstance(exc, ssl.SSLError):
                self._refused(address[0], 0, "")
