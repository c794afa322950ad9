"""Request validators that replace Connexion's where it answers 500, buffers without bound, or prints a schema."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection
from typing import Any

from connexion.exceptions import BadRequestProblem, UnsupportedMediaTypeProblem
from connexion.uri_parsing import OpenAPIURIParser
from connexion.validators import VALIDATOR_MAP, AbstractRequestBodyValidator, FormDataValidator, ParameterValidator
from jsonschema import ValidationError
from starlette.datastructures import Headers
from starlette.types import Receive, Scope

from ...formats import parse_json
from ..schemas import describe, validate
from .errors import PayloadTooLargeError, RequestTimeoutError

MAX_JSON_BYTES = 2 * 1024 * 1024
MAX_FORM_BYTES = 64 * 1024
MAX_FORM_FIELDS = 100
MAX_SECONDS = 300.0  # for a JSON body or a form to come whole; released clients give up after that

BODY = "boxlite.body"  # key of the ASGI scope: a JSON body or a form, parsed and validated


def check_content_type(scope: Scope, accepted: Collection[str]) -> None:
    """Raise UnsupportedMediaTypeProblem for a POST whose body is of another type than its operation takes.

    A page of another web site can send bodies of some types, or without a type, and does not have to ask first.
    A body without a type is an octet stream.
    """
    headers = Headers(scope=scope)
    if scope["method"] != "POST" or not ("transfer-encoding" in headers or headers.get("content-length", "0") != "0"):
        return
    accepted = accepted or ("application/json",)
    given = headers.get("content-type", "").partition(";")[0].strip() or "application/octet-stream"
    if given.lower() not in accepted:
        raise UnsupportedMediaTypeProblem(
            detail=f"a body of type '{given}' is not taken here; its Content-Type has to be {' or '.join(accepted)}"
        )


class JSONBody(AbstractRequestBodyValidator):  # type: ignore[misc]
    """Reads a JSON body whole, with or without Content-Length, validates it, and passes it on parsed."""

    async def wrap_receive(self, receive: Receive, *, scope: Scope) -> tuple[Receive, Scope]:
        raw = b"".join([chunk async for chunk in _limited(receive, MAX_JSON_BYTES, "JSON body")])
        if not raw:
            if self._required:
                raise BadRequestProblem(detail="the request body is missing; it has to be a JSON object")
            raw = b"{}"
        body = _loads(raw)
        self._validate(body)
        return receive, {**scope, BODY: body}

    def _validate(self, body: Any) -> None:
        try:
            validate(body, self._schema)
        except ValidationError as exc:
            raise BadRequestProblem(detail=describe(exc, "body")) from None
        except RecursionError:  # a body that could just be parsed may be nested too deeply to be validated
            raise BadRequestProblem(detail="the request body is nested too deeply") from None


class FormBody(FormDataValidator):  # type: ignore[misc]
    """Reports an error in a form field to the client in one line, and logs nothing."""

    async def wrap_receive(self, receive: Receive, *, scope: Scope) -> tuple[Receive, Scope]:
        """Read the form whole, of MAX_FORM_BYTES and MAX_FORM_FIELDS at most, validate it, and pass it on parsed."""
        raw = b"".join([chunk async for chunk in _limited(receive, MAX_FORM_BYTES, "form")])
        if raw.count(b"&") >= MAX_FORM_FIELDS:
            raise BadRequestProblem(detail=f"the form has more than {MAX_FORM_FIELDS} fields")
        form = await self._parse(_once(raw), scope)
        self._validate(form)
        return receive, {**scope, BODY: form}

    def _validate(self, body: Any) -> None:
        try:
            self._validator.validate(body)
        except ValidationError as exc:
            raise BadRequestProblem(detail=describe(exc, "form")) from None


class QueryParser(OpenAPIURIParser):  # type: ignore[misc]
    """Keeps repeated query parameters as they were sent. Connexion joins them with commas and splits the result at
    every comma, including those in the values."""

    @staticmethod
    def _resolve_param_duplicates(values: Any, param_defn: dict[str, Any], _in: str) -> Any:
        return values if _in == "query" else OpenAPIURIParser._resolve_param_duplicates(values, param_defn, _in)

    @staticmethod
    def _split(value: Any, param_defn: dict[str, Any], _in: str) -> Any:
        return value if _in == "query" else OpenAPIURIParser._split(value, param_defn, _in)


class Parameters(ParameterValidator):  # type: ignore[misc]
    """Reports an error in a parameter in one line."""

    @staticmethod
    def validate_parameter(
        parameter_type: str, value: Any, param: dict[str, Any], param_name: str | None = None
    ) -> str | None:
        name = param_name or param["name"]
        if value is None:
            return f"{parameter_type} parameter '{name}' is missing" if param.get("required") else None
        schema = param.get("schema", param)
        try:
            validate(value, schema)
        except ValidationError as exc:
            return describe(exc, f"{parameter_type} parameter '{name}'")
        return None


# By content type. Only `application/json` itself gets JSONBody; Connexion validates its variants.
VALIDATORS: dict[str, Any] = {
    "parameter": Parameters,
    "body": {
        **VALIDATOR_MAP["body"],
        "application/json": JSONBody,
        "application/x-www-form-urlencoded": FormBody,
    },
}


async def _limited(receive: Receive, most: int, what: str) -> AsyncIterator[bytes]:
    size, more = 0, True
    deadline = time.monotonic() + MAX_SECONDS
    while more:
        message = await receive()
        if time.monotonic() > deadline:
            raise RequestTimeoutError(f"the {what} did not come whole within {MAX_SECONDS:g} s")
        if message["type"] == "http.disconnect":
            raise BadRequestProblem(detail="the client went away in the middle of the request body")
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > most:
            raise PayloadTooLargeError(f"the {what} is larger than {most} bytes")
        more = message.get("more_body", False)
        yield chunk


async def _once(raw: bytes) -> AsyncIterator[bytes]:
    yield raw


def _loads(raw: bytes) -> Any:
    try:
        return parse_json(raw.decode("utf-8"))
    except UnicodeDecodeError:
        raise BadRequestProblem(detail="the request body is not UTF-8") from None
    except ValueError as exc:
        raise BadRequestProblem(detail=f"the request body is not JSON: {exc}") from None
