"""Tickets: each stands for a key in the URL of one GET, for browsers, which can send no key when they open a WebSocket
or store a download. A URL is seen by many, and a ticket opens nothing else, and that for a short time.

A ticket is ``bli_<key id>_<expiry>_<signature>``. The signature covers what the ticket is for, and the hash of the
key's secret, so that a ticket ends with that secret.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode

MAX_SECONDS = 60
PARAMETER = "ticket"

_TEXT = re.compile(r"bli_([0-9A-Za-z-]{1,32})_([0-9]{1,12})_([0-9a-f]{64})")


class Ticket(NamedTuple):
    """What a ticket's text says; whether that is true, `is_signed` tells."""

    key_id: str
    expires_at: int  # Unix seconds
    signature: str


def issue(secret: str, key_id: str, secret_sha256: str, expires_at: int, target: str) -> str:
    """The text of a ticket for the GET of `target`. `secret` is the cluster's."""
    return f"bli_{key_id}_{expires_at}_{_signature(secret, key_id, secret_sha256, expires_at, target)}"


def parse(text: str) -> Ticket | None:
    """Read the text of a ticket; None for any other text."""
    match = _TEXT.fullmatch(text)
    return Ticket(match[1], int(match[2]), match[3]) if match else None


def is_signed(ticket: Ticket, secret: str, secret_sha256: str, target: str) -> bool:
    """Whether the cluster issued the ticket for `target`, and for the key's secret with this hash."""
    expected = _signature(secret, ticket.key_id, secret_sha256, ticket.expires_at, target)
    return hmac.compare_digest(ticket.signature, expected)


def target(path: str, query: str) -> str:
    """What a ticket is for: a path, decoded and with its prefix, and its query, however a client has encoded it."""
    return f"{path}?{urlencode(parse_qsl(query, keep_blank_values=True))}"


def split(query: str) -> tuple[str, str | None]:
    """The query without its ticket, and the ticket; None: there is none."""
    if PARAMETER not in query:
        return query, None
    found = None
    kept = []
    for part in query.split("&"):
        name, _, value = part.partition("=")
        if name == PARAMETER:
            found = value
        else:
            kept.append(part)
    return "&".join(kept), found


def _signature(secret: str, key_id: str, secret_sha256: str, expires_at: int, target: str) -> str:
    message = f"ticket {key_id} {expires_at} {secret_sha256} GET {target}"
    return hmac.new(secret.encode(), message.encode(errors="surrogatepass"), hashlib.sha256).hexdigest()
