"""The HTTP surface by itself: every refusal has the contract's body, whoever refuses."""

from __future__ import annotations

import base64
import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from connexion.json_schema import resolve_refs
from support.cluster import Cluster
from support.declared import undeclared
from support.keys import KEY

SPEC = yaml.safe_load((Path(__file__).parents[3] / "openapi.yaml").read_text())
RESOLVED = resolve_refs(SPEC)
EMPTY_PAGE = {"boxes": [], "next_page_token": None}
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture(scope="module")
def lonely(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A coordinator without workers."""
    cluster = Cluster(tmp_path_factory.mktemp("lonely"), docker_host="unix:///nowhere")
    cluster.start_coordinator()
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A coordinator with an API key; requests of this cluster carry it unless told otherwise."""
    cluster = Cluster(tmp_path_factory.mktemp("locked"), docker_host="unix:///nowhere", api_key=KEY)
    cluster.start_coordinator()
    yield cluster
    cluster.close()


def error_of(answer: tuple[int, dict[str, str], Any]) -> tuple[int, str, Any]:
    """Status, type and code of an error; asserts the form of the whole answer."""
    status, headers, body = answer
    assert set(body) == {"error"}, body
    error = body["error"]
    assert set(error) == {"message", "type", "code", "request_id"}
    assert error["message"]
    assert headers["x-request-id"] == error["request_id"]
    assert headers["content-type"] == "application/json"
    return status, error["type"], error["code"]


def token(place: object) -> str:
    """A page token that no server has issued."""
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode()


BIND = {"host_path": "/srv", "guest_path": "/a"}

BAD_REQUESTS = [
    ("GET", "/v1/nosuch", None, {}, 404, "not_found"),
    ("GET", "/nosuch", None, {}, 404, "not_found"),
    ("GET", "/", None, {"accept": "x"}, 307, None),
    ("GET", "/swagger-ui/nosuch.js", None, {}, 404, "not_found"),
    ("GET", "/v1/admin/boxes", None, {}, 404, "not_found"),
    ("POST", "/v1/admin/reconcile", {}, {}, 400, "invalid_argument"),
    ("POST", "/v1/admin/reconcile", {"dry_run": True, "worker": "nobody"}, {}, 404, "not_found"),
    ("GET", "/v1/a/b/boxes", None, {}, 404, "not_found"),
    ("GET", "/v1/%00/boxes", None, {}, 404, "not_found"),
    ("GET", "/%ff%fe", None, {}, 404, "not_found"),
    ("PATCH", "/v1/boxes", None, {}, 405, "unsupported"),
    ("BREW", "/v1/boxes", None, {}, 405, "unsupported"),
    ("POST", "/openapi.yaml", None, {}, 405, "unsupported"),
    ("GET", "/v1/boxes/nosuch", None, {}, 404, "not_found"),
    ("GET", "/v1/boxes/%00", None, {}, 404, "not_found"),
    ("DELETE", "/v1/boxes/nosuch", None, {}, 404, "not_found"),
    ("POST", "/v1/boxes/nosuch/start", None, {}, 404, "not_found"),
    ("POST", "/v1/boxes/nosuch/stop", None, {}, 404, "not_found"),
    ("POST", "/v1/boxes/nosuch/exec", {"command": "ls"}, {}, 404, "not_found"),
    ("GET", "/v1/boxes/nosuch/executions/x", None, {}, 404, "not_found"),
    ("GET", "/v1/boxes/nosuch/executions/x/output", None, {}, 404, "not_found"),
    ("POST", "/v1/boxes/nosuch/executions/x/input", b"abc", {}, 404, "not_found"),
    ("GET", "/v1/boxes/nosuch/executions/x/attach", None, {}, 426, "invalid_argument"),
    ("GET", "/v1/admin/workers/nosuch", None, {}, 404, "not_found"),
    ("GET", "/v1/admin/workers/by-box/nosuch", None, {}, 404, "not_found"),
    ("POST", "/v1/boxes", b"", JSON, 400, "invalid_argument"),
    ("POST", "/v1/boxes", b"{", JSON, 400, "invalid_argument"),
    ("POST", "/v1/boxes", b"[]", JSON, 400, "invalid_argument"),
    ("POST", "/v1/boxes", b"null", JSON, 400, "invalid_argument"),
    ("POST", "/v1/boxes", b'{"image": NaN}', JSON, 400, "invalid_argument"),
    ("POST", "/v1/boxes", b'{"image": "\xff"}', JSON, 400, "invalid_argument"),
    ("POST", "/v1/boxes", b'{"image": "\\ud800"}', JSON, 400, "invalid_argument"),
    ("POST", "/v1/boxes", b"[" * 100_000, JSON, 400, "invalid_argument"),
    ("POST", "/v1/boxes", b" " * (3 << 20), JSON, 413, "invalid_argument"),
    ("POST", "/v1/boxes", b"x=1", {"Content-Type": "text/plain"}, 415, "invalid_argument"),
    ("POST", "/v1/boxes", {"image": 3}, {}, 400, "invalid_argument"),
    ("POST", "/v1/boxes", {"image": "a", "cpus": 0}, {}, 400, "invalid_argument"),
    ("POST", "/v1/boxes", {"image": "a", "cpus": 1e400}, {}, 400, "invalid_argument"),
    ("POST", "/v1/boxes", {"image": "a", "name": "../x"}, {}, 400, "invalid_argument"),
    ("POST", "/v1/boxes", {"image": "a", "name": "web\n"}, {}, 400, "invalid_argument"),
    ("POST", "/v1/boxes", {"image": "a", "env": {"A": 1}}, {}, 400, "invalid_argument"),
    ("POST", "/v1/boxes", {"image": "a", "env": {"A=B": "1"}}, {}, 400, "invalid_argument"),
    ("POST", "/v1/boxes", {"image": "a", "network": {"mode": "sometimes"}}, {}, 400, "invalid_argument"),
    ("POST", "/v1/boxes", {"image": "a", "network": {"mode": "enabled", "allow_net": ["x"]}}, {}, 400, "unsupported"),
    ("POST", "/v1/boxes", {"ports": [{"guest_port": 80}], "network": "disabled"}, {}, 400, "invalid_argument"),
    ("POST", "/v1/boxes", {"ports": [{"guest_port": 80, "host_ip": "here"}]}, {}, 400, "invalid_argument"),
    ("POST", "/v1/boxes", {"ports": [{"guest_port": p, "host_port": 9} for p in (1, 2)]}, {}, 400, "invalid_argument"),
    ("POST", "/v1/boxes", {"volumes": [{"guest_path": "/a"}]}, {}, 400, "invalid_argument"),
    ("POST", "/v1/boxes", {"volumes": [BIND | {"managed_volume": "v"}]}, {}, 400, "invalid_argument"),
    ("POST", "/v1/boxes", {"volumes": [BIND | {"host_path": "a"}]}, {}, 400, "invalid_argument"),
    ("POST", "/v1/boxes", {"volumes": [BIND | {"guest_path": "a"}]}, {}, 400, "invalid_argument"),
    ("POST", "/v1/boxes", {"volumes": [BIND | {"guest_path": "//."}]}, {}, 400, "invalid_argument"),
    ("POST", "/v1/boxes", {"volumes": [BIND | {"guest_path": "/a/../b"}]}, {}, 400, "invalid_argument"),
    ("POST", "/v1/boxes", {"volumes": [BIND | {"guest_path": "/proc/1"}]}, {}, 400, "invalid_argument"),
    ("POST", "/v1/boxes", {"volumes": [BIND, BIND | {"guest_path": "/a/"}]}, {}, 400, "invalid_argument"),
    ("POST", "/v1/boxes", {"volumes": [{"managed_volume": "v", "guest_path": "/a"}]}, {}, 404, "not_found"),
    ("POST", "/v1/boxes", {"advanced": {"capabilities": {"add": ["1"]}}}, {}, 400, "invalid_argument"),
    ("POST", "/v1/volumes", {"name": "../x"}, {}, 400, "invalid_argument"),
    ("POST", "/v1/volumes", {}, {}, 503, "upstream_unavailable"),
    ("POST", "/v1/volumes", None, {}, 503, "upstream_unavailable"),
    ("GET", "/v1/volumes/%00", None, {}, 404, "not_found"),
    ("GET", "/v1/images/%00", None, {}, 404, "not_found"),
    ("GET", "/v1/volumes/nosuch", None, {}, 404, "not_found"),
    ("DELETE", "/v1/volumes/nosuch", None, {}, 404, "not_found"),
    ("POST", "/v1/images/pull", {"reference": ""}, {}, 400, "invalid_argument"),
    ("POST", "/v1/images/pull", {"reference": "alpine"}, {}, 503, "upstream_unavailable"),
    ("GET", "/v1/images/nosuch", None, {}, 404, "not_found"),
    ("GET", "/v1/images/No/Reference", None, {}, 404, "not_found"),
    ("DELETE", "/v1/images/a/b:c", None, {}, 404, "not_found"),
    ("GET", "/v1/images?pageToken=nonsense", None, {}, 400, "invalid_argument"),
    ("GET", "/v1/images/registries", None, {}, 400, "unsupported"),
    ("POST", "/v1/images/a/b/aliases", {"alias": "c", "digest": "sha256:1"}, {}, 400, "unsupported"),
    ("DELETE", "/v1/images/a/b/aliases/c", None, {}, 400, "unsupported"),
    ("PUT", "/v1/boxes/nosuch/network/inbound", {"mode": "enabled"}, {}, 404, "not_found"),
    ("POST", "/v1/boxes/nosuch/network/tunnel?port=80", None, {}, 404, "not_found"),
    ("POST", "/v1/boxes", {"image": "a", "disk_size_gb": 0}, {}, 400, "invalid_argument"),
    ("POST", "/v1/boxes", {"image": "a", "disk_size_gb": -1}, {}, 400, "invalid_argument"),
    ("POST", "/v1/boxes", {"image": "a", "disk_size_gb": 1.5}, {}, 400, "invalid_argument"),
    ("POST", "/v1/boxes", {"image": "a", "disk_size_gb": 65537}, {}, 400, "invalid_argument"),
    ("POST", "/v1/boxes", {"image": "a", "disk_size_gb": "10"}, {}, 400, "invalid_argument"),
    ("POST", "/v1/boxes", {"image": "a", "secrets": [{"name": "s", "value": "v"}]}, {}, 400, "unsupported"),
    ("POST", "/v1/boxes", {"image": "a"}, {}, 503, "upstream_unavailable"),
    ("GET", "/v1/boxes?pageSize=0", None, {}, 400, "invalid_argument"),
    ("GET", "/v1/boxes?pageSize=many", None, {}, 400, "invalid_argument"),
    ("GET", "/v1/boxes?page_size=0", None, {}, 400, "invalid_argument"),
    ("GET", "/v1/boxes?page_size=1&pageSize=1", None, {}, 400, "invalid_argument"),
    ("GET", "/v1/images?page_token=a&pageToken=a", None, {}, 400, "invalid_argument"),
    ("GET", "/v1/volumes?page_token=nonsense", None, {}, 400, "invalid_argument"),
    ("GET", "/v1/boxes/nosuch/snapshots?page_token=nonsense", None, {}, 400, "invalid_argument"),
    ("GET", "/v1/admin/workers?page_token=nonsense", None, {}, 400, "invalid_argument"),
    ("GET", "/v1/boxes?pageToken=nonsense", None, {}, 400, "invalid_argument"),
    ("GET", f"/v1/boxes?pageToken={token([10**400, 'x'])}", None, {}, 400, "invalid_argument"),
    ("GET", f"/v1/boxes?pageToken={token([1, chr(0xD800)])}", None, {}, 400, "invalid_argument"),
    ("GET", f"/v1/boxes?pageToken={token([1, chr(0)])}", None, {}, 400, "invalid_argument"),
    (
        "GET",
        f"/v1/images?pageToken={base64.urlsafe_b64encode(b'[' * 20_000).decode()}",
        None,
        {},
        400,
        "invalid_argument",
    ),
    ("POST", "/v1/oauth/tokens", b"&".join([b"a=1"] * 1100), FORM, 400, "invalid_argument"),
    ("POST", "/v1/oauth/tokens", b"a=" + b"x" * 100_000, FORM, 413, "invalid_argument"),
    ("GET", "/v1/boxes?status=sleeping", None, {}, 400, "invalid_argument"),
    ("GET", "/v1/boxes?label=novalue", None, {}, 400, "invalid_argument"),
    ("POST", "/v1/boxes", {"image": "a"}, {"Idempotency-Key": "k" * 256}, 400, "invalid_argument"),
    ("POST", "/v1/boxes/x/export", {}, {"Idempotency-Key": "k"}, 400, "unsupported"),
    ("POST", "/v1/boxes", {"image": "a", "auto_stop": 1, "auto_pause": 2}, {}, 400, "invalid_argument"),
    ("GET", "/v1/boxes/nosuch/metrics", None, {}, 404, "not_found"),
    ("POST", "/v1/oauth/tokens", b"grant_type=x", {"Content-Type": "application/x-www-form-urlencoded"}, 400, None),
    ("POST", "/v1/boxes/nosuch/clone", {}, {}, 404, "not_found"),
    ("POST", "/v1/boxes/nosuch/clone", {"name": "../x"}, {}, 400, "invalid_argument"),
    ("POST", "/v1/boxes/nosuch/export", {}, {}, 404, "not_found"),
    ("GET", "/v1/boxes/nosuch/snapshots", None, {}, 404, "not_found"),
    ("POST", "/v1/boxes/nosuch/snapshots", {"name": "s"}, {}, 404, "not_found"),
    ("POST", "/v1/boxes/nosuch/snapshots", {"name": "a/b"}, {}, 400, "invalid_argument"),
    ("GET", "/v1/boxes/nosuch/snapshots/s", None, {}, 404, "not_found"),
    ("DELETE", "/v1/boxes/nosuch/snapshots/s", None, {}, 404, "not_found"),
    ("POST", "/v1/boxes/nosuch/snapshots/s/restore", None, {}, 404, "not_found"),
    ("POST", "/v1/boxes/import", b"x" * 1000, {"Content-Type": "application/octet-stream"}, 400, "invalid_argument"),
    ("POST", "/v1/boxes/import", b"", {"Content-Type": "application/octet-stream"}, 400, "invalid_argument"),
    ("POST", "/v1/admin/workers", {"name": "x"}, {}, 400, "invalid_argument"),
    ("POST", "/v1/admin/workers/nosuch/heartbeat", {"epoch": "000000000000", "boxes": []}, {}, 404, "not_found"),
    ("PATCH", "/v1/admin/workers/nosuch/status", {"status": "draining"}, {}, 404, "not_found"),
    ("PATCH", "/v1/admin/workers/nosuch/status", {"status": "asleep"}, {}, 400, "invalid_argument"),
]


@pytest.mark.parametrize("depth", range(940, 960))
def test_no_nesting_is_a_fault_of_the_servers(lonely: Cluster, depth: int) -> None:
    """Around the depth that can just be read, but not shown."""
    for body in ('{"image": %s}', '{"image": "a", "labels": %s}', "%s"):
        deep = body % ("[" * depth + "1" + "]" * depth)
        assert error_of(lonely.http("POST", "/v1/boxes", deep.encode(), headers=JSON))[::2] == (400, "invalid_argument")


@pytest.mark.parametrize(("method", "path", "body", "headers", "status", "code"), BAD_REQUESTS)
def test_every_refusal_has_the_contracts_form(
    lonely: Cluster, method: str, path: str, body: Any, headers: dict[str, str], status: int, code: str | None
) -> None:
    if body == {"image": "a", "cpus": 1e400}:
        body, headers = b'{"image": "a", "cpus": 1e400}', JSON
    answer = lonely.http(method, path, body, headers=headers)
    if status == 307:
        assert (answer[0], answer[1]["location"]) == (307, "/swagger-ui/")
        return
    found = error_of(answer)
    assert found[0] == status
    if code:
        assert found[2] == code


def test_the_code_is_an_integer_under_the_old_path_and_a_string_elsewhere(lonely: Cluster) -> None:
    assert error_of(lonely.http("GET", "/v1/default/boxes/x")) == (404, "NotFoundError", 404)
    assert error_of(lonely.http("GET", "/v1/boxes/x")) == (404, "NotFoundError", "not_found")
    assert error_of(lonely.http("GET", "/v1/acme/boxes/x")) == (404, "NotFoundError", "not_found")


def test_every_operation_answers_without_a_fault(lonely: Cluster) -> None:
    """Each path and method of the spec, called without a body: whatever the answer, it is no 500."""
    for path, item in SPEC["paths"].items():
        concrete = "/".join("x" if part.startswith("{") else part for part in path.split("/"))
        for method in item.keys() & {"get", "put", "post", "delete", "patch", "head"}:
            query = "?follow=false" if concrete.endswith("/events") else ""
            status, _, body = lonely.http(method.upper(), concrete + query)
            assert status != 500, (method, path, body)
            if status >= 400 and method != "head" and not concrete.startswith("/v1/health"):
                assert "error" in body, (method, path, body)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/boxes", "GET, HEAD, POST"),
        ("/v1/acme/boxes/x", "DELETE, GET, HEAD, PATCH"),
        ("/v1/boxes/x/start", "POST"),
        ("/v1/boxes/x/files", "GET, HEAD, PUT"),
        ("/v1/images/a/b/c", "DELETE, GET, HEAD"),
        ("/v1/admin/workers/x/status", "PATCH"),
        ("/openapi.yaml", "GET, HEAD"),
    ],
)
def test_a_refused_method_gets_those_that_there_are(lonely: Cluster, path: str, allowed: str) -> None:
    status, headers, _ = lonely.http("OPTIONS", path)
    assert status == 405
    assert sorted(headers["allow"].split(", ")) == allowed.split(", ")


def test_a_websocket_path_says_what_it_wants(lonely: Cluster) -> None:
    status, headers, _ = lonely.http("GET", "/v1/boxes/x/attach")
    assert (status, headers["upgrade"]) == (426, "websocket")


@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        (b"hello\r\n\r\n", 400),
        (b"GET /v1/health HTTP/1.1\r\nX-Long: ".ljust(64 * 1024 + 1, b"a"), 431),
    ],
)
def test_what_is_no_request_gets_the_contracts_body_too(lonely: Cluster, request_bytes: bytes, expected: int) -> None:
    with socket.create_connection(("127.0.0.1", lonely.port), timeout=30) as connection:
        connection.sendall(request_bytes)
        response = http.client.HTTPResponse(connection)
        response.begin()
        headers = {key.lower(): value for key, value in response.getheaders()}
        answer = (response.status, headers, json.loads(response.read()))
    assert error_of(answer) == (expected, "InvalidArgumentError", "invalid_argument")


def test_a_json_body_needs_no_content_length(lonely: Cluster) -> None:
    status, _, body = lonely.http("POST", "/v1/boxes", iter([b'{"ima', b'ge": 3}']), headers=JSON)
    assert (status, body["error"]["message"]) == (400, "body: 'image': 3 is not of type 'string'")


SIMPLE = ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "x"]


@pytest.mark.parametrize("path", ["/v1/boxes", "/v1/boxes/x/exec", "/v1/boxes/x/stop", "/v1/boxes/x/start",
                                  "/v1/boxes/x/clone", "/v1/volumes", "/v1/boxes/x/executions/y/input",
                                  "/v1/boxes/import", "/v1/admin/workers"])  # fmt: skip
@pytest.mark.parametrize("kind", SIMPLE)
def test_a_body_is_taken_only_with_its_type(lonely: Cluster, path: str, kind: str) -> None:
    headers = {"Content-Type": kind} if kind else {}
    untyped_stream = not kind and path.endswith(("input", "import"))
    for body in (b'{"image": "alpine", "command": "id"}', iter([b'{"image": ', b'"alpine"}'])):
        status, _, code = error_of(lonely.http("POST", path, body, headers=headers))
        assert (status != 415, code == "invalid_argument") == (untyped_stream, status != 404)


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8", "application/json;q=1"])
def test_a_type_may_be_written_in_several_ways(lonely: Cluster, kind: str) -> None:
    answer = lonely.http("POST", "/v1/boxes", b'{"image": 3}', headers={"Content-Type": kind})
    assert (answer[0], answer[2]["error"]["message"]) == (400, "body: 'image': 3 is not of type 'string'")


def test_no_body_needs_no_type(lonely: Cluster) -> None:
    """As clients start and stop boxes."""
    for path in ("start", "stop", "clone", "snapshots/s/restore", "executions/y/input"):
        for headers in ({}, {"Content-Length": "0"}):
            assert error_of(lonely.http("POST", f"/v1/boxes/x/{path}", headers=headers))[0] == 404


def test_a_repeated_parameter_may_hold_commas(lonely: Cluster) -> None:
    assert lonely.http("GET", "/v1/boxes?label=a%3Db%2Cc&label=d%3D,")[::2] == (200, EMPTY_PAGE)
    assert error_of(lonely.http("GET", "/v1/boxes?label=a%3Db&label=c"))[0] == 400


def test_a_request_id_is_taken_over(lonely: Cluster) -> None:
    _, headers, body = lonely.http("GET", "/v1/boxes/x", headers={"X-Request-Id": "mine-1"})
    assert headers["x-request-id"] == body["error"]["request_id"] == "mine-1"
    _, headers, _ = lonely.http("GET", "/v1/health", headers={"X-Request-Id": 'no"good'})
    assert headers["x-request-id"].startswith("req_")


def test_documents(lonely: Cluster) -> None:
    status, headers, page = lonely.http("GET", "/swagger-ui/")
    assert status == 200
    assert headers["content-type"].startswith("text/html")
    assert b"swagger-ui-bundle.js" in page
    assert lonely.http("GET", "/swagger-ui/swagger-ui-bundle.js")[0] == 200
    assert yaml.safe_load(lonely.http("GET", "/openapi.yaml")[2]) == SPEC
    assert lonely.http("GET", "/openapi.json")[2] == json.loads(json.dumps(SPEC))
    for_clients = lonely.http("GET", "/openapi-client.json")[2]
    assert "/v1/boxes/{box_id}" in for_clients["paths"]
    assert yaml.safe_load(lonely.http("GET", "/openapi-client.yaml")[2]) == for_clients


def test_health_and_readiness(lonely: Cluster) -> None:
    assert lonely.http("GET", "/v1/health")[::2] == (200, {"status": "ok"})
    status, _, body = lonely.http("GET", "/v1/health/ready")
    assert (status, body["active_workers"]) == (503, 0)


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("GET", "/v1/boxes", None, 200),
        ("GET", "/v1/health", None, 200),
        ("GET", "/v1/health/ready", None, 503),
        ("POST", "/v1/boxes", {"cpus": 0}, 400),
        ("GET", "/v1/volumes/nosuch", None, 404),
        ("POST", "/v1/volumes", {}, 503),
        ("PATCH", "/v1/volumes", {}, 405),
        ("GET", "/v1/events?follow=false", None, 200),
        ("GET", "/v1/admin/coordinator/events?follow=false", None, 200),
        ("GET", "/v1/boxes/nosuch/attach", None, 426),
    ],
)
def test_every_header_of_an_answer_is_declared(
    lonely: Cluster, method: str, path: str, body: object, expected: int
) -> None:
    status, headers, _ = lonely.http(method, path, body)
    assert status == expected
    assert not undeclared(method, path, status, headers)


def test_a_refused_key_has_the_headers_that_are_declared(locked: Cluster) -> None:
    _, headers, _ = locked.http("GET", "/v1/me", headers={"Authorization": "Bearer wrong"})
    assert headers["www-authenticate"] == "Bearer"
    assert "WWW-Authenticate" in RESOLVED["components"]["responses"]["Unauthorized"]["headers"]


OPEN = [
    "/v1/config",
    "/v1/health",
    "/swagger-ui/",
    "/swagger-ui/swagger-ui.css",
    "/openapi.yaml",
    "/openapi.json",
    "/openapi-client.yaml",
    "/openapi-client.json",
]
GUARDED = [
    "/v1/boxes",
    "/v1/default/boxes",
    "/v1/acme/boxes",
    "/v1/me",
    "/v1/admin/workers",
    "/v1/nosuch",
    "/v1/metrics",
]


@pytest.mark.parametrize("path", OPEN)
def test_some_paths_need_no_key(locked: Cluster, path: str) -> None:
    assert locked.http("GET", path, headers={"Authorization": ""})[0] == 200


@pytest.mark.parametrize("path", GUARDED)
def test_everything_else_needs_the_key(locked: Cluster, path: str) -> None:
    for authorization in ("", "Bearer wrong", "Basic dGhlLWtleQ=="):
        status, kind, _ = error_of(locked.http("GET", path, headers={"Authorization": authorization}))
        assert (status, kind) == (401, "AuthError")
    assert locked.http("GET", path)[0] != 401


def test_workers_need_the_key_too(locked: Cluster) -> None:
    answer = locked.http("POST", "/v1/admin/workers", {}, headers={"Authorization": ""})
    assert error_of(answer)[0] == 401


def test_client_credentials_become_a_token(locked: Cluster) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    body = b"grant_type=client_credentials&client_id=me&client_secret="
    status, _, token = locked.http(
        "POST", "/v1/oauth/tokens", body + KEY.encode(), headers={**form, "Authorization": ""}
    )
    assert status == 200
    assert token["token_type"] == "bearer"
    assert token["expires_in"] == 900
    bearer = {"Authorization": f"Bearer {token['access_token']}"}
    assert locked.http("GET", "/v1/default/boxes", headers=bearer)[0] == 200
    assert error_of(locked.http("POST", "/v1/oauth/tokens", body + b"wrong", headers=form))[0] == 401


def test_me(lonely: Cluster, locked: Cluster) -> None:
    for cluster, sub in ((lonely, "anonymous"), (locked, "api-key")):
        status, _, me = cluster.http("GET", "/v1/me")
        assert (status, me["sub"], me["path_prefix"]) == (200, sub, None)
        assert "box:exec" in me["scopes"]


def test_config_tells_defaults_and_limits(lonely: Cluster) -> None:
    config = lonely.http("GET", "/v1/config")[2]
    schemas = SPEC["components"]["schemas"]
    timeout = schemas["StartExecutionRequest"]["properties"]["timeout_seconds"]
    assert config["capabilities"]["exec_timeout_max_seconds"] == timeout["maximum"]
    assert set(config["capabilities"]) == set(schemas["ServerCapabilities"]["properties"])
    assert set(config["defaults"]) == set(schemas["ServerDefaults"]["properties"])
    assert (config["defaults"]["auto_stop"], config["defaults"]["auto_delete"]) == (0, 0)
    assert config["capabilities"]["max_boxes_per_prefix"] is None


def test_config_tells_what_the_operator_chose(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, docker_host="unix:///nowhere")
    flags = "--default-auto-stop 600 --default-auto-delete 7200 --max-boxes-per-prefix 5"
    cluster.start_coordinator(*flags.split())
    config = cluster.http("GET", "/v1/config")[2]
    assert (config["defaults"]["auto_stop"], config["defaults"]["auto_delete"]) == (600, 7200)
    assert config["capabilities"]["max_boxes_per_prefix"] == 5
    cluster.close()


def test_metrics_of_a_prefix_begin_at_zero(lonely: Cluster) -> None:
    status, _, metrics = lonely.http("GET", "/v1/quiet/metrics")
    assert status == 200
    assert set(metrics) == set(SPEC["components"]["schemas"]["RuntimeMetrics"]["properties"])
    assert set(metrics.values()) == {0}
