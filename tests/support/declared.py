"""The headers that openapi.yaml declares for answers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from connexion.json_schema import resolve_refs

from boxlite_server import specs

_OF_HTTP = {"date", "server", "connection", "content-length", "content-type", "transfer-encoding"}


def undeclared(method: str, path: str, status: int, headers: Iterable[str]) -> set[str]:
    """The headers of an answer that the spec says nothing of, in lower case."""
    item = max((item for pattern, item in _items() if pattern.fullmatch(path.partition("?")[0])), key=_fixed)[1]
    responses = item.get(method.lower(), item["get"])["responses"]
    response = responses.get(str(status), responses["default"])
    return {name.lower() for name in headers} - _OF_HTTP - {name.lower() for name in response.get("headers", {})}


def _fixed(item: tuple[str, Any]) -> int:
    """How much of a path is no parameter: the router takes the path that has the most."""
    return len(re.sub(r"\{.*?\}", "", item[0]))


@cache
def _items() -> list[tuple[re.Pattern[str], tuple[str, Any]]]:
    paths = resolve_refs(specs.openapi())["paths"]
    return [
        (re.compile(re.sub(r"\{[a-z_]+\}", "[^/]+", path.replace("/{prefix}", "(/[^/]+)?"))), (path, item))
        for path, item in paths.items()
    ]
