"""openapi.yaml: it loads, it is complete, and its examples are true to its schemas."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from connexion import AsyncApp
from connexion.json_schema import resolve_refs
from connexion.lifecycle import ConnexionResponse
from connexion.resolver import Resolver
from connexion.spec import OpenAPISpecification
from jsonschema import Draft4Validator, ValidationError

from boxlite_server import errors
from boxlite_server.coordinator.tenants import scopes

SPEC_FILE = Path(__file__).parent.parent / "openapi.yaml"
METHODS = ("head", "get", "put", "post", "patch", "delete")

TEXT: str = SPEC_FILE.read_text(encoding="utf-8")
RAW: dict[str, Any] = yaml.safe_load(TEXT)
SPEC: dict[str, Any] = resolve_refs(RAW)

OPEN = {"getConfig", "getHealth", "getReadiness", "createToken", "proveCoordinator", "getAuthorities"}
TAG_OF: dict[str, str] = {
    operation_id: tag
    for tag, operation_ids in {
        "System": "getConfig getHealth getReadiness",
        "Identity": "getCurrentPrincipal createToken createTicket",
        "Boxes": "createBox listBoxes getBox boxExists updateBox waitForBox removeBox startBox stopBox",
        "Executions": "startExecution listExecutions getExecution killExecution attachExecution attachBox"
        " streamExecutionOutput runCommand sendExecutionInput signalExecution resizeExecution openTerminal readBoxLogs"
        " signalBox",
        "Files": "uploadFiles downloadFiles readFile writeFile statFile listDirectory",
        "Snapshots": "createSnapshot listSnapshots getSnapshot removeSnapshot restoreSnapshot"
        " cloneBox exportBox importBox",
        "Images": "pullImage listImages getImage imageExists removeImage getImageUsage listImageRegistries"
        " addImageAlias removeImageAlias",
        "Volumes": "createVolume listVolumes getVolume removeVolume",
        "Network": "updateInboundPolicy updateOutboundPolicy openTunnel closeTunnel",
        "Events": "streamEvents streamAllEvents",
        "Metrics": "getRuntimeMetrics getBoxMetrics getCoordinatorMetrics getPrometheusMetrics",
        "Workers": "registerWorker heartbeat getAuthorities issueCertificate listWorkers getWorker removeWorker "
        "setWorkerStatus getWorkerByBox "
        "reconcile getWarmPools setWarmPools proveCoordinator",
        "Quotas": "listQuotas getQuotas setQuotas removeQuotas",
        "Keys": "listKeys createKey revokeKey",
        "Audit": "listAudit",
    }.items()
    for operation_id in operation_ids.split()
}


class Operation(NamedTuple):
    path: str
    method: str
    item: dict[str, Any]  # the path item
    spec: dict[str, Any]

    @property
    def parameters(self) -> list[dict[str, Any]]:
        return [*self.item.get("parameters", ()), *self.spec.get("parameters", ())]

    @property
    def bodies(self) -> dict[str, dict[str, Any]]:
        """The request's media types."""
        content: dict[str, dict[str, Any]] = self.spec.get("requestBody", {}).get("content", {})
        return content

    @property
    def answers(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Status, name and content of each media type of each response."""
        for status, response in self.spec["responses"].items():
            for name, media in response.get("content", {}).items():
                yield status, name, media


OPERATIONS = {
    item[method]["operationId"]: Operation(path, method, item, item[method])
    for path, item in SPEC["paths"].items()
    for method in METHODS
    if method in item
}


def draft4(node: Any) -> Any:
    """An OpenAPI 3.0 schema as JSON Schema of draft 4: `nullable` becomes a type of null."""
    if isinstance(node, list):
        return [draft4(item) for item in node]
    if not isinstance(node, dict):
        return node
    out = {key: draft4(value) for key, value in node.items() if key not in ("nullable", "example")}
    if node.get("nullable") is True:
        out["type"] = [out["type"], "null"]
        if "enum" in out:
            out["enum"] = [*out["enum"], None]
    return out


def check(value: Any, schema: dict[str, Any]) -> None:
    Draft4Validator(draft4(schema), format_checker=Draft4Validator.FORMAT_CHECKER).validate(value)


def is_binary(media: dict[str, Any]) -> bool:
    return bool(media["schema"].get("format") == "binary")


def examples(media: dict[str, Any]) -> list[Any]:
    named = [example["value"] for example in media.get("examples", {}).values()]
    return [*([media["example"]] if "example" in media else []), *named]


def schemas_in(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema at or below `node`, with its place."""
    if not isinstance(node, dict):
        return
    yield path, node
    for key, value in node.get("properties", {}).items():
        yield from schemas_in(value, f"{path}.{key}")
    for key in ("items", "additionalProperties"):
        yield from schemas_in(node.get(key), f"{path}.{key}")
    for key in ("oneOf", "anyOf", "allOf"):
        for index, value in enumerate(node.get(key, ())):
            yield from schemas_in(value, f"{path}.{key}[{index}]")


def request_schemas(operation: Operation) -> Iterator[tuple[str, dict[str, Any]]]:
    for parameter in operation.parameters:
        yield from schemas_in(parameter["schema"], f"?{parameter['name']}")
    for name, media in operation.bodies.items():
        yield from schemas_in(media["schema"], name)


def mappings(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from mappings(value)
    elif isinstance(node, list):
        for value in node:
            yield from mappings(value)


each_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)


@pytest.fixture(scope="module")
def app() -> AsyncApp:
    """The whole spec in Connexion, every operation answered by its own name."""

    class Anyone:
        def get_fn(self, scheme: dict[str, Any], scopes: list[str]) -> Callable[..., Any]:
            async def verify(request: Any) -> dict[str, str]:
                return {"sub": "anyone"}

            return verify

    def name_of(operation_id: str) -> Callable[..., Any]:
        async def answer(**arguments: Any) -> ConnexionResponse:
            body = {"operation": operation_id, "image_id": arguments.get("image_id")}
            return ConnexionResponse(status_code=200, content_type="application/json", body=json.dumps(body))

        return answer

    app = AsyncApp(__name__)
    app.add_api(RAW, resolver=Resolver(name_of), security_map={"bearer": Anyone, "oauth2": Anyone})
    return app


# ---- As a document ----------------------------------------------------------------------------------------


def test_it_is_valid_openapi_3_0() -> None:
    assert RAW["openapi"] == "3.0.3"
    Draft4Validator(OpenAPISpecification.openapi_schema).validate(RAW)


def test_connexion_may_render_the_file_as_a_template() -> None:
    assert OpenAPISpecification.load(SPEC_FILE).raw == RAW


def test_it_holds_the_contract_and_nothing_else() -> None:
    assert {name: operation.spec["tags"] for name, operation in OPERATIONS.items()} == {
        name: [tag] for name, tag in TAG_OF.items()
    }


def test_operation_ids_are_unique() -> None:
    count = sum(method in item for item in SPEC["paths"].values() for method in METHODS)
    assert len(OPERATIONS) == count


def test_every_tag_is_described_and_used() -> None:
    assert [tag["name"] for tag in RAW["tags"]] == list(dict.fromkeys(TAG_OF.values()))
    assert all(tag["description"] for tag in RAW["tags"])


def test_every_component_is_used() -> None:
    used = {node["$ref"] for node in mappings(RAW) if isinstance(node.get("$ref"), str)}
    defined = {
        f"#/components/{kind}/{name}"
        for kind, components in RAW["components"].items()
        if kind != "securitySchemes"
        for name in components
    }
    assert used == defined


def test_no_extensions_and_no_closed_objects() -> None:
    for node in mappings(RAW):
        assert not [key for key in node if key.startswith("x-")]
        assert node.get("additionalProperties") is not False


def test_nullable_stands_beside_a_type() -> None:
    assert all("type" in node for node in mappings(RAW) if node.get("nullable") is True)


def test_head_stands_before_get() -> None:
    for path, item in RAW["paths"].items():
        methods = [key for key in item if key in METHODS]
        assert "head" not in methods or methods[0] == "head", path


def test_every_property_is_described() -> None:
    bare = []
    for node in mappings(SPEC):
        properties = node.get("properties", {})
        if all(isinstance(schema, dict) for schema in properties.values()):
            bare += [name for name, schema in properties.items() if not schema.get("description")]
    assert not bare


def test_numbers_say_how_large_they_get() -> None:
    for node in mappings(RAW):
        if node.get("type") == "number":
            assert node.get("format") == "double", node
        if node.get("type") == "integer" and max(node.get("maximum", 0), -node.get("minimum", 0)) > 2**31:
            assert node.get("format") == "int64", node


def test_counts_of_bytes_are_long() -> None:
    for schemas in (node.get("properties", {}) for node in mappings(SPEC)):
        for name, schema in schemas.items():
            if name.endswith("_bytes") and isinstance(schema, dict) and schema.get("maximum", 2**63) > 2**31:
                assert (schema["type"], schema["format"]) == ("integer", "int64"), name


def test_counters_are_long() -> None:
    for name, schema in [pair for node in mappings(SPEC) for pair in node.get("properties", {}).items()]:
        for counter in schema.get("properties", {"": schema}).values() if name.endswith("_total") else ():
            assert (counter["type"], counter.get("format")) == ("integer", "int64"), name


def test_path_parameters_are_declared() -> None:
    for operation in OPERATIONS.values():
        in_path = {part[1:-1] for part in operation.path.split("/") if part.startswith("{")}
        declared = {parameter["name"] for parameter in operation.parameters if parameter["in"] == "path"}
        assert in_path == declared, operation.path


def test_every_error_of_ours_is_in_the_contract() -> None:
    detail = SPEC["components"]["schemas"]["ErrorDetail"]["properties"]
    types, codes = detail["type"]["enum"], detail["code"]["oneOf"][0]["enum"]
    pending = [errors.BoxliteError]
    while pending:
        cls = pending.pop()
        pending += cls.__subclasses__()
        if cls.__module__ == errors.__name__:
            assert cls.type in types
            assert cls.code in codes


# ---- Every operation --------------------------------------------------------------------------------------


@each_operation
def test_it_is_described(operation: Operation) -> None:
    assert operation.spec["summary"]
    assert not operation.spec["summary"].endswith(".")
    assert operation.spec["description"]
    assert all(parameter["description"] for parameter in operation.parameters)


@each_operation
def test_it_says_how_it_fails(operation: Operation) -> None:
    responses = operation.spec["responses"]
    error = SPEC["components"]["responses"]["Error"]
    assert responses["default"] == error
    for status, name, media in operation.answers:
        if status != "default" and int(status) >= 400 and operation.spec["operationId"] != "getReadiness":
            assert name == "application/json"
            assert media["schema"] == SPEC["components"]["schemas"]["ErrorResponse"]
    assert "X-Request-Id" in error["headers"]
    if operation.spec["operationId"] not in OPEN:
        assert "401" in responses
    if operation.bodies:
        assert "400" in responses


@each_operation
def test_security_is_off_only_where_it_must_be(operation: Operation) -> None:
    assert (operation.spec.get("security") == []) == (operation.spec["operationId"] in OPEN)


@each_operation
def test_whatever_changes_something_takes_an_idempotency_key(operation: Operation) -> None:
    takes = "Idempotency-Key" in [parameter["name"] for parameter in operation.parameters]
    changes = operation.method not in ("get", "head")
    without = ("createToken", "createTicket", "createKey", "exportBox", "proveCoordinator")
    assert takes == (changes and operation.spec["operationId"] not in without)


@each_operation
def test_it_says_when_to_try_again(operation: Operation) -> None:
    responses = operation.spec["responses"]
    for parameter in operation.parameters:
        if parameter["name"] == "Idempotency-Key":
            assert "422" in responses
    if operation.spec["operationId"] not in OPEN:
        assert {"429", "503"} <= responses.keys()
    for status in ("429", "503"):
        if status in responses:
            assert "Retry-After" in responses[status]["headers"]


@each_operation
def test_lists_come_in_pages(operation: Operation) -> None:
    answer = operation.spec["responses"].get("200", {}).get("content", {}).get("application/json", {})
    taken = {parameter["name"]: parameter.get("deprecated", False) for parameter in operation.parameters}
    is_paged = "next_page_token" in answer.get("schema", {}).get("properties", {})
    assert is_paged == ({"page_size", "page_token"} <= taken.keys())
    assert all(taken[older] for older in ("pageSize", "pageToken") if older in taken)


@each_operation
def test_examples_are_there_and_valid(operation: Operation) -> None:
    for media in [*operation.bodies.values(), *(media for _, _, media in operation.answers)]:
        found = examples(media)
        assert found or is_binary(media)
        for example in found:
            check(example, media["schema"])
    for parameter in operation.parameters:
        if "example" in parameter:
            check(parameter["example"], parameter["schema"])


@each_operation
def test_success_answers_carry_the_request_id(operation: Operation) -> None:
    for status, response in operation.spec["responses"].items():
        if status != "101":
            assert "X-Request-Id" in response["headers"], status
        if status == "201":
            assert "Location" in response["headers"]
            assert response["links"] or response["content"]


@each_operation
def test_request_numbers_are_bounded(operation: Operation) -> None:
    for place, schema in request_schemas(operation):
        if schema.get("type") in ("integer", "number"):
            assert "minimum" in schema, place
            assert "maximum" in schema, place


@each_operation
def test_request_texts_and_collections_are_bounded(operation: Operation) -> None:
    for place, schema in request_schemas(operation):
        if schema.get("type") == "string":
            bounds = {"maxLength", "enum", "pattern"} & schema.keys()
            assert bounds or schema.get("format") == "binary", place
        if schema.get("type") == "array":
            assert "maxItems" in schema, place
        if isinstance(schema.get("additionalProperties"), dict):
            assert "maxProperties" in schema, place


@each_operation
def test_request_bodies_have_no_defaults(operation: Operation) -> None:
    for media in operation.bodies.values():
        assert not [place for place, schema in schemas_in(media["schema"]) if "default" in schema]


@each_operation
def test_links_lead_to_operations_with_such_parameters(operation: Operation) -> None:
    for response in operation.spec["responses"].values():
        for link in response.get("links", {}).values():
            target = OPERATIONS[link["operationId"]]
            required = {parameter["name"] for parameter in target.parameters if parameter["in"] == "path"}
            assert set(link["parameters"]) == required


# ---- In Connexion -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "operation"),
    [
        ("GET", "/v1/acme/boxes/import", "getBox"),
        ("GET", "/v1/acme/images/usage", "getImageUsage"),
        ("GET", "/v1/acme/images/registries", "listImageRegistries"),
        ("GET", "/v1/acme/images/docker.io/library/alpine:3", "getImage"),
        ("GET", "/v1/acme/images/docker.io%2Flibrary%2Falpine:3", "getImage"),
        ("DELETE", "/v1/acme/images/docker.io/library/alpine/aliases/stable", "removeImageAlias"),
        ("DELETE", "/v1/acme/images/docker.io/library/alpine", "removeImage"),
        ("GET", "/v1/admin/workers/by-box/AbCdEf123456", "getWorkerByBox"),
        ("POST", "/v1/acme/boxes/web/start", "startBox"),
        ("POST", "/v1/acme/boxes/web/stop", "stopBox"),
        ("POST", "/v1/acme/boxes/web/clone", "cloneBox"),
        ("POST", "/v1/acme/boxes/web/export", "exportBox"),
        ("POST", "/v1/acme/volumes", "createVolume"),
    ],
)
def test_a_request_reaches_its_operation(app: AsyncApp, method: str, path: str, operation: str) -> None:
    with app.test_client() as client:
        response = client.request(method, path)
    assert response.status_code == 200, response.text
    assert response.json()["operation"] == operation


def test_an_image_name_keeps_its_slashes(app: AsyncApp) -> None:
    with app.test_client() as client:
        answer = client.get("/v1/acme/images/docker.io%2Flibrary%2Falpine:3").json()
    assert answer["image_id"] == "docker.io/library/alpine:3"


# What released clients send, as it was recorded.
@pytest.mark.parametrize(
    "body",
    [
        {"image": "alpine:latest", "network": {"mode": "enabled"}, "detach": False, "auto_remove": True},
        {"rootfs_path": "/srv/root", "network": "disabled", "detach": True},
        {"image": "a", "detach": False, "network": {"outbound": {"mode": "enabled", "allow_net": ["a.b"]}}},
        {"image": "a", "detach": False, "network": {"inbound": {"mode": "disabled"}}, "surprise": [1]},
        {"image": "a", "secrets": [{"name": "s", "value": "v", "hosts": ["h"], "placeholder": "<P>"}]},
        {"image": "a", "advanced": {"capabilities": {"add": ["SYS_ADMIN"], "drop": ["NET_RAW"]}}},
        {"image": "a", "auto_stop": 60, "auto_delete": 120, "auto_resume": False, "tty": True},
        dict.fromkeys(SPEC["components"]["schemas"]["CreateBoxRequest"]["properties"]),
        {},
    ],
)
def test_create_takes_what_clients_send(app: AsyncApp, body: dict[str, Any]) -> None:
    with app.test_client() as client:
        response = client.post("/v1/acme/boxes", json=body)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    "body",
    [
        {"cpus": 0},
        {"cpus": 256},
        {"cpus": 1.5},
        {"memory_mib": 127},
        {"memory_mib": 2**63},
        {"name": ""},
        {"name": "-web"},
        {"name": "a/b"},
        {"name": "w" * 129},
        {"cmd": ["a\0b"]},
        {"cmd": "echo"},
        {"env": {"A": "\0"}},
        {"env": {"A": 1}},
        {"working_dir": "tmp"},
        {"network": "off"},
        {"network": {"mode": "off"}},
        {"network": {"outbound": "enabled"}},
        {"ports": [{"host_port": 80}]},
        {"volumes": [{"managed_volume": "data"}]},
        [],
    ],
)
def test_create_refuses_what_no_box_can_have(app: AsyncApp, body: Any) -> None:
    with app.test_client() as client:
        assert client.post("/v1/acme/boxes", json=body).status_code == 400


@pytest.mark.parametrize("seconds", [2.0, 1, 0.05, 604800, None])
def test_exec_takes_a_timeout_of_seconds(app: AsyncApp, seconds: float | None) -> None:
    with app.test_client() as client:
        body = {"command": "sh", "tty": False, "timeout_seconds": seconds}
        assert client.post("/v1/acme/boxes/web/exec", json=body).status_code == 200


@pytest.mark.parametrize("seconds", [0, -1, 604801, "2"])
def test_exec_refuses_other_timeouts(app: AsyncApp, seconds: object) -> None:
    with app.test_client() as client:
        body = {"command": "sh", "timeout_seconds": seconds}
        assert client.post("/v1/acme/boxes/web/exec", json=body).status_code == 400


def test_input_may_be_empty_when_it_only_ends_the_input(app: AsyncApp) -> None:
    path = "/v1/acme/boxes/web/executions/8f0c/input"
    with app.test_client() as client:
        for headers in ({}, {"content-type": "application/octet-stream"}):
            response = client.post(path, headers={"x-close-stdin": "true", **headers})
            assert response.status_code == 200, response.text


# ---- The checks themselves --------------------------------------------------------------------------------


def test_the_example_check_can_fail() -> None:
    schema = SPEC["components"]["schemas"]["BoxInfo"]
    good = SPEC["components"]["examples"]["RunningBox"]["value"]
    check(good, schema)
    for change in ({"cpus": 256}, {"status": "gone"}, {"labels": None}, {"pid": -1}, {"box_id": None}):
        with pytest.raises(ValidationError):
            check(good | change, schema)


def test_a_new_key_may_have_every_scope_of_a_client() -> None:
    asked = SPEC["components"]["schemas"]["CreateKeyRequest"]["properties"]["scopes"]
    assert asked["items"]["enum"] == [*scopes.CLIENT]
