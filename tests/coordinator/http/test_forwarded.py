"""Whose word counts for the address of a client."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import Any

import pytest

from boxlite_server.coordinator.http.forwarded import Forwarded

PROXIES = ("10.0.0.0/8", "fd00::/8")


def client(caller: str, *headers: str, proxies: tuple[str, ...] = PROXIES) -> str:
    """The address of a client that the application sees."""
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["client"][0])

    scope = {
        "type": "http",
        "client": (caller, 1234),
        "headers": [(b"x-forwarded-for", header.encode("latin1")) for header in headers],
    }
    asyncio.run(Forwarded(app, [ipaddress.ip_network(proxy) for proxy in proxies])(scope, None, None))  # type: ignore[arg-type]
    return seen[0]


@pytest.mark.parametrize(
    ("caller", "headers", "expected"),
    [
        ("10.0.0.1", ["6.6.6.6"], "6.6.6.6"),
        ("10.0.0.1", ["1.1.1.1, 6.6.6.6"], "6.6.6.6"),  # the first one is made up
        ("10.0.0.1", ["1.1.1.1", "6.6.6.6"], "6.6.6.6"),
        ("10.0.0.1", ["6.6.6.6, 10.0.0.2"], "6.6.6.6"),
        ("10.0.0.1", ["10.0.0.9, 6.6.6.6, 10.0.0.2"], "6.6.6.6"),
        ("10.0.0.1", ["6.6.6.6:5000"], "6.6.6.6"),
        ("10.0.0.1", ["[2001:db8::1]:5000"], "2001:db8::1"),
        ("fd00::1", ["2001:db8::1"], "2001:db8::1"),
        ("10.0.0.1", ["::ffff:6.6.6.6"], "6.6.6.6"),
        ("::ffff:10.0.0.1", ["6.6.6.6"], "6.6.6.6"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["", " "], "10.0.0.1"),
        ("10.0.0.1", ["6.6.6.6, unknown"], "10.0.0.1"),
        ("10.0.0.1", ["6.6.6.6, \xff\n"], "10.0.0.1"),
        ("10.0.0.1", ["a" * 60_000], "10.0.0.1"),
        ("10.0.0.1", ["6.6.6.6," + "," * 60_000], "10.0.0.1"),
        ("10.0.0.1", ["6.6.6.6," + "10.0.0.2," * 5_000 + "10.0.0.3"], "10.0.0.2"),
        ("7.7.7.7", ["6.6.6.6"], "7.7.7.7"),
        ("127.0.0.1", ["6.6.6.6"], "127.0.0.1"),
    ],
)
def test_the_last_address_that_is_no_proxy(caller: str, headers: list[str], expected: str) -> None:
    assert client(caller, *headers) == expected
    assert client(caller, *headers, proxies=()).removeprefix("::ffff:") == caller.removeprefix("::ffff:")
