"""Which part of a file a request asks for, and under which conditions, as RFC 9110 has it. An `etag` is a strong one,
with its quotes."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..errors import PreconditionFailedError, RangeNotSatisfiableError

_TAG = re.compile(r'(?:W/)?"[^"]*"')
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.IGNORECASE)


def check_match(headers: Mapping[str, str], etag: str) -> None:
    """Raise PreconditionFailedError for a file that `If-Match` does not name."""
    wanted = headers.get("if-match")
    if wanted is not None and wanted.strip() != "*" and etag not in tags(wanted):
        raise PreconditionFailedError("the file has changed: If-Match does not name its present ETag")


def is_known(headers: Mapping[str, str], etag: str) -> bool:
    """Whether the client has the file already, as its `If-None-Match` says."""
    known = headers.get("if-none-match")
    return known is not None and (known.strip() == "*" or etag in (tag.removeprefix("W/") for tag in tags(known)))


def part(headers: Mapping[str, str], etag: str, size: int) -> range | None:
    """The bytes that `Range` asks for; None: all. A range that this server does not know, such as several at once, is
    ignored, and so is the range of a file that `If-Range` does not name. Raises RangeNotSatisfiableError."""
    match = _RANGE.fullmatch(headers.get("range", "").replace(" ", ""))
    if match is None or match[1] + match[2] == "" or headers.get("if-range", etag).strip() != etag:
        return None
    if not match[1]:
        start, stop = max(size - int(match[2]), 0), size
    else:
        start, stop = int(match[1]), min(int(match[2]) + 1, size) if match[2] else size
        if match[2] and int(match[2]) < start:
            return None
    if start >= stop:
        raise RangeNotSatisfiableError(size)
    return range(start, stop)


def tags(header: str) -> list[str]:
    """The tags that a header names. What is no list of tags names none."""
    found = [tag.strip() for tag in header.split(",")]
    return found if all(map(_TAG.fullmatch, found)) else []
