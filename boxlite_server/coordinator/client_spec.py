"""The spec that clients are generated from, which is derived from openapi.yaml.

openapi.yaml says all that this server takes, from every generation of clients: prefixes in paths, null for what is left
out, several spellings. A generator makes a parameter or a type of each of them. The spec made here has one way to say
each thing, and only what a generated client can use.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import yaml

Node = dict[str, Any]

_DESCRIPTION = """\
Boxes in which commands run, on many hosts behind one address.

This document is made for generators of clients, from `/openapi.yaml` of the same server, which says more: WebSockets,
prefixes in paths, and what older clients send. Paths mean boxes, images and volumes of the prefix of the API key.

Events come as server-sent events in an answer that may last for hours: read it as it comes. Every error has the body of
`ErrorResponse`; programs tell errors apart by its `code`.
"""

_SERVER = {
    "url": "{base_url}",
    "description": "A coordinator.",
    "variables": {"base_url": {"default": "http://127.0.0.1:8200", "description": "Where the coordinator listens."}},
}

_METHODS = ("head", "get", "put", "post", "patch", "delete")
_ERROR = {"$ref": "#/components/schemas/ErrorResponse"}
_CONDITIONAL = ("206", "304")  # the answers to what a client asks for on top of an operation
_JSON, _EVENTS = "application/json", "text/event-stream"


def derive(spec: Mapping[str, Any], is_served: Callable[[Mapping[str, Any]], bool]) -> Node:
    """The spec for generators. `spec`: that of the API. `is_served`: whether the server does what an operation of it
    asks for, and does not always refuse."""
    made = _without_deprecated(copy.deepcopy(dict(spec)))
    components = made["components"]
    components["securitySchemes"].pop("KeyScopes")
    _name_error_codes(components)
    for node in _mappings(components):
        if None in node.get("enum", ()):  # generators know it from `nullable`, and would make a name of it
            node["enum"] = [value for value in node["enum"] if value is not None]
    paths = {}
    for path, item in made["paths"].items():
        operations = {
            method: _operation(item[method])
            for method in _METHODS
            if method in item and _is_for_clients(path, item[method]) and is_served(item[method])
        }
        if operations:
            paths[path.replace("/{prefix}", "")] = {**_without_prefix(item), **operations}
    _make_requests_plain(paths, components)
    tags = {tag for operation in _operations(paths) for tag in operation["tags"]}
    return made | {
        "info": made["info"] | {"description": _DESCRIPTION},
        "servers": [_SERVER],
        "security": [{"BearerAuth": []}],
        "tags": [tag for tag in made["tags"] if tag["name"] in tags],
        "paths": paths,
        "components": _used(components, paths),
    }


def as_yaml(spec: Node) -> bytes:
    """The spec as a file for people too: texts of several lines stay what they are."""
    return bytes(yaml.dump(spec, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120, encoding="utf-8"))


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    pass


_Dumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, "|" if "\n" in text else None)
)


def _without_deprecated(spec: Node) -> Node:
    """Drop the operations, parameters and properties that have newer ones beside them."""
    parameters = spec["components"]["parameters"]
    old = {f"#/components/parameters/{name}" for name, each in parameters.items() if each.get("deprecated")}
    for node in list(_mappings(spec)):
        for name, each in list(node.items()):
            if isinstance(each, dict) and each.get("deprecated") is True:
                del node[name]
        if isinstance(node.get("parameters"), list):
            node["parameters"] = [each for each in node["parameters"] if each.get("$ref") not in old]
    return spec


def _name_error_codes(components: Node) -> None:
    """Leave out the errors of paths below `/v1/default/`, whose codes are numbers, and make one form of all others."""
    components["schemas"]["ErrorDetail"]["properties"]["code"] = {"$ref": "#/components/schemas/ErrorCode"}
    answer = components["responses"]["Error"]
    answer["description"] = "Any error."
    answer["headers"]["Retry-After"] = {"$ref": "#/components/headers/RetryAfter"}
    del answer["content"][_JSON]["examples"]["integer_code"]


def _is_for_clients(path: str, operation: Node) -> bool:
    """False for WebSockets, which no generator knows, and for what workers or Prometheus alone ask."""
    of_workers = path.startswith("/v1/admin/") and _scopes(operation) in ([], ["worker:register"])
    return "101" not in operation["responses"] and not of_workers and path != "/metrics"


def _scopes(operation: Node) -> list[str]:
    return [scope for each in operation["security"] for scope in each.get("KeyScopes", ())]


def _without_prefix(item: Node) -> Node:
    """What all operations of a path share, but for the prefix."""
    prefix = {"$ref": "#/components/parameters/Prefix"}
    shared = [each for each in item.get("parameters", ()) if each != prefix]
    return {"parameters": shared} if shared else {}


def _operation(operation: Node) -> Node:
    """One operation, with one form of errors, and one of answers: nothing where an answer may be empty, else JSON where
    there is any. A stream is of bytes: generated code hands them over as they come, where it would read a text to its
    end."""
    scopes = _scopes(operation)
    for scope in scopes:
        operation["description"] = f"{operation['description'].rstrip()}\n\nThe API key needs the scope `{scope}`."
    if operation["security"]:
        del operation["security"]
    answers = operation["responses"].items()
    responses = {status: each for status, each in answers if not (_is_error(status, each) or status in _CONDITIONAL)}
    operation["responses"] = responses | {"default": operation["responses"]["default"]}
    for response in responses.values():
        response.pop("links", None)
        content = response.get("content", {})
        if "204" in responses:
            response.pop("content", None)
        elif _JSON in content:
            response["content"] = {_JSON: content[_JSON]}
        elif _EVENTS in content:
            content[_EVENTS] = {"schema": {"type": "string", "format": "binary"}}
    return operation


def _is_error(status: str, response: Node) -> bool:
    """Whether this is an answer with the body of all errors, or a HEAD's that something is absent."""
    schema = response.get("content", {}).get(_JSON, {}).get("schema", _ERROR)
    return status == "default" or (status >= "4" and schema == _ERROR)


def _make_requests_plain(paths: Node, components: Node) -> None:
    """Leave out nulls and the shorter ones of several forms, in requests. A schema that answers have too keeps them
    there, and gets a plain twin."""
    schemas = components["schemas"]
    bodies = [operation.get("requestBody", {}) for operation in _operations(paths)]
    asked = _reached(bodies, components)
    answered = _reached([operation["responses"] for operation in _operations(paths)], components)
    twins = {
        ref: f"{ref}Input"
        for ref in asked & answered
        if any("nullable" in node or "anyOf" in node for node in _mappings(_expanded(ref, components)))
    }
    for ref in asked:
        name = ref.rpartition("/")[2]
        schemas[twins.get(ref, ref).rpartition("/")[2]] = _plain(schemas[name], twins)
    for body in bodies:
        for media in body.get("content", {}).values():
            media["schema"] = _plain(media["schema"], twins)


def _plain(node: Any, twins: Mapping[str, str]) -> Any:
    if isinstance(node, list):
        return [_plain(each, twins) for each in node]
    if not isinstance(node, dict):
        return node
    if "anyOf" in node:
        return _plain(node["anyOf"][-1], twins)
    if "$ref" in node:
        return {"$ref": twins.get(node["$ref"], node["$ref"])}
    return {key: _plain(each, twins) for key, each in node.items() if key != "nullable"}


def _operations(paths: Node) -> Iterator[Node]:
    for item in paths.values():
        yield from (item[method] for method in _METHODS if method in item)


def _used(components: Node, paths: Node) -> Node:
    """The components that the paths refer to, and the one scheme of authentication."""
    used = _reached(paths, components)
    kept = {
        kind: {name: each for name, each in named.items() if f"#/components/{kind}/{name}" in used}
        for kind, named in components.items()
    }
    kept["securitySchemes"] = components["securitySchemes"]
    return {kind: named for kind, named in kept.items() if named}


def _reached(node: Any, components: Node) -> set[str]:
    """All references at and below `node`, and in what these mean."""
    reached: set[str] = set()
    pending = [node]
    while pending:
        for each in _mappings(pending.pop()):
            ref = each.get("$ref")
            if isinstance(ref, str) and ref not in reached:
                reached.add(ref)
                pending.append(_meant(ref, components))
    return reached


def _expanded(ref: str, components: Node) -> list[Node]:
    """What a reference means, and all that is referred to there."""
    return [_meant(each, components) for each in {ref, *_reached(_meant(ref, components), components)}]


def _meant(ref: str, components: Node) -> Node:
    _, _, kind, name = ref.split("/")
    meant: Node = components[kind][name]
    return meant


def _mappings(node: Any) -> Iterator[Node]:
    """Every mapping at and below `node`."""
    if isinstance(node, dict):
        yield node
    for each in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _mappings(each)
