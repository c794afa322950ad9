"""`auth`: keeps API keys of servers in profiles, and tells who the caller is."""

from __future__ import annotations

import getpass
import os
import sys
from argparse import Namespace

from ...errors import AuthError, BoxliteError, InvalidArgumentError, NotFoundError
from .. import connection, credentials
from ..api import ApiClient, Json
from ..output import print_error, print_warning
from ..parser import Commands
from .boxes import confirmed

_MAX_KEY = 4096  # characters


def add_to(commands: Commands) -> None:
    verbs = commands.group(
        "auth",
        "Log in to servers, and show who you are",
        examples=("boxlite auth login --url https://boxes.example:8200", "boxlite --profile work auth whoami"),
    )
    sub = verbs.add_local(
        "login",
        login,
        "Check an API key and keep it, with the server's address, in a profile",
        examples=(
            "boxlite auth login --url https://boxes.example:8200",
            "boxlite auth login --profile work --api-key-stdin < key.txt",
        ),
    )
    sub.add_argument(
        "--api-key-stdin",
        action="store_true",
        help="read the API key from stdin, one line (default: ask for it at the terminal, and do not show it)",
    )
    sub = verbs.add_local(
        "logout", logout, "Remove a profile", examples=("boxlite auth logout", "boxlite auth logout -y --profile work")
    )
    sub.add_argument("-y", "--yes", action="store_true", help="do not ask")
    verbs.add_local(
        "status",
        status,
        "Show which server and key are used, offline",
        examples=("boxlite auth status",),
    )
    verbs.add("whoami", whoami, "Ask the server who you are, and what you may do", examples=("boxlite auth whoami",))


def login(args: Namespace) -> int:
    name = connection.profile_name(args)
    where = connection.access(args)
    key = _key_of_stdin() if args.api_key_stdin else _key_of_terminal(where.url)
    api = connection.client(args, where._replace(api_key=key))
    try:
        me = _me(api)
    except AuthError as error:
        raise AuthError(f"{where.url} does not take this key, which was not kept: {error.message}") from error
    finally:
        api.close()
    prefix = args.path_prefix or me.get("path_prefix") or ""
    credentials.save(name, credentials.Profile(where.url, key, prefix))
    print(f"Logged in to {where.url} (API key, profile {name})")
    if os.environ.get(connection.API_KEY_VARIABLE):
        print_warning(f"{connection.API_KEY_VARIABLE} is set, and wins over the profile")
    return 0


def logout(args: Namespace) -> int:
    name = connection.profile_name(args)
    if credentials.load(name) is None:
        print(f"Not logged in (profile {name}).")
        return 0
    if not args.yes and not confirmed(f"Remove profile '{name}' from {credentials.path()}? [y/N] "):
        print_error("nothing removed")
        return 1
    credentials.remove(name)
    print(f"Logged out (profile {name}).")
    return 0


def status(args: Namespace) -> int:
    where = connection.access(args)
    if where.source:
        print(f"Logged in to:    {where.url}")
        print(f"Credential:      API key (from {where.source})")
    else:
        print(f"Not logged in (profile {connection.profile_name(args)}).")
        print(f"Server:          {where.url}")
    if where.path_prefix:
        print(f"Path prefix:     {where.path_prefix}")
    return 0


def whoami(api: ApiClient, args: Namespace) -> int:
    me = _me(api)
    facts = {
        "Logged in as": me.get("email") or me["sub"],
        "Name": me.get("display_name"),
        "Principal": f"{me['sub']} ({me['principal_type']})",
        "Path prefix": me.get("path_prefix"),
        "Server": api.url,
        "Scopes": ", ".join(me["scopes"]),
        "Expires": me.get("expires_at"),
    }
    for title, fact in facts.items():
        if fact:
            print(f"{title + ':':<16} {fact}")
    return 0


def _me(api: ApiClient) -> Json:
    try:
        me = api.get(api.root_path("me"))
    except NotFoundError as error:
        raise BoxliteError(f"{api.url} does not tell who a key is (GET /v1/me); is it a BoxLite server?") from error
    if not isinstance(me.get("sub"), str) or not isinstance(me.get("scopes"), list):
        raise BoxliteError(f"{api.url} does not tell who a key is (GET /v1/me); is it a BoxLite server?")
    return me


def _key_of_stdin() -> str:
    return _checked(sys.stdin.readline(_MAX_KEY + 2).rstrip("\r\n"), "stdin has no API key in its first line")


def _key_of_terminal(url: str) -> str:
    if not sys.stdin.isatty():
        raise InvalidArgumentError("stdin is no terminal to ask for the API key; give it by --api-key-stdin")
    try:
        key = getpass.getpass(f"API key for {url}: ")
    except EOFError:
        key = ""
    return _checked(key.strip(), "no API key was given")


def _checked(key: str, absent: str) -> str:
    if not key:
        raise InvalidArgumentError(absent)
    if len(key) > _MAX_KEY or not (key.isascii() and key.isprintable()) or " " in key:
        raise InvalidArgumentError(
            f"this is no API key: it has to be printable characters without spaces, up to {_MAX_KEY}"
        )
    return key
