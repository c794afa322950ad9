"""Text formats that coordinator and worker share: times, JSON, hosts in URLs."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

from .errors import InvalidArgumentError

# Keys of clients, access tokens and tickets: what they are, the id of the key, and what must not be shown.
_SECRETS = re.compile(r"(bl[xti]_[0-9A-Za-z-]{1,32}_)[0-9A-Za-z_-]{20,}")


def timestamp(seconds: float | None) -> str | None:
    """Format Unix seconds as RFC 3339 in UTC, with milliseconds; None stays None."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def unix_time(field: str, text: str) -> float:
    """The Unix time of an RFC 3339 time in the given field of a request. Raises InvalidArgumentError."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = datetime.min
    if time.tzinfo is None:
        raise InvalidArgumentError(f"{field}: '{text}' is not a time with its zone, such as 2026-01-31T12:00:00Z")
    return time.timestamp()


def parse_json(text: str) -> Any:
    """The value of a JSON text that is not trusted.

    Raises ValueError for a text that is not JSON, NaN and Infinity included, for a lone surrogate, which is no
    character, and for a text that is nested too deeply to be read.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        if "\\u" in text:  # JSON can spell a lone surrogate, which no encoding can write
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("it holds a lone surrogate, which is no character") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def without_secrets(text: str) -> str:
    """The text with stars in place of the secrets of API keys, access tokens and tickets."""
    return _SECRETS.sub(r"\1***", text) if "bl" in text else text


def in_url(host: str) -> str:
    """Write a host as it appears in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def join_token(key: str, ca_sha256: str) -> str:
    """The token with which workers join: an API key of workers, and the SHA-256 of the authority's certificate (DER),
    in hexadecimal digits, which tells the right coordinator from any other."""
    return f"{key}.{ca_sha256}"


def split_join_token(text: str | None) -> tuple[str | None, str | None]:
    """The API key and the SHA-256 of a join token; None in place of the latter for an API key alone."""
    match = re.fullmatch(r"(blx_[0-9A-Za-z_-]+)\.([0-9a-f]{64})", text or "")
    return (match[1], match[2]) if match else (text, None)
