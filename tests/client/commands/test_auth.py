"""`boxlite auth`, and which key and address a command uses."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from support.fake_server import FakeServer, error

from boxlite_server.client import credentials
from boxlite_server.client.credentials import Profile

Boxlite = Callable[..., int]
Popen = Callable[..., "subprocess.Popen[bytes]"]
Capture = pytest.CaptureFixture[str]

KEY = "blt_ab12_secretsecretsecret"
ME = {
    "sub": "key-1",
    "principal_type": "service_account",
    "email": None,
    "display_name": "ci",
    "path_prefix": "acme",
    "scopes": ["box:read", "box:write"],
    "expires_at": "2027-01-01T00:00:00Z",
}


@pytest.fixture
def someone(server: FakeServer) -> FakeServer:
    server.on("GET", "/v1/me", (200, ME))
    server.on("GET", "/v1/acme/boxes", (200, {"boxes": []}))
    server.on("GET", "/v1/boxes", (200, {"boxes": []}))
    return server


def log_in(popen: Popen, *argv: str) -> bytes:
    process = popen("auth", "login", "--api-key-stdin", *argv)
    out, err = process.communicate(f"{KEY}\n".encode())
    assert (process.returncode, err) == (0, b"")
    return out


def keys(server: FakeServer) -> list[str | None]:
    return [seen.headers.get("authorization") for seen in server.requests]


def test_login_keeps_a_key_that_the_server_takes(someone: FakeServer, popen: Popen, boxlite: Boxlite) -> None:
    assert log_in(popen) == f"Logged in to {someone.url} (API key, profile default)\n".encode()
    assert credentials.load("default") == Profile(someone.url, KEY, "acme")
    assert boxlite("ps") == 0
    assert someone.lines == ["GET /v1/me", "GET /v1/acme/boxes"]
    assert keys(someone) == [f"Bearer {KEY}"] * 2


def test_the_key_is_asked_for_without_showing_it(someone: FakeServer) -> None:
    """As at a terminal: the key is typed after the question, and the terminal does not echo it."""
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-m", "boxlite_server.client", "auth", "login"])
    shown = b""
    while b": " not in shown:
        shown += os.read(terminal, 1024)
    os.write(terminal, f"{KEY}\n".encode())
    try:
        while piece := os.read(terminal, 1024):
            shown += piece
    except OSError:  # the terminal has hung up
        pass
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert f"API key for {someone.url}: ".encode() in shown
    assert b"Logged in to" in shown
    assert KEY.encode() not in shown
    assert credentials.load("default") == Profile(someone.url, KEY, "acme")


def test_without_a_terminal_login_says_how_to_give_the_key(someone: FakeServer, popen: Popen, tmp_path: Path) -> None:
    process = popen("auth", "login", stdin=subprocess.DEVNULL)
    assert process.communicate()[1] == (
        b"Error: stdin is no terminal to ask for the API key; give it by --api-key-stdin\n"
    )
    assert process.returncode == 1
    assert not someone.requests


@pytest.mark.parametrize("text", [b"", b"\n", b"two words\n", b"k\xc3\xa4y\n", b"x" * 5000])
def test_what_is_no_key_is_sent_to_nobody(someone: FakeServer, popen: Popen, text: bytes) -> None:
    process = popen("auth", "login", "--api-key-stdin")
    assert b"API key" in process.communicate(text)[1]
    assert process.returncode == 1
    assert not someone.requests


def test_a_key_that_the_server_refuses_is_not_kept(server: FakeServer, popen: Popen) -> None:
    server.on("GET", "/v1/me", (401, error("unauthenticated", "this key is not known")))
    process = popen("auth", "login", "--api-key-stdin")
    err = process.communicate(b"wrong\n")[1]
    assert process.returncode == 1
    assert b"does not take this key, which was not kept: this key is not known" in err
    assert credentials.load("default") is None


def test_a_server_of_another_kind_gets_no_profile(server: FakeServer, popen: Popen) -> None:
    process = popen("auth", "login", "--api-key-stdin")
    assert b"is it a BoxLite server?" in process.communicate(b"key\n")[1]
    assert credentials.load("default") is None


def test_profiles_stand_beside_each_other(someone: FakeServer, popen: Popen, boxlite: Boxlite, capsys: Capture) -> None:
    log_in(popen, "--profile", "work", "--path-prefix", "other")
    assert credentials.load("work") == Profile(someone.url, KEY, "other")
    assert credentials.load("default") is None
    someone.on("GET", "/v1/other/boxes", (200, {"boxes": []}))
    assert boxlite("--profile", "work", "ps") == 0
    assert boxlite("ps", "--profile", "work", "--path-prefix", "acme") == 0
    assert someone.lines[1:] == ["GET /v1/other/boxes", "GET /v1/acme/boxes"]
    assert boxlite("--profile", "wrok", "ps") == 1
    assert "there is no profile 'wrok' in" in capsys.readouterr().err


def test_the_environment_wins_over_the_profile(
    someone: FakeServer, boxlite: Boxlite, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    credentials.save("default", Profile(someone.url, KEY, "acme"))
    monkeypatch.setenv("BOXLITE_API_KEY", "of-environment")
    assert boxlite("ps") == 0
    assert (someone.lines, keys(someone)) == (["GET /v1/acme/boxes"], ["Bearer of-environment"])
    assert boxlite("auth", "status") == 0
    assert "API key (from BOXLITE_API_KEY env var)" in capsys.readouterr().out


def test_the_address_comes_from_the_profile(
    someone: FakeServer, boxlite: Boxlite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BOXLITE_REST_URL")
    credentials.save("default", Profile(someone.url, KEY))
    assert boxlite("ps") == 0
    assert keys(someone) == [f"Bearer {KEY}"]


def test_the_key_of_a_profile_goes_to_no_other_server(someone: FakeServer, boxlite: Boxlite, capsys: Capture) -> None:
    credentials.save("default", Profile("https://boxes.example:8200", KEY, "acme"))
    assert boxlite("ps") == 0
    assert (someone.lines, keys(someone)) == (["GET /v1/boxes"], [None])
    assert boxlite("auth", "status") == 0
    assert capsys.readouterr().out.endswith(f"Not logged in (profile default).\nServer:          {someone.url}\n")


def test_a_request_without_a_key_says_how_to_log_in(server: FakeServer, boxlite: Boxlite, capsys: Capture) -> None:
    server.on("GET", "/v1/boxes", (401, error("unauthenticated", "the API key is missing")))
    assert boxlite("ps") == 1
    assert capsys.readouterr().err == (
        "Error: the API key is missing; log in with 'boxlite auth login', or set BOXLITE_API_KEY\n"
    )


def test_status_shows_no_secret_and_asks_nobody(someone: FakeServer, boxlite: Boxlite, capsys: Capture) -> None:
    assert boxlite("auth", "status") == 0
    assert capsys.readouterr().out.startswith("Not logged in (profile default).\n")
    credentials.save("default", Profile(someone.url, KEY, "acme"))
    assert boxlite("auth", "status") == 0
    assert capsys.readouterr().out.splitlines() == [
        f"Logged in to:    {someone.url}",
        f"Credential:      API key (from {credentials.path()} [default])",
        "Path prefix:     acme",
    ]
    assert not someone.requests


def test_whoami_shows_what_the_server_says(someone: FakeServer, boxlite: Boxlite, capsys: Capture) -> None:
    credentials.save("default", Profile(someone.url, KEY, "acme"))
    assert boxlite("auth", "whoami") == 0
    assert capsys.readouterr().out.splitlines() == [
        "Logged in as:    key-1",
        "Name:            ci",
        "Principal:       key-1 (service_account)",
        "Path prefix:     acme",
        f"Server:          {someone.url}",
        "Scopes:          box:read, box:write",
        "Expires:         2027-01-01T00:00:00Z",
    ]
    assert someone.lines == ["GET /v1/me"]


def test_logout_asks_and_removes_one_profile(
    server: FakeServer, boxlite: Boxlite, popen: Popen, capsys: Capture
) -> None:
    credentials.save("default", Profile(server.url, KEY))
    credentials.save("work", Profile(server.url, KEY))
    refused = popen("auth", "logout")
    assert refused.communicate(b"n\n")[0] == b""
    assert refused.returncode == 1
    assert boxlite("auth", "logout", "--yes") == 0
    assert boxlite("auth", "logout", "-y") == 0
    assert capsys.readouterr().out == "Logged out (profile default).\nNot logged in (profile default).\n"
    assert list(tomllib.loads(credentials.path().read_text())["profiles"]) == ["work"]
    assert not server.requests
