"""Plain checks of schemas: they mean what the request validator means, for everything that openapi.yaml asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from connexion.spec import Specification
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import ValidationError

from boxlite_server import errors, specs
from boxlite_server.coordinator import schemas
from boxlite_server.coordinator.schemas import check, compiled

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
STRINGS = ["", "\n", "a\n", "-", "http://h:1", "http://h:70000", "x/y", "A" * 12]


def asked_for() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each schema of a body and of a parameter, as requests are checked by it."""
    for path, item in Specification.load(specs.openapi())["paths"].items():
        for method, operation in item.items():
            where = f"{method} {path}"
            if not isinstance(operation, dict):
                continue
            for parameter in operation.get("parameters", []):
                yield f"{where} {parameter['name']}", parameter["schema"]
            for kind, content in operation.get("requestBody", {}).get("content", {}).items():
                yield f"{where} {kind}", content["schema"]


SCHEMAS = dict(asked_for())


def fits_by_jsonschema(value: Any, schema: dict[str, Any]) -> bool:
    try:
        schemas._validator(schemas._Schema(schema)).validate(value)
    except ValidationError:
        return False
    return True


def values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that mostly fit the schema, and values that narrowly miss it."""
    return st.one_of(_near(schema), _near(schema), _near(schema), ANYTHING)


def _near(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    if "anyOf" in schema:
        return st.one_of([values(form) for form in schema["anyOf"]])
    match schema["type"]:
        case "object":
            known = {name: values(inner) for name, inner in schema.get("properties", {}).items()}
            required = {name: known.pop(name) for name in schema.get("required", []) if name in known}
            others = schema.get("additionalProperties")
            other = values(others) if isinstance(others, dict) else ANYTHING
            more = st.just({}) | st.dictionaries(st.text(max_size=4), other, max_size=2)
            whole = st.fixed_dictionaries(required, optional=known)
            return st.builds(lambda one, two: {**two, **one}, whole, more)
        case "array":
            return st.lists(values(schema.get("items", {"type": "string"})), max_size=3)
        case "integer" | "number":
            edges = [schema[key] + step for key in ("minimum", "maximum") if key in schema for step in (-1, 0, 1)]
            return st.sampled_from([*edges, 1, 1.0, 0.5, True, -1])
        case "boolean":
            return st.booleans()
        case _:
            edges = [schema[key] + step for key in ("minLength", "maxLength") if key in schema for step in (-1, 0, 1)]
            texts = st.sampled_from([*schema.get("enum", []), *STRINGS, *("a" * max(edge, 0) for edge in edges)])
            return texts | st.from_regex(schema["pattern"]) if "pattern" in schema else texts


@pytest.mark.parametrize("where", SCHEMAS)
def test_all_that_requests_are_asked_has_a_plain_check(where: str) -> None:
    assert compiled(SCHEMAS[where]) is not None


@pytest.mark.parametrize("where", [where for where, schema in SCHEMAS.items() if schema.get("type") == "object"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_body_fits_where_jsonschema_says_so(where: str, data: st.DataObject) -> None:
    fits = compiled(SCHEMAS[where])
    value = data.draw(values(SCHEMAS[where]))
    assert fits is not None
    assert fits(value) == fits_by_jsonschema(value, SCHEMAS[where])


KEYWORDS: list[dict[str, Any]] = [
    {"type": "string", "minLength": 1, "maxLength": 2},
    {"type": "string", "pattern": "^a+$", "nullable": True},
    {"type": "string", "enum": ["a", "b"], "nullable": True},
    {"type": "string", "format": "ipv4"},
    {"type": "integer", "minimum": 0, "maximum": 2},
    {"type": "number", "minimum": 0.5, "nullable": True},
    {"type": "boolean"},
    {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2},
    {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}, "additionalProperties": False},
    {"type": "object", "additionalProperties": {"type": "string"}, "maxProperties": 1, "nullable": True},
    {"anyOf": [{"type": "string"}, {"type": "array"}]},
]
VALUES: list[Any] = [
    *(None, True, False, 0, 1, 2, 3, -1, 0.5, 1.0, 0.4, float("inf"), "", "a", "b", "c", "aa", "aaa", "a\n", "1.2.3.4"),
    *([], [1], [1, 2], [1, 2, 3], ["a"], [True], {}, {"a": 1}, {"a": "x"}, {"a": 1, "b": 2}, {"b": "x"}, {"a": None}),
]


@pytest.mark.parametrize("schema", KEYWORDS, ids=str)
def test_each_keyword_means_what_it_means_to_jsonschema(schema: dict[str, Any]) -> None:
    fits = compiled(schema)
    assert fits is not None
    assert [value for value in VALUES if fits(value)] == [v for v in VALUES if fits_by_jsonschema(v, schema)]


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "integer", "multipleOf": 2},
        {"type": "integer", "maxLength": 2},
        {"type": "object", "properties": {"a": {"$ref": "#/b"}}},
        {"type": "array", "items": {"type": "string", "not": {}}},
        {"type": "string", "anyOf": []},
        {"nullable": True, "anyOf": [{"type": "string"}]},
    ],
    ids=str,
)
def test_a_schema_with_any_other_keyword_has_no_plain_check(schema: dict[str, Any]) -> None:
    assert compiled(schema) is None


@pytest.mark.parametrize(
    "body",
    [
        {"env": {"TOKEN": ["s3cret"]}},
        {"env": "s3cret"},
        {"env": ["s3cret"]},
        {"env": {"A": "s3cret" * 100_000}},
        {"stdin": ["s3cret"]},
        [{"env": {"TOKEN": "s3cret"}}],
        {"image": {"deep": [{"env": "s3cret"}]}},
    ],
)
def test_the_refusal_of_a_value_shows_no_secret(body: object) -> None:
    schema = {
        "type": "object",
        "properties": {
            "env": {"type": "object", "additionalProperties": {"type": "string", "maxLength": 1000}},
            "stdin": {"type": "string"},
            "image": {"type": "string"},
        },
    }
    with pytest.raises(errors.InvalidArgumentError) as refused:
        check(body, schema, "body")
    assert "s3cret" not in refused.value.message
    assert "***" in refused.value.message


def test_a_value_of_any_depth_is_refused_in_one_line() -> None:
    deep: object = "x"
    for _ in range(200):
        deep = {"a": [deep]}
    with pytest.raises(errors.InvalidArgumentError, match="is not of type 'string'"):
        check(deep, {"type": "string"}, "body")
