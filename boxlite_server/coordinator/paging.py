"""Page tokens: the place behind which the next page begins, opaque to clients and good while entries come and go."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable
from typing import Any, TypeVar

from .. import errors

A = TypeVar("A")
B = TypeVar("B")


def encode_token(place: tuple[float | str, str]) -> str:
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode()


def decode_token(token: str, first: Callable[[Any], A], second: Callable[[Any], B]) -> tuple[A, B]:
    """The two parts of a place, each made what it has to be. Raises InvalidArgumentError."""
    try:
        one, two = json.loads(base64.b64decode(token, altchars=b"-_", validate=True))
        return first(one), second(two)
    except (binascii.Error, ValueError, TypeError):
        raise errors.InvalidArgumentError("pageToken is none of ours; use next_page_token of the page before") from None
