"""Keeps pages of other web sites away from the API.

A browser sends a page's requests to any address that it can reach, loopback included. Two headers, which no page can
forge, tell what is going on: `Origin` names the site of the page, and `Host` the name under which the browser reached
this server. A name that an attacker owns may stand for a loopback address (DNS rebinding), and then the page's origin
equals the host; so without an API key only known hosts are served. With an API key any host is, since a page of
another site does not have the key.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import socket
from collections.abc import Collection, Iterator
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Scope

from ... import errors

ANY = "*"
PREFLIGHT_SECONDS = 600  # for which a browser may keep the answer to a preflight

_HOSTS_FILE = Path("/etc/hosts")
_MAX_HOST = 255
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:/?#@\s]+?)\.?(?::\d*)?")
_HEADER_NAMES = re.compile(r"[A-Za-z0-9_, -]{1,1000}")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}

_METHODS = "GET, HEAD, PUT, POST, PATCH, DELETE"
_TAKEN = (
    "Authorization, Content-Type, Idempotency-Key, If-Match, If-None-Match, If-Range, Last-Event-ID, Range, "
    "X-Close-Stdin, X-Request-Id"
)
_EXPOSED = (
    "Accept-Ranges, Content-Disposition, Content-Range, ETag, Idempotency-Replayed, Location, Retry-After, "
    "X-Boxlite-Execution-Id, "
    "X-Boxlite-Source-Is-Dir, X-Request-Id"
)


class Origins:
    """What the operator lets browsers do.

    `hosts`: the names and addresses by which the server is served; None for any. `allowed`: the origins of other
    sites whose pages may use the API, or `*` for all.
    """

    def __init__(self, hosts: Collection[str] | None = None, allowed: Collection[str] = ()) -> None:
        self._any_host = hosts is None or ANY in hosts
        self._hosts = frozenset(_plain(host) for host in hosts or ())
        self._any_address = not self._hosts.isdisjoint(("0.0.0.0", "::"))
        self._allowed = frozenset(allowed)
        self._is_served = functools.lru_cache(256)(self._find_host)

    def check(self, scope: Scope, headers: Headers) -> dict[str, str]:
        """Return the headers that the answer has to carry for its page. Raises PermissionDeniedError."""
        host = headers.get("host")
        if not self._any_host and host is not None and (len(host) > _MAX_HOST or not self._is_served(host)):
            raise errors.PermissionDeniedError(
                f"without an API key this coordinator is not served as '{host[:_MAX_HOST]}', since any web site can "
                "have its name stand for this address; --allow-host adds a name"
            )
        origins = headers.getlist("origin")
        if origins:
            self._check_origin(origins, host)
        elif headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            self._check_site(scope, headers)
        return self._cors_headers(origins) if self._allowed else {}

    def _check_origin(self, origins: list[str], host: str | None) -> None:
        if ANY in self._allowed:
            return
        origin = normal(origins[0])
        if len(origins) > 1 or (origin not in self._allowed and not _is_same(origin, host)):
            raise errors.PermissionDeniedError(
                f"pages of '{', '.join(origins)}' may not use this coordinator; --allow-origin lets them"
            )

    def _check_site(self, scope: Scope, headers: Headers) -> None:
        """Refuse what a page of another site fetches without an Origin; a link that a person follows is fine."""
        is_link = headers.get("sec-fetch-mode") == "navigate" and scope.get("method") in ("GET", "HEAD")
        if not is_link and ANY not in self._allowed:
            raise errors.PermissionDeniedError(
                "pages of other sites may not use this coordinator; --allow-origin lets them, in requests with CORS"
            )

    def _cors_headers(self, origins: list[str]) -> dict[str, str]:
        if ANY in self._allowed:
            return {"Access-Control-Allow-Origin": ANY, "Access-Control-Expose-Headers": _EXPOSED}
        if not origins or normal(origins[0]) not in self._allowed:
            return {"Vary": "Origin"}
        return {
            "Access-Control-Allow-Origin": origins[0],
            "Access-Control-Expose-Headers": _EXPOSED,
            "Vary": "Origin",
        }

    def _find_host(self, host: str) -> bool:
        if not (match := _HOST.fullmatch(host)):
            return False
        name = _plain(match[1])
        if name in self._hosts or name == "localhost":
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or self._any_address  # an address is no name that could be rebound


def preflight(scope: Scope, headers: Headers) -> Response | None:
    """Return the answer to a request in which a browser asks what a page may send; None for any other request."""
    if scope.get("method") != "OPTIONS" or "access-control-request-method" not in headers or "origin" not in headers:
        return None
    wanted = headers.get("access-control-request-headers", "")
    return Response(
        status_code=204,
        headers={
            "Access-Control-Allow-Methods": _METHODS,
            "Access-Control-Allow-Headers": wanted if _HEADER_NAMES.fullmatch(wanted) else _TAKEN,
            "Access-Control-Max-Age": str(PREFLIGHT_SECONDS),
        },
    )


def normal(origin: str) -> str:
    """Return the origin as browsers write it: in lower case, and without the default port of its scheme."""
    origin = origin.lower()
    return origin.removesuffix(_DEFAULT_PORTS.get(origin.partition(":")[0], "\n"))


def own_names() -> Iterator[str]:
    """Yield the names that this machine gives to itself: its host name, and those of loopback in its hosts file."""
    yield socket.gethostname()
    try:
        lines = _HOSTS_FILE.read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        address, *names = line.partition("#")[0].split() or [""]
        try:
            if ipaddress.ip_address(address.partition("%")[0]).is_loopback:
                yield from names
        except ValueError:
            continue


def _plain(host: str) -> str:
    return host.lower().strip("[]")


def _is_same(origin: str, host: str | None) -> bool:
    """Whether the page was loaded from this server, whose scheme a proxy in front of it may have changed."""
    scheme, _, authority = origin.partition("://")
    if scheme not in _DEFAULT_PORTS or host is None:
        return False
    return authority == host.lower().removesuffix(_DEFAULT_PORTS[scheme])


def bound_names(host: str, address: str, more: Collection[str]) -> set[str]:
    """Return the names of a server that is bound to `host`, whose address is `address`, and named `more` as well."""
    return {host, address, *own_names(), *more}
