"""The spec that clients are generated from: what it has of openapi.yaml, and in what form."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from connexion.json_schema import resolve_refs
from connexion.spec import OpenAPISpecification
from jsonschema import Draft4Validator

from boxlite_server import specs
from boxlite_server.coordinator import client_spec
from boxlite_server.coordinator.http.operations import Operations
from boxlite_server.coordinator.http.routing import is_served

METHODS = ("head", "get", "put", "post", "patch", "delete")
CLIENT: dict[str, Any] = client_spec.derive(specs.openapi(), is_served)
SCHEMAS = CLIENT["components"]["schemas"]


def operations(spec: dict[str, Any]) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Method, path and operation, by operationId."""
    return {
        item[method]["operationId"]: (method.upper(), path, item[method])
        for path, item in spec["paths"].items()
        for method in METHODS
        if method in item
    }


WHOLE, KEPT = operations(specs.openapi()), operations(CLIENT)


def mappings(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
    for each in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from mappings(each)


def requests() -> list[Any]:
    """The bodies of all requests, with what they refer to."""
    return [operation.get("requestBody", {}) for _, _, operation in operations(resolve_refs(CLIENT)).values()]


def test_it_is_valid_openapi_3_0() -> None:
    Draft4Validator(OpenAPISpecification.openapi_schema).validate(CLIENT)


def test_its_making_leaves_the_spec_of_the_api_as_it_was() -> None:
    before = copy.deepcopy(specs.openapi())
    client_spec.derive(specs.openapi(), is_served)
    assert specs.openapi() == before


def test_a_box_is_named_by_its_id_alone() -> None:
    _, path, operation = KEPT["getBox"]
    item = resolve_refs(CLIENT)["paths"][path]
    assert (path, [each["name"] for each in item["parameters"]]) == ("/v1/boxes/{box_id}", ["box_id"])
    assert "parameters" not in operation
    assert not [path for path in CLIENT["paths"] if "{prefix}" in path]


@pytest.mark.parametrize(
    ("operation_id", "why"),
    [
        ("openTunnel", "it is always refused"),
        ("addImageAlias", "it is always refused"),
        ("attachExecution", "it is a WebSocket"),
        ("openTerminal", "it is a WebSocket"),
        ("heartbeat", "workers alone send it"),
        ("registerWorker", "workers alone send it"),
        ("proveCoordinator", "workers alone send it"),
        ("getAuthorities", "workers alone send it"),
        ("createToken", "older clients alone need it"),
    ],
)
def test_what_no_generated_client_can_use_is_left_out(operation_id: str, why: str) -> None:
    assert operation_id in WHOLE
    assert operation_id not in KEPT, why


def test_all_else_is_there() -> None:
    for operation_id, (_, path, operation) in WHOLE.items():
        is_worker = "/admin/" in path and {"KeyScopes": ["worker:admin"]} not in operation["security"]
        if is_served(operation) and not is_worker and path != "/metrics" and "101" not in operation["responses"]:
            assert operation_id in KEPT or operation.get("deprecated")


@pytest.mark.parametrize("operation_id", KEPT)
def test_its_requests_reach_their_operations(operation_id: str) -> None:
    """As the edge routes them, with the caller's own prefix."""
    method, path, _ = KEPT[operation_id]
    asked = path if WHOLE[operation_id][1] == path else path.replace("/v1/", "/v1/acme/")
    found = Operations(specs.openapi()).find(method, asked.replace("{", "").replace("}", ""))
    assert found is not None
    assert found.id == operation_id


def test_requests_have_no_nulls_and_one_form() -> None:
    assert not [node for node in mappings(requests()) if "nullable" in node or "anyOf" in node]
    network = SCHEMAS["CreateBoxRequest"]["properties"]["network"]
    assert SCHEMAS[network["$ref"].rpartition("/")[2]]["properties"].keys() == {
        "mode",
        "allow_net",
        "outbound",
        "inbound",
    }


def test_answers_keep_their_nulls() -> None:
    assert SCHEMAS["BoxInfo"]["properties"]["exit_code"]["nullable"]
    assert SCHEMAS["Quotas"]["properties"]["boxes"]["nullable"]
    assert "nullable" not in SCHEMAS["QuotasInput"]["properties"]["boxes"]


def test_an_error_has_one_form_and_a_code_of_a_named_list() -> None:
    assert SCHEMAS["ErrorDetail"]["properties"]["code"] == {"$ref": "#/components/schemas/ErrorCode"}
    assert {"not_found", "already_exists", "timeout"} <= set(SCHEMAS["ErrorCode"]["enum"])
    for operation_id, (_, _, operation) in KEPT.items():
        errors = [status for status in operation["responses"] if status >= "4"]
        assert errors == (["503", "default"] if operation_id == "getReadiness" else ["default"])


def test_an_answer_has_one_form() -> None:
    for operation_id, (_, _, operation) in operations(resolve_refs(CLIENT)).items():
        forms = {
            (name, media["schema"].get("format"))
            for status, response in operation["responses"].items()
            for name, media in response.get("content", {}).items()
            if status.startswith("2")
        }
        assert len(forms) <= 1, operation_id
        assert all(name == "application/json" or form == "binary" for name, form in forms), operation_id


def test_nothing_in_it_is_deprecated() -> None:
    assert not [node for node in mappings(CLIENT) if node.get("deprecated")]
    names = [each["name"] for each in CLIENT["components"]["parameters"].values()]
    assert "page_size" in names
    assert "pageSize" not in names


def test_every_component_is_used_and_every_reference_leads_somewhere() -> None:
    used = {node["$ref"] for node in mappings(CLIENT) if isinstance(node.get("$ref"), str)}
    components = CLIENT["components"].items()
    defined = {
        f"#/components/{kind}/{name}" for kind, named in components if kind != "securitySchemes" for name in named
    }
    assert used == defined


def test_no_two_components_share_a_name() -> None:
    """Of schemas, parameters and answers generators make types, all in one room."""
    names = [name for kind in ("schemas", "parameters", "responses") for name in CLIENT["components"][kind]]
    assert len(names) == len(set(names))


def test_the_server_is_a_variable() -> None:
    (server,) = CLIENT["servers"]
    assert server["url"] == "{base_url}"
    assert server["variables"]["base_url"]["default"].startswith("http://")


def test_an_operation_says_what_scope_it_needs() -> None:
    assert "`box:exec`" in KEPT["startExecution"][2]["description"]
    assert KEPT["getHealth"][2]["security"] == []
