"""Requests that no honest client sends, made for every operation of openapi.yaml."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from support.cluster import Cluster
from support.operations import METHODS, SPEC

DIGITS = "9" * 5000  # more than Python turns into a number
NESTED = "[" * 960 + "]" * 960  # can just be read
TOO_NESTED = "[" * 100_000

_HOLE = "<hole>"
_HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}

# Texts as they stand in a URL.
URL_TEXTS = [
    *("%00", "a%00b", "%FF%FE", "%ED%A0%80", "%F0%9F%92%A9", "%0D%0AX-Evil:%201", "%", "%zz", "..%2F..%2Fetc", "%2F"),
    *("-1", "0", "1e999", "nan", "inf", "true", "null", "[]", "{}", "%5B%5D", "", "%20", "%0A", "'%22;--", "%D9%A3"),
    *("9" * 19, "9" * 20, "9" * 400, DIGITS, "-" + DIGITS, "a" * 10_000, "%C3%A9" * 3000, "1_0", "0x10", "1.5"),
]

# Values as they stand in JSON.
JSON_TEXTS = [
    *("null", "true", "0", "-1", "1.5", "1e308", "1e999", "-1e999", "NaN", "Infinity", "9223372036854775808"),
    *("18446744073709551616", "9" * 400, DIGITS, "-" + DIGITS, "1." + DIGITS, "1e" + DIGITS, "2147483648", "1e-400"),
    *('""', '"\\u0000"', '"a\\u0000b"', '"\\ud800"', '"\\udc00\\ud800"', '"\\u2028"', '"\\n"', '"a\\r\\nb"'),
    *('"' + "a" * 100_000 + '"', f'"{DIGITS}"', '"-1"', '"../../etc"', '"a=b"', '"💩"', '"{}"', '"%s"', '"\u202e"'),
    *("[]", "{}", "[null]", "[[]]", "[0]", '["\\u0000"]', '[""]', '["\\ud800"]', "[" + "1," * 9999 + "1]"),
    *('{"": ""}', '{"\\u0000": "\\u0000"}', '{"a": "\\u0000"}', '{"a\\u0000": "b"}', '{"\\ud800": 1}', '{"a=b": "c"}'),
    *('{"a": 1}', '{"a": null}', '{"' + "k" * 70_000 + '": "v"}', '{"A": "' + "v" * 200_000 + '"}', NESTED, TOO_NESTED),
    *('{"a": ' * 900 + "1" + "}" * 900, "", "]", "{", '"', "nul", "\ufeff1", '{"a": 1, "a": 2}'),
]

TYPES = [
    *("", "text/plain", "application/json; charset=nosuch", "application/json; charset=utf-16", "APPLICATION/JSON"),
    *("application/x+json", "application/*", "*/*", "/", ";", "application/json;;;=", "multipart/form-data"),
    *("multipart/form-data; boundary=", "application/x-www-form-urlencoded; charset=nosuch", "\xff\xfe", "a" * 5000),
]

HEADERS = {
    "Last-Event-ID": ["", "-1", "1.5", "0x1", "9" * 18, "9" * 19, "9" * 20, DIGITS, "\xb2", "\xff", "a" * 5000],
    "Idempotency-Key": ["\xff", "a" * 256, "a\tb", DIGITS, " ", "\xa0"],
    "Authorization": [
        "Bearer",
        "Bearer  ",
        "Bearer \xff",
        "Basic \xff",
        f"Bearer {DIGITS}.{DIGITS}",
        "Bearer .",
        "x" * 9999,
    ],
    "X-Request-Id": ["", "\xff", DIGITS, "a" * 129],
    "Accept": ["\xff", ";", "*/*;q=" + DIGITS, "application/x-ndjson"],
    "Expect": ["100-continue", "x"],
    "Range": [f"bytes={DIGITS}-", "bytes=--1", "x"],
    "If-Modified-Since": ["x", "Thu, 01 Jan 99999 00:00:00 GMT"],
    "If-None-Match": ["\xff", "*", '"', 'W/"x"', DIGITS, ",,,", '"x", ' * 1000],
    "If-Match": ["\xff", "*", '"', 'W/"x"', DIGITS, ",,,", '"x", ' * 1000],
    "If-Range": ["\xff", "x", '"', 'W/"x"', DIGITS, "Thu, 01 Jan 99999 00:00:00 GMT"],
    "Cookie": ["\xff=\xff"],
    "X-Close-Stdin": ["\xff"],
    "Upgrade": ["h2c", "\xff"],
    "X-Forwarded-For": ["\xff", ",,,", "a" * 5000],
    "X-Forwarded-Proto": ["\xff", "javascript"],
}


def _nested(depth: int) -> list[Any]:
    """Lists in each other, not so deep that a program which is deep in calls itself could not write them."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


# The same, for programs that write JSON and URLs themselves.
HOSTILE_TEXTS = [
    unquote(text, errors="surrogateescape") for text in URL_TEXTS if "%ED" not in text and "%FF" not in text
]
HOSTILE_VALUES: list[Any] = [
    *(10**400, -(10**400), 10**4200, 1e308, float("inf"), float("nan"), 2**31, 2**63, 2**64, -1, 0, True, None, 1.5),
    *("\0", "a\0b", "\ud800", "\udc00\ud800", "", "\n", "a" * 100_000, DIGITS, "💩", [], {}, [None], [[]], ["\0"]),
    *({"\0": "\0"}, {"a": "\0"}, {"a": "\ud800"}, {"": ""}, {"a": 1}, _nested(200), ["a"] * 10_000),
]


# What a page token may hold instead of the place that it names.
_PLACES = (10**400, -(10**400), float("inf"), float("nan"), "\0", "\ud800", "9" * 400, "nan", "", None, True, [], {})


def _token(place: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode()


# Page tokens that no server has issued, and that can be read.
MADE_UP_TOKENS = [_token(place) for held in _PLACES for place in ([held, "a"], [1, held], held)]


class Hostile(NamedTuple):
    """One request; `why` says what is wrong with it."""

    why: str
    method: str
    target: str
    headers: dict[str, str]
    body: bytes


Known = Callable[[str], Mapping[str, str]]


def hostile_requests(known: Known, skip: Collection[str], texts: Callable[[str], bool]) -> Iterator[Hostile]:
    """Yield hostile requests to all operations but those to `skip`, made of the texts that fulfil `texts`.

    `known` tells, for the id of an operation, the path parameters that name what exists; it is asked when the turn of
    that operation comes.
    """
    tags: set[str] = set()
    in_url, in_json = list(filter(texts, URL_TEXTS)), list(filter(texts, JSON_TEXTS))
    for tag, requests in _operations(known, skip, in_url, in_json):
        yield from requests.of_operation()
        if tag not in tags:  # what does not depend on the operation
            yield from requests.of_all()
            tags.add(tag)


def misleading_requests(known: Known, paths: Collection[str], samples: Mapping[str, bytes]) -> Iterator[Hostile]:
    """Yield requests to all operations, as HTTP and as WebSocket, that have one of the paths in each parameter and in
    each field of a body. `known`: see `hostile_requests`; `samples`: bodies by their type that are not JSON."""
    in_url = [text for path in paths for text in (quote(path, safe=""), quote(quote(path, safe=""), safe=""))]
    for _, requests in _operations(known, (), in_url, [json.dumps(path) for path in paths]):
        yield from requests.of_parameters(samples)


def misleading_places() -> Iterator[str]:
    """Yield the `why` of each place in which `misleading_requests` has to have put a path, in other words."""
    for item in SPEC["paths"].values():
        for operation in (item[method] for method in METHODS if method in item):
            name = operation["operationId"]
            for given in [*item.get("parameters", []), *operation.get("parameters", [])]:
                parameter = resolved(given)
                yield f"{name}: {parameter['in']} {parameter['name']}"
                if "101" in operation["responses"]:
                    yield f"{name}: {parameter['in']} {parameter['name']} of a WebSocket"
            for content in operation.get("requestBody", {}).get("content", {}).values():
                yield from (f"{name}: {field}" for field in resolved(content["schema"]).get("properties", {}))


def _operations(
    known: Known, skip: Collection[str], in_url: list[str], in_json: list[str]
) -> Iterator[tuple[str, _Requests]]:
    """The requests to each operation, with its tag."""
    for path, item in SPEC["paths"].items():
        for method in item.keys() & set(METHODS):
            operation = item[method]
            if operation["operationId"] not in skip:
                there = known(operation["operationId"])
                yield operation["tags"][0], _Requests(path, method.upper(), item, operation, there, in_url, in_json)


class _Requests:
    """The hostile requests to one operation."""

    def __init__(
        self,
        path: str,
        method: str,
        item: dict[str, Any],
        operation: dict[str, Any],
        known: Mapping[str, str],
        url_texts: list[str],
        json_texts: list[str],
    ) -> None:
        parameters = [resolved(p) for p in [*item.get("parameters", []), *operation.get("parameters", [])]]
        self.name, self.path, self.method = operation["operationId"], path, method
        self.url_texts, self.json_texts = url_texts, json_texts
        self.names = {p["name"]: known.get(p["name"], "x") for p in parameters if p["in"] == "path"}
        self.queries = [p["name"] for p in parameters if p["in"] == "query"]
        self.headers = [p["name"] for p in parameters if p["in"] == "header"]
        self.query = "?" + "&".join(f"{p['name']}=1" for p in parameters if p["in"] == "query" and p.get("required"))
        self.query += "&follow=false" if "follow" in self.queries else ""  # else it would take as long as the client
        kinds = operation.get("requestBody", {}).get("content", {})
        self.kind = next(iter(kinds), "")
        self.typed = {"Content-Type": self.kind} if self.kind else {}
        self.schema = resolved(kinds[self.kind]["schema"]) if self.kind == "application/json" else {}
        self.whole = _smallest(self.schema) if self.schema else None
        if operation["tags"] == ["Workers"] and "example" in kinds.get(self.kind, {}):
            self.whole = kinds[self.kind]["example"]
            self.whole = {**self.whole, "url": "http://127.0.0.1:9"} if "url" in self.whole else self.whole
        self.body = json.dumps(self.whole).encode() if self.schema else b""
        self.is_websocket = "101" in operation["responses"]
        form = kinds.get("application/x-www-form-urlencoded")
        self.fields = [*resolved(form["schema"])["properties"]] if form else []

    def of_parameters(self, samples: Mapping[str, bytes]) -> Iterator[Hostile]:
        body = samples.get(self.kind)
        for of_whom, handshake in [("", {}), *([(" of a WebSocket", _HANDSHAKE)] if self.is_websocket else [])]:
            for text in self.url_texts:
                for name in self.names:
                    yield self._request(f"path {name}{of_whom}", path={name: text}, headers=handshake, body=body)
                for name in self.queries:
                    yield self._request(f"query {name}{of_whom}", query=f"&{name}={text}", headers=handshake, body=body)
            for name in self.headers:
                for text in self.url_texts[::4]:  # many of them let a request pass
                    sent = {name: f"{text}/{self.name}", **handshake}  # an Idempotency-Key is for one operation
                    yield self._request(f"header {name}{of_whom}", headers=sent, body=body)
        if self.schema:
            yield from self._of_fields()
        for name in self.fields:
            for text in self.url_texts[:2]:  # each counts as a wrong key
                yield self._request(name, body="&".join(f"{each}={text}" for each in self.fields).encode())

    def of_operation(self) -> Iterator[Hostile]:
        for name in self.names.keys() - {"prefix"}:
            for text in self.url_texts:
                yield self._request(f"path {name}", path={name: text})
        for name in self.queries:
            for text in self.url_texts:
                yield self._request(f"query {name}", query=f"&{name}={text}")
            yield self._request(f"repeated {name}", query=f"&{name}=1" * 2000)
        for name in self.headers:
            for value in HEADERS[name]:
                yield self._request(name, headers={name: value})
        if "page_token" in self.queries:
            for text in self.json_texts:
                for place in (text, f"[{text}, {text}]", f'["a", {text}]', f'[{text}, "a"]'):
                    token = base64.urlsafe_b64encode(place.encode()[:40_000]).decode()
                    yield self._request("a made-up page_token", query=f"&page_token={token}")
        if self.kind == "application/x-www-form-urlencoded":
            for text in [*self.url_texts, "&" * 60_000, "&a=1" * 1100, "=" * 60_000, "%" * 60_000, ";" * 60_000]:
                form = f"grant_type=client_credentials&client_id={text}&client_secret={text}"
                yield self._request("form", body=form.encode())
        if self.schema:
            yield from self._of_json()

    def _of_json(self) -> Iterator[Hostile]:
        for text in self.json_texts:
            yield self._request("body", body=text.encode())
        yield from self._of_fields()

    def _of_fields(self) -> Iterator[Hostile]:
        for where, whole in _with_holes(self.schema, self.whole):
            for text in self.json_texts:
                yield self._request(where, body=json.dumps(whole).replace(f'"{_HOLE}"', text).encode())

    def of_all(self) -> Iterator[Hostile]:
        for name, values in HEADERS.items():
            for value in values:
                yield self._request(name, headers={name: value})
        yield self._request("many headers", headers={f"X-{n}": "v" for n in range(3000)})
        for value in TYPES:
            yield self._request("Content-Type", headers={"Content-Type": value}, body=self.body or b"{}")
        for text in self.url_texts:
            yield self._request("path prefix", path={"prefix": text})
            yield self._request("unknown query", query=f"&unknown={text}&{text}")
        if self.schema:
            for raw in (b"\xff\xfe", b"\x00", b"\xef\xbb\xbf{}", '{"a": 1}'.encode("utf-16"), b" " * 3_000_000):
                yield self._request("raw body", body=raw)

    def _request(
        self,
        why: str,
        *,
        path: Mapping[str, str] | None = None,
        query: str = "",
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Hostile:
        target = self.path.format_map({**self.names, **(path or {})}) + self.query + query
        sent = {**self.typed, **(headers or {})}
        return Hostile(f"{self.name}: {why}", self.method, target, sent, self.body if body is None else body)


def unmake(cluster: Cluster, target: str, made: dict[str, Any]) -> None:
    """Remove the box or the volume that the request has made, under the prefix that it was made in."""
    for collection, key in (("/volumes", "id"), ("/boxes", "box_id")):
        prefix, found, rest = target.partition(collection)
        last = rest.partition("?")[0].rpartition("/")[2]
        if found and key in made and last in ("", "import", "clone"):
            cluster.http("DELETE", f"{prefix}{collection}/{made[key]}?force=true")


def answer(cluster: Cluster, request: Hostile) -> tuple[int, bytes]:
    """The status and body of the answer to a request that is sent as it is; of a stream, only the status."""
    lines = [f"{request.method} {request.target} HTTP/1.1", "Host: 127.0.0.1"]
    sent = {"Connection": "close", **({"Authorization": f"Bearer {cluster.api_key}"} if cluster.api_key else {})}
    lines += [f"{name}: {value}" for name, value in {**sent, **request.headers}.items()]
    if request.body or request.method in ("POST", "PUT", "PATCH"):
        lines.append(f"Content-Length: {len(request.body)}")
    with socket.create_connection(("127.0.0.1", cluster.port), timeout=60) as connection:
        with contextlib.suppress(ConnectionError):  # the answer may come before the end of the body
            connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + request.body)
        response = http.client.HTTPResponse(connection, method=request.method)
        response.begin()
        is_stream = response.getheader("content-type", "").startswith("text/event-stream")
        return response.status, b"" if is_stream or response.status == 101 else response.read()


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        node: Any = SPEC
        for part in schema["$ref"].removeprefix("#/").split("/"):
            node = node[part]
        schema = node
    for form in ("allOf", "anyOf", "oneOf"):
        for each in schema.get(form, []):
            schema = {**resolved(each), **schema}
    return schema


def _smallest(schema: dict[str, Any]) -> Any:
    """A value that fits, as small as can be."""
    schema = resolved(schema)
    if "enum" in schema:
        return schema["enum"][0]
    match schema.get("type"):
        case "object":
            known = schema.get("properties", {})
            return {each: _smallest(known[each]) for each in schema.get("required", [])}
        case "array":
            return [_smallest(schema["items"])] * schema.get("minItems", 0)
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return False
        case _:
            return schema.get("example", "x" * max(schema.get("minLength", 1), 1))


def _with_holes(schema: dict[str, Any], whole: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield copies of `whole` with one value replaced by a hole, at every place that the schema knows."""
    schema = resolved(schema)
    if not isinstance(whole, dict):
        return
    for name, part in schema.get("properties", {}).items():
        place, part = f"{where}{name}", resolved(part)
        yield place, {**whole, name: _HOLE}
        inner = resolved(part["items"]) if part.get("type") == "array" else part
        for deeper, value in _with_holes(inner, _smallest(inner), f"{place}."):
            yield deeper, {**whole, name: [value] if part.get("type") == "array" else value}
