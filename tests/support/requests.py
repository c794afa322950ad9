"""A request for each operation of openapi.yaml, so that a new operation is among them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from boxlite_server import specs

SPEC = specs.openapi()
METHODS = ("head", "get", "put", "post", "patch", "delete")


class Request(NamedTuple):
    """An operation, how it is asked for, and the scope that it needs."""

    id: str
    kind: str  # http or websocket
    method: str
    path: str  # with {prefix}
    scope: str | None  # None: no credential is needed
    is_of_tenant: bool
    media: str  # the type of the body; empty: there is none
    body: bytes  # the example of the spec


def requests(**parameters: str) -> Iterator[Request]:
    """`parameters`: those of paths, by name; all others are `nosuch`."""
    for path, item in SPEC["paths"].items():
        for method in METHODS:
            if method not in item:
                continue
            operation = item[method]
            scope = None
            if operation["security"]:
                [named] = [entry["KeyScopes"] for entry in operation["security"] if "KeyScopes" in entry]
                scope = named[0] if named else ""
            filled = re.sub(r"\{(?!prefix\})(\w+)\}", lambda match: parameters.get(match[1], "nosuch"), path)
            kinds = ["http", "websocket"] if "101" in operation["responses"] else ["http"]
            media, body = _body(operation)
            for kind in kinds:
                tenant = "{prefix}" in path
                yield Request(operation["operationId"], kind, method.upper(), filled, scope, tenant, media, body)


def _body(operation: dict[str, Any]) -> tuple[str, bytes]:
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        example = content.get("example", next(iter(content.get("examples", {}).values()), {}).get("value"))
        return media, json.dumps(example).encode() if media == "application/json" else b"x"
    return "", b""
