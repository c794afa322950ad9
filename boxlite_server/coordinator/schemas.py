"""Schemas as plain functions that say whether a value fits, in a fraction of the time that jsonschema takes.

They know the keywords of openapi.yaml's requests, and mean by them what the request validator does. A schema with
any other has no such function. What is wrong with a value that does not fit, jsonschema has to say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from jsonschema import Draft4Validator

Fits = Callable[[Any], bool]

# Keywords that ask nothing of a value; Connexion hangs the components under the schema of each body.
_SILENT = {"components", "default", "description", "example", "title"}


class UnknownKeywordError(Exception):
    """There is no plain check for this keyword, or for this form of it."""


def compiled(schema: Mapping[str, Any]) -> Fits | None:
    """The check of a schema that holds no references; None where it has a keyword that is not known here."""
    try:
        return _check(schema)
    except UnknownKeywordError:
        return None


def end_of_ecma(pattern: str) -> str:
    """As in ECMA 262, where `$` is the end and not also what stands before a last line break."""
    return re.sub(r"(?<!\\)\$$", r"\\Z", pattern)


def _check(schema: Mapping[str, Any]) -> Fits:
    asked = {key: value for key, value in schema.items() if key not in _SILENT}
    nullable, kind = asked.pop("nullable", False), asked.pop("type", None)
    if kind is None and not nullable and asked.keys() == {"anyOf"}:
        forms = [_check(form) for form in asked["anyOf"]]
        return lambda value: any(fits(value) for fits in forms)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise UnknownKeywordError(kind)
    fits = _KINDS[kind](asked)
    if asked:
        raise UnknownKeywordError(*asked)
    return (lambda value: value is None or fits(value)) if nullable else fits


# Each takes the keywords that it knows out of what is asked.


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
    item_fits = _check(asked.pop("items")) if "items" in asked else _anything
    return lambda value: isinstance(value, list) and fewest <= len(value) <= most and all(map(item_fits, value))


def _object(asked: dict[str, Any]) -> Fits:
    known = {name: _check(schema) for name, schema in asked.pop("properties", {}).items()}
    required, most = frozenset(asked.pop("required", ())), asked.pop("maxProperties", float("inf"))
    others = asked.pop("additionalProperties", True)
    other_fits = (_anything if others else _nothing) if isinstance(others, bool) else _check(others)

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
