"""The operations of openapi.yaml, as the edge has to know them: by method and path, with the scope that each needs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from connexion.utils import sort_routes

from ..tenants.prefixes import PREFIXED
from ..tenants.principal import Principal

OPERATION = "boxlite.operation"  # key of the ASGI scope: the operationId; None for a path without an operation

SCHEME = "KeyScopes"  # the security scheme of openapi.yaml whose requirement names an operation's scope

_TENANT = "/v1/{prefix}/"
_METHODS = ("head", "get", "put", "post", "patch", "delete")


class Operation(NamedTuple):
    id: str
    scope: str  # that a credential has to have; empty where any credential is enough
    is_open: bool  # to callers without a credential
    may_go_on: bool  # for hours: it is a WebSocket, or takes or answers something else than JSON
    path: re.Pattern[str]  # with a group for each parameter

    def parameters_of(self, path: str) -> dict[str, str]:
        """The parameters that a path of this operation holds."""
        match = self.path.fullmatch(path)
        return match.groupdict() if match else {}

    def is_allowed(self, principal: Principal) -> bool:
        return not self.scope or self.scope in principal.scopes


class Operations:
    """Finds operations by method and path, as Connexion's router does. `spec`: that of the API.

    Raises ValueError for a spec with an operation that does not say who may call it, or with a path that the edge would
    take for one below a prefix, and that is none, or the other way round.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        greedy = {p["name"] for p in spec["components"]["parameters"].values() if p["schema"].get("format") == "path"}
        by_method: dict[str, list[tuple[str, Operation]]] = {}
        for path in sort_routes(list(spec["paths"])):  # the router's order: what is most specific comes first
            if path.startswith(_TENANT) != bool(PREFIXED.intersection(path.split("/")[3:4])):
                raise ValueError(
                    f"{path}: its third segment has to be in PREFIXED if its second is a prefix, and only then"
                )
            named = re.compile(_pattern(path, greedy, r"(?P<{}>{})"))
            for method, operation in _of_path(path, spec["paths"][path], named):
                by_method.setdefault(method, []).append((_pattern(path, greedy, "{1}"), operation))
        self._found = {method: [operation for _, operation in found] for method, found in by_method.items()}
        self._patterns = {
            method: re.compile("|".join(f"({pattern})" for pattern, _ in found)) for method, found in by_method.items()
        }

    def find(self, method: str, path: str) -> Operation | None:
        """Find the operation of a request; None for a path or a method that the API does not have."""
        pattern = self._patterns.get(method)
        match = pattern.fullmatch(path) if pattern else None
        return self._found[method][(match.lastindex or 0) - 1] if match else None


def _of_path(path: str, item: Mapping[str, Any], named: re.Pattern[str]) -> Iterator[tuple[str, Operation]]:
    """Yield the operations of a path, by method. A GET serves HEAD too, where that is no operation of its own."""
    for method in _METHODS:
        if method in item:
            yield method.upper(), _operation(f"{method} {path}", item[method], named)
    if "get" in item and "head" not in item:
        yield "HEAD", _operation(f"get {path}", item["get"], named)


def _operation(name: str, spec: Mapping[str, Any], path: re.Pattern[str]) -> Operation:
    security = spec.get("security")
    bodies = [spec.get("requestBody", {}), *spec["responses"].values()]
    is_json = {name for body in bodies for name in body.get("content", ())} <= {"application/json"}
    may_go_on = "101" in spec["responses"] or not is_json
    if security == []:
        return Operation(spec["operationId"], "", is_open=True, may_go_on=may_go_on, path=path)
    scopes = [requirement[SCHEME] for requirement in security or () if SCHEME in requirement]
    if len(scopes) != 1 or len(scopes[0]) > 1:
        raise ValueError(f"{name} does not name its scope under `security`")
    scope = scopes[0][0] if scopes[0] else ""
    return Operation(spec["operationId"], scope, is_open=False, may_go_on=may_go_on, path=path)


def _pattern(path: str, greedy: set[str], form: str) -> str:
    """A regular expression for the paths of a template; `form` has places for a parameter's name and expression."""
    parts = re.split(r"\{(\w+)\}", path)
    return "".join(
        form.format(part, ".+" if part in greedy else "[^/]+") if index % 2 else re.escape(part)
        for index, part in enumerate(parts)
    )
