"""Which server a command speaks to, and with which API key: flags and environment first, then the profile."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from typing import NamedTuple
from urllib.parse import urlsplit

from ..errors import BoxliteError, InvalidArgumentError
from . import credentials
from .api import ApiClient

DEFAULT_URL = "http://127.0.0.1:8200"
API_KEY_VARIABLE = "BOXLITE_API_KEY"


class Access(NamedTuple):
    url: str
    path_prefix: str
    api_key: str
    source: str  # of the key, for people; empty: there is no key


def profile_name(args: Namespace) -> str:
    return args.profile or credentials.DEFAULT_PROFILE


def access(args: Namespace, *, needs_profile: bool = False) -> Access:
    """What the command line, the environment and the profile say together. Raises `BoxliteError` if the file of
    profiles cannot be used, and with `needs_profile` if a profile was asked for that is not there.

    The key and the prefix of a profile are for the server of that profile, and no other server gets them.
    """
    profile = credentials.load(profile_name(args))
    if profile is None:
        if args.profile and needs_profile:
            raise BoxliteError(
                f"there is no profile '{args.profile}' in {credentials.path()}; "
                f"make it with 'boxlite --profile {args.profile} auth login'"
            )
        profile = credentials.Profile()
    url = args.url or profile.url or DEFAULT_URL
    if _origin(url) != _origin(profile.url or DEFAULT_URL):
        profile = credentials.Profile()
    prefix = args.path_prefix or profile.path_prefix
    if key := os.environ.get(API_KEY_VARIABLE):
        return Access(url, prefix, key, f"{API_KEY_VARIABLE} env var")
    source = f"{credentials.path()} [{profile_name(args)}]" if profile.api_key else ""
    return Access(url, prefix, profile.api_key, source)


def connect(args: Namespace) -> ApiClient:
    """A client of the server. Raises `BoxliteError` as `access` does."""
    return client(args, access(args, needs_profile=True))


def client(args: Namespace, where: Access) -> ApiClient:
    """A client for this access. A wrong address ends the command, like other wrong arguments."""
    try:
        return ApiClient(where.url, path_prefix=where.path_prefix, api_key=where.api_key, ca_cert=args.ca_cert)
    except InvalidArgumentError as error:
        parser: ArgumentParser = args.parser
        parser.error(error.message)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    try:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return url, None, None
