"""The log: one line for each record, whatever the texts in it are."""

from __future__ import annotations

import io
import logging
import re

import pytest
from support.cluster import Cluster

from boxlite_server.cli import logs

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING|ERROR|CRITICAL)\s+[\w.]+: ")
FORGED = "2026-01-01 00:00:00,000 INFO    boxlite_server.coordinator: the key was accepted"

ATTACKS = [
    f"x\n{FORGED}",
    f"x\r\n{FORGED}",
    f"x\r{FORGED}",
    f"x\x0b{FORGED}",
    f"x\x85{FORGED}",
    f"x\u2028{FORGED}",
    f"x\u2029{FORGED}",
    "x\x1b[2K\x1b[1A gone",
    "x\x08\x08\x08gone",
    "x\u202egone",
    "x\u2066gone",
    "x\0gone",
    "x\ud800gone",
]


@pytest.fixture
def log() -> logging.Logger:
    log = logging.Logger("boxlite_server.test")
    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(logs.Lines(logs.FORMAT))
    log.addHandler(handler)
    return log


def written(log: logging.Logger) -> str:
    (handler,) = log.handlers
    assert isinstance(handler, logging.StreamHandler)
    return str(handler.stream.getvalue())


@pytest.mark.parametrize("text", ATTACKS)
def test_no_text_ends_its_line(log: logging.Logger, text: str) -> None:
    log.warning("refused: %s", text)
    (line,) = written(log).encode().decode().splitlines()
    assert LINE.match(line)
    assert line.isprintable()


@pytest.mark.parametrize("text", ATTACKS)
def test_no_error_ends_the_line_of_its_traceback(log: logging.Logger, text: str) -> None:
    try:
        raise ValueError(text)
    except ValueError as exc:
        log.error("fault", exc_info=exc)
    first, *rest = written(log).encode().decode().splitlines()
    assert LINE.match(first)
    assert rest
    for line in rest:
        assert line.startswith("  | ")
        assert line.isprintable()


def test_a_long_text_is_cut(log: logging.Logger) -> None:
    log.warning("%s", "x" * 10_000_000)
    assert len(written(log)) < 30_000


def test_other_alphabets_stay_as_they_are(log: logging.Logger) -> None:
    log.info("Grüße, 箱, 📦")
    assert written(log).endswith(": Grüße, 箱, 📦\n")


def client_addresses(cluster: Cluster, forwarded: str) -> set[str]:
    """The addresses that the log of requests shows for a request with this header."""
    at = len(cluster.coordinator.log.read_text())
    assert cluster.http("GET", "/v1/config", headers={"X-Forwarded-For": forwarded})[0] == 200
    return set(re.findall(r"([0-9a-f.:]+):\d+ - \"GET /v1/config", cluster.coordinator.log.read_text()[at:]))


@pytest.mark.parametrize(
    ("flags", "forwarded", "seen"),
    [
        ((), "6.6.6.6", "127.0.0.1"),
        (("--trusted-proxy", "10.0.0.0/8"), "6.6.6.6", "127.0.0.1"),
        (("--trusted-proxy", "127.0.0.0/8"), "6.6.6.6", "6.6.6.6"),
    ],
)
def test_who_a_client_is_only_a_trusted_proxy_says(
    new_cluster: object, flags: tuple[str, ...], forwarded: str, seen: str
) -> None:
    cluster: Cluster = new_cluster()  # type: ignore[operator]
    cluster.start_coordinator("--debug", *flags)
    assert client_addresses(cluster, forwarded) == {seen}
    text = cluster.coordinator.log.read_text()
    assert all(LINE.match(line) or line.startswith("  | ") for line in text.splitlines())
