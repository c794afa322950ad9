"""The address of a client behind the operator's proxies."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from functools import lru_cache

from starlette.types import ASGIApp, Receive, Scope, Send

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_HOPS = 32  # addresses of `X-Forwarded-For` that are looked at


class Forwarded:
    """ASGI middleware: `client` becomes the address that the last trusted proxy has seen, as `X-Forwarded-For` tells.

    Each proxy adds the address that it was called from at the end, so what stands before the last address that no
    proxy in `trusted` has is what a client made up. The header of any other caller is ignored.
    """

    def __init__(self, app: ASGIApp, trusted: Collection[Network]) -> None:
        self._app = app
        self._trusted = tuple(trusted)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and (client := scope.get("client")):
            found = self._client(_caller(client[0]), scope["headers"])
            if found is not None and str(found) != client[0]:
                scope["client"] = (str(found), 0)
        await self._app(scope, receive, send)

    def _client(self, caller: Address | None, headers: Collection[tuple[bytes, bytes]]) -> Address | None:
        hops = b",".join(value for name, value in headers if name == b"x-forwarded-for").decode("latin1")
        for hop in reversed(hops.rsplit(",", MAX_HOPS)):
            if caller is None or not self._trusts(caller):
                break
            caller = _address(hop) or caller
            if _address(hop) is None:
                break
        return caller

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)


def _address(text: str) -> Address | None:
    """The IP address of a hop, which some proxies write with a port; None: it is none."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


_caller = lru_cache(maxsize=1024)(_address)  # of callers alone, whose addresses are short
