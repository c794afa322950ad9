"""Compiles JSON schemas to plain functions, which check a value in a fraction of the time that jsonschema takes.

The functions support the keywords that the requests in openapi.yaml use, with the meaning that the request validator
gives them. A schema with another keyword is not compiled, and jsonschema checks its values. jsonschema also says what
is wrong with a value that does not fit.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jsonschema.validators
from connexion.json_schema import Draft4RequestValidator
from jsonschema import Draft4Validator, ValidationError

from .. import errors

Fits = Callable[[Any], bool]

# Keywords that ask nothing of a value; Connexion adds the `components` to the schema of each body.
_SILENT = {"components", "default", "deprecated", "description", "example", "title"}


class UnknownKeywordError(Exception):
    """A keyword, or a form of it, that cannot be compiled."""


def compiled(schema: Mapping[str, Any]) -> Fits | None:
    """The check of a schema without references; None when the schema has a keyword that cannot be compiled."""
    try:
        return _compile(schema)
    except UnknownKeywordError:
        return None


def end_of_ecma(pattern: str) -> str:
    """The pattern with the `$` of ECMA 262, which matches only at the end and not before a last line break."""
    return re.sub(r"(?<!\\)\$$", r"\\Z", pattern)


def _compile(schema: Mapping[str, Any]) -> Fits:
    asked = {key: value for key, value in schema.items() if key not in _SILENT}
    nullable, kind = asked.pop("nullable", False), asked.pop("type", None)
    if kind is None and not nullable and asked.keys() == {"anyOf"}:
        forms = [_compile(form) for form in asked["anyOf"]]
        return lambda value: any(fits(value) for fits in forms)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise UnknownKeywordError(kind)
    fits = _KINDS[kind](asked)
    if asked:
        raise UnknownKeywordError(*asked)
    return (lambda value: value is None or fits(value)) if nullable else fits


# Each of these functions pops the keywords that it supports from `asked`; `_compile` refuses the rest.


def _string(asked: dict[str, Any]) -> Fits:
    shortest, longest = asked.pop("minLength", 0), asked.pop("maxLength", float("inf"))
    found = re.compile(end_of_ecma(asked.pop("pattern", ""))).search
    one_of, form = asked.pop("enum", None), asked.pop("format", None)
    checker = Draft4Validator.FORMAT_CHECKER
    form = form if form in checker.checkers else None

    def fits(value: Any) -> bool:
        return (
            isinstance(value, str)
            and shortest <= len(value) <= longest
            and found(value) is not None
            and (one_of is None or value in one_of)
            and (form is None or checker.conforms(value, form))
        )

    return fits


def _number(asked: dict[str, Any], kinds: tuple[type, ...] = (int, float)) -> Fits:
    if asked.pop("format", None) in Draft4Validator.FORMAT_CHECKER.checkers:
        raise UnknownKeywordError("format")
    least, most = asked.pop("minimum", float("-inf")), asked.pop("maximum", float("inf"))
    return lambda value: isinstance(value, kinds) and not isinstance(value, bool) and least <= value <= most


def _integer(asked: dict[str, Any]) -> Fits:
    return _number(asked, (int,))


def _boolean(_: dict[str, Any]) -> Fits:
    return lambda value: isinstance(value, bool)


def _array(asked: dict[str, Any]) -> Fits:
    fewest, most = asked.pop("minItems", 0), asked.pop("maxItems", float("inf"))
    item_fits = _compile(asked.pop("items")) if "items" in asked else _anything
    return lambda value: isinstance(value, list) and fewest <= len(value) <= most and all(map(item_fits, value))


def _object(asked: dict[str, Any]) -> Fits:
    known = {name: _compile(schema) for name, schema in asked.pop("properties", {}).items()}
    required, most = frozenset(asked.pop("required", ())), asked.pop("maxProperties", float("inf"))
    others = asked.pop("additionalProperties", True)
    other_fits = (_anything if others else _nothing) if isinstance(others, bool) else _compile(others)

    def fits(value: Any) -> bool:
        return (
            isinstance(value, dict)
            and required <= value.keys()
            and len(value) <= most
            and all(known.get(name, other_fits)(held) for name, held in value.items())
        )

    return fits


def _anything(_: Any) -> bool:
    return True


def _nothing(_: Any) -> bool:
    return False


_KINDS: dict[str, Callable[[dict[str, Any]], Fits]] = {
    "array": _array,
    "boolean": _boolean,
    "integer": _integer,
    "number": _number,
    "object": _object,
    "string": _string,
}

MAX_SHOWN = 120  # characters of a refused value
MAX_DEPTH = 8  # of it
HIDDEN = frozenset({"client_secret", "env", "stdin", "stdin_base64"})  # fields whose values may be secrets


def describe(exc: ValidationError, where: str) -> str:
    """A validation error as one line for the person who wrote the request; `where` names the part of the request. No
    value of a field in `HIDDEN` is shown: the line goes into logs and into answers that are kept."""
    path = ".".join(str(part) for part in exc.absolute_path)
    shown = "***" if HIDDEN.intersection(exc.absolute_path) else _shown(exc.instance)
    subject = f"{where}: '{path}'" if path else where
    if exc.validator in ("anyOf", "oneOf", "allOf", "not"):
        return f"{subject} has none of the allowed forms: {shown}"
    if exc.validator == "pattern":
        return f"{subject}: {shown} does not match {exc.validator_value}"
    if exc.validator == "required":
        return f"{subject}: {exc.message}"
    message = exc.message.replace(repr(exc.instance), shown)
    return f"{subject}: {message}"


def check(value: Any, schema: dict[str, Any], where: str) -> None:
    """Raises InvalidArgumentError when `value` does not fit. `schema` has to live as long as the program."""
    try:
        validate(value, schema)
    except ValidationError as exc:
        raise errors.InvalidArgumentError(describe(exc, where)) from None


def _shown(value: Any) -> str:
    text = json.dumps(_masked(value))
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"


def _masked(value: Any, depth: int = 0) -> Any:
    if not isinstance(value, dict | list):
        return value
    if depth == MAX_DEPTH:
        return "…"
    if isinstance(value, list):
        return [_masked(held, depth + 1) for held in value]
    return {name: "***" if name in HIDDEN else _masked(held, depth + 1) for name, held in value.items()}


class _Schema:
    """A schema as a cache key, compared by identity: the spec's schemas live as long as the program."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self.schema = schema

    def __hash__(self) -> int:
        return id(self.schema)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Schema) and other.schema is self.schema


def _pattern(_: Any, pattern: str, instance: Any, __: Any) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not re.search(end_of_ecma(pattern), instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


_RequestValidator = jsonschema.validators.extend(  # type: ignore[no-untyped-call]
    Draft4RequestValidator, {"pattern": _pattern}
)


def validate(value: Any, schema: dict[str, Any]) -> None:
    """Raises ValidationError when `value` does not fit. `schema` has to live as long as the program."""
    fits = _fits(_Schema(schema))
    if fits is None or not fits(value):
        _validator(_Schema(schema)).validate(value)


@functools.lru_cache(maxsize=512)
def _fits(schema: _Schema) -> Fits | None:
    return compiled(schema.schema)


@functools.lru_cache(maxsize=512)
def _validator(schema: _Schema) -> Draft4Validator:
    validator: Draft4Validator = _RequestValidator(schema.schema, format_checker=Draft4Validator.FORMAT_CHECKER)
    return validator
