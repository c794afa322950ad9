"""Request validation where Connexion's own would answer 500, buffer without bound, or print a schema at people."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import jsonschema.validators
from connexion.exceptions import BadRequestProblem
from connexion.json_schema import Draft4RequestValidator
from connexion.uri_parsing import OpenAPIURIParser
from connexion.validators import VALIDATOR_MAP, AbstractRequestBodyValidator, FormDataValidator, ParameterValidator
from jsonschema import Draft4Validator, ValidationError
from starlette.datastructures import MutableHeaders
from starlette.types import Receive, Scope

from ... import errors
from ..schemas import Fits, compiled, end_of_ecma
from .errors import PayloadTooLargeError

MAX_JSON_BYTES = 2 * 1024 * 1024
MAX_SHOWN = 120  # characters of a refused value

BODY = "boxlite.body"  # in the scope: a JSON body that has been read and checked


class JSONBody(AbstractRequestBodyValidator):  # type: ignore[misc]
    """Reads a JSON body whole, with or without Content-Length, checks it, and hands it on read and as plain JSON."""

    async def wrap_receive(self, receive: Receive, *, scope: Scope) -> tuple[Receive, Scope]:
        raw = b"".join([chunk async for chunk in _limited(receive)])
        if not raw:
            if self._required:
                raise BadRequestProblem(detail="the request body is missing; it has to be a JSON object")
            raw = b"{}"
        body = _loads(raw)
        self._validate(body)
        scope = {**scope, BODY: body}
        headers = MutableHeaders(raw=list(scope["headers"]))
        headers["content-type"] = "application/json"
        headers["content-length"] = str(len(raw))
        scope["headers"] = headers.raw
        message = {"type": "http.request", "body": raw, "more_body": False}
        return self._insert_messages(receive, messages=[message]), scope

    def _validate(self, body: Any) -> None:
        try:
            _validate(body, self._schema)
        except ValidationError as exc:
            raise BadRequestProblem(detail=describe(exc, "body")) from None
        except RecursionError:  # what could just be read cannot always be shown
            raise BadRequestProblem(detail="the request body is nested too deeply") from None


class FormBody(FormDataValidator):  # type: ignore[misc]
    """Errors in form fields as one line to the client, and none in the log."""

    def _validate(self, body: Any) -> None:
        try:
            self._validator.validate(body)
        except ValidationError as exc:
            raise BadRequestProblem(detail=describe(exc, "form")) from None


class QueryParser(OpenAPIURIParser):  # type: ignore[misc]
    """Repeated query parameters as they were sent. Connexion joins them by commas and splits the whole at every
    comma, also at those in the values."""

    @staticmethod
    def _resolve_param_duplicates(values: Any, param_defn: dict[str, Any], _in: str) -> Any:
        return values if _in == "query" else OpenAPIURIParser._resolve_param_duplicates(values, param_defn, _in)

    @staticmethod
    def _split(value: Any, param_defn: dict[str, Any], _in: str) -> Any:
        return value if _in == "query" else OpenAPIURIParser._split(value, param_defn, _in)


class Parameters(ParameterValidator):  # type: ignore[misc]
    """Parameter errors as one line."""

    @staticmethod
    def validate_parameter(
        parameter_type: str, value: Any, param: dict[str, Any], param_name: str | None = None
    ) -> str | None:
        name = param_name or param["name"]
        if value is None:
            return f"{parameter_type} parameter '{name}' is missing" if param.get("required") else None
        schema = param.get("schema", param)
        try:
            _validate(value, schema)
        except ValidationError as exc:
            return describe(exc, f"{parameter_type} parameter '{name}'")
        return None


# The JSON content type as clients write it, and nothing else, has our validator.
VALIDATORS: dict[str, Any] = {
    "parameter": Parameters,
    "body": {
        **VALIDATOR_MAP["body"],
        "application/json": JSONBody,
        "application/x-www-form-urlencoded": FormBody,
    },
}


def describe(exc: ValidationError, where: str) -> str:
    """A validation error as one line for the person who wrote the request."""
    path = ".".join(str(part) for part in exc.absolute_path)
    subject = f"{where}: '{path}'" if path else where
    if exc.validator in ("anyOf", "oneOf", "allOf", "not"):
        return f"{subject} has none of the allowed forms: {_shown(exc.instance)}"
    if exc.validator == "pattern":
        return f"{subject}: {_shown(exc.instance)} does not match {exc.validator_value}"
    if exc.validator == "required":
        return f"{subject}: {exc.message}"
    message = exc.message.replace(repr(exc.instance), _shown(exc.instance))
    return f"{subject}: {message}"


def check(value: Any, schema: dict[str, Any], where: str) -> None:
    """Raises InvalidArgumentError where `value` does not fit. `schema` has to live as long as the program."""
    try:
        _validate(value, schema)
    except ValidationError as exc:
        raise errors.InvalidArgumentError(describe(exc, where)) from None


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"


async def _limited(receive: Receive) -> AsyncIterator[bytes]:
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BadRequestProblem(detail="the client went away in the middle of the request body")
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > MAX_JSON_BYTES:
            raise PayloadTooLargeError(f"the JSON body is larger than {MAX_JSON_BYTES} bytes")
        more = message.get("more_body", False)
        yield chunk


def _loads(raw: bytes) -> Any:
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
        if b"\\u" in raw:  # a lone surrogate can be written in JSON, but is no text
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError:
        raise BadRequestProblem(detail="the request body is not UTF-8") from None
    except UnicodeEncodeError:
        raise BadRequestProblem(detail="the request body holds a lone surrogate, which is no character") from None
    except (ValueError, RecursionError) as exc:
        raise BadRequestProblem(detail=f"the request body is not JSON: {exc}") from None
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


class _Schema:
    """A schema as a key of a cache: by its identity, for the spec's schemas live as long as the program."""

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


def _validate(value: Any, schema: dict[str, Any]) -> None:
    """Raises ValidationError where `value` does not fit."""
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
