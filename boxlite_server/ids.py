"""Ids of boxes, workers and executions, and the names of workers.

Ids come from the operating system's entropy and are safe to show, never to trust as a secret;
secrets have their own function.
"""

from __future__ import annotations

import hashlib
import random
import re
import secrets
import string
from contextvars import ContextVar

# The id of the request under way, as in `request_id`; empty where none is. Log lines and calls to workers carry it.
current_request: ContextVar[str] = ContextVar("current_request", default="")

BASE62 = string.digits + string.ascii_letters
ID_LENGTH = 12  # 71 bits; released clients take 12 or 26 alphanumerics and silently replace anything else
STEM_LENGTH = 8

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_ADJECTIVES = (
    "amber ancient autumn billowing bitter black blue bold brave breezy bright broad calm clear cold cool "
    "crimson curly damp dark dawn deep delicate dry dusty early empty fair fancy fast fragrant fresh frosty "
    "gentle golden green hidden holy icy jolly late lingering little lively long lucky misty morning muddy "
    "mute nameless noisy odd old orange patient plain polished proud purple quiet rapid red restless rough "
    "round royal shiny shy silent silver small snowy soft solitary sparkling spring square steep still summer "
    "sweet swift tall tiny twilight wandering warm white wild winter wispy withered yellow young"
).split()
_NOUNS = (
    "bank bar base bird block boat bonus bread breeze brook bush butterfly cake cell cherry cloud credit "
    "darkness dawn dew disk dream dust feather field fire firefly flower fog forest frog frost glade glitter "
    "grass grove hall harbor hat haze heart hill king lab lake leaf limit math meadow mode moon morning "
    "mountain mouse mud night paper pine poetry pond queen rain recipe resonance rice river salad scene sea "
    "shadow shape silence sky smoke snow snowflake sound star stone sun sunset surf term thunder tooth tree "
    "truth union unit violet voice water waterfall wave wildflower wind wood"
).split()


def new_id() -> str:
    """A box, worker or cluster id: 12 base-62 characters."""
    return "".join(secrets.choice(BASE62) for _ in range(ID_LENGTH))


def of_request(request_key: str) -> str:
    """An id for what a repeatable request creates: it begins with the stem of the request's key. Each attempt gets
    an id of its own, since a worker creates nothing under an id that it was told to remove."""
    return stem(request_key) + new_id()[STEM_LENGTH:]


def stem(request_key: str) -> str:
    """The first 8 characters of the ids of all attempts at a request."""
    number = int.from_bytes(hashlib.sha256(request_key.encode()).digest())
    return "".join(BASE62[number // 62**place % 62] for place in range(STEM_LENGTH))


def execution_id(request_key: str | None = None) -> str:
    """An execution id: 32 hexadecimal digits; the same request key always gives the same id."""
    return hashlib.sha256(request_key.encode()).hexdigest()[:32] if request_key else secrets.token_hex(16)


def request_id() -> str:
    """A request id, as it appears in error bodies, `X-Request-Id` and logs."""
    return "req_" + secrets.token_hex(10)


def parse_request_id(text: str) -> str:
    """The request id that somebody else gives; empty where the text cannot be one."""
    return text if _REQUEST_ID.fullmatch(text) else ""


def worker_name(rng: random.Random) -> str:
    """A worker name such as ``frosty-meadow-42``; not unique by itself."""
    return f"{rng.choice(_ADJECTIVES)}-{rng.choice(_NOUNS)}-{rng.randrange(100)}"


def worker_host(worker_id: str) -> str:
    """The name in the certificate of the worker with that id. Nobody looks it up. Host names have no upper case, so the
    id stands in it as hexadecimal digits."""
    return f"{worker_id.encode().hex()}.worker.boxlite.invalid"


def secret() -> str:
    """A secret of 256 bits, URL-safe."""
    return secrets.token_urlsafe(32)
