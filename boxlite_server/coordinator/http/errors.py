"""Errors on HTTP: the one place that turns an exception into the status, headers and body of an answer."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from contextvars import ContextVar
from http import HTTPStatus
from typing import Any

import connexion.exceptions
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from ... import errors
from ...formats import without_secrets

log = logging.getLogger(__name__)

# Keys of the ASGI scope that the edge sets.
REQUEST_ID = "boxlite.request_id"
INTEGER_CODES = "boxlite.integer_codes"
PRINCIPAL = "boxlite.principal"

# Whether the request that is being served is one of an operator, who may hear of workers and their hosts.
IS_OPERATOR: ContextVar[bool] = ContextVar("is_operator", default=False)

# Seconds until the same request may succeed, by status: a used-up resource may be released at any moment, and an
# unreachable worker is heard of again with its next heartbeat.
RETRY_AFTER = {429: 1, 503: 5}

_METHODS = {"GET", "HEAD", "PUT", "POST", "PATCH", "DELETE"}


class MethodNotAllowedError(errors.UnsupportedError):
    status = 405


class RequestTimeoutError(errors.TimedOutError):
    """The client did not go on with its request in time; its connection is closed."""

    status = 408


class PayloadTooLargeError(errors.InvalidArgumentError):
    status = 413


class UnsupportedMediaTypeError(errors.InvalidArgumentError):
    status = 415


class PreconditionFailedError(errors.InvalidStateError):
    """A file is not as the request wants it to be."""

    status = 412


class RangeNotSatisfiableError(errors.InvalidArgumentError):
    """A file has no byte of the range. `size`: its bytes."""

    status = 416

    def __init__(self, size: int) -> None:
        super().__init__(f"the file has {size} bytes, and none of them is in the range")
        self.size = size


class UpgradeRequiredError(errors.InvalidArgumentError):
    status = 426

    def __init__(self) -> None:
        super().__init__("this path speaks WebSocket; connect with an Upgrade handshake")


class HeadTooLargeError(errors.InvalidArgumentError):
    status = 431


class AllowedMethods:
    """The methods of each path of a spec. Starlette's own `Allow` header names those of the first route only."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        greedy = {p["name"] for p in spec["components"]["parameters"].values() if p["schema"].get("format") == "path"}

        def segment(match: re.Match[str]) -> str:
            return ".+" if match[1] in greedy else "[^/]+"

        self._paths = [
            (re.compile(re.sub(r"\{(\w+)\}", segment, path)), {method.upper() for method in item} & _METHODS)
            for path, item in spec["paths"].items()
        ]

    def of(self, path: str) -> str | None:
        """Return the value of the `Allow` header for a path; None for a path that the spec does not have."""
        methods = set().union(*(methods for pattern, methods in self._paths if pattern.fullmatch(path)))
        if "GET" in methods:
            methods.add("HEAD")
        return ", ".join(sorted(methods)) or None


def error_response(scope: Scope, exc: Exception, methods: AllowedMethods | None = None) -> Response:
    """Build the answer to a failed request; `methods` gives a 405 its `Allow` header."""
    error = _translate(scope, exc)
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    if error.status == 408:
        headers = {"Connection": "close"}
    if isinstance(error, RangeNotSatisfiableError):
        headers = {"Content-Range": f"bytes */{error.size}"}
    if error.status == 426:
        headers = {"Connection": "Upgrade", "Upgrade": "websocket"}
    if isinstance(exc, HTTPException) and exc.headers:
        headers.update({key: value for key, value in exc.headers.items() if key.lower() == "allow"})
    if error.status == 405 and methods and (allowed := methods.of(scope["path"])):
        headers["Allow"] = allowed
    return Response(
        json.dumps(error_body(scope, error)), status_code=error.status, media_type="application/json", headers=headers
    )


def raw_response(error: errors.BoxliteError, request_id: str) -> bytes:
    """Build the bytes of the answer to what is not a request; the connection has to be closed after them."""
    response = error_response({REQUEST_ID: request_id}, error)
    response.headers.update({"X-Request-Id": request_id, "Connection": "close"})
    lines = [b"HTTP/1.1 %d %s" % (error.status, HTTPStatus(error.status).phrase.encode())]
    lines += [b"%s: %s" % (name, value) for name, value in response.raw_headers]
    return b"\r\n".join([*lines, b"", bytes(response.body)])


def shown(error: errors.BoxliteError) -> str:
    """The text of an error for whoever is being served: workers and their hosts are named to operators alone."""
    return error.message if IS_OPERATOR.get() else error.public


def asking(prefix: str) -> str | None:
    """The tenant that is being served, by its prefix; None: an operator is."""
    return None if IS_OPERATOR.get() else prefix


def error_body(scope: Scope, error: errors.BoxliteError) -> dict[str, Any]:
    """Build the JSON body of an error. A released client decodes `code` as an integer or as a string, and its path
    tells which."""
    return {
        "error": {
            "message": without_secrets(shown(error)),
            "type": error.type,
            "code": error.status if scope.get(INTEGER_CODES) else error.code,
            "request_id": scope[REQUEST_ID],
        }
    }


def _translate(scope: Scope, exc: Exception) -> errors.BoxliteError:
    if isinstance(exc, errors.BoxliteError):
        if exc.status >= 500 and not isinstance(exc, errors.NotBuiltError):
            log.warning("%s", exc)
        return exc
    if isinstance(exc, connexion.exceptions.ProblemException):
        return _framework_error(scope, exc.status, exc.detail or exc.title)
    if isinstance(exc, HTTPException):
        return _framework_error(scope, exc.status_code, exc.detail)
    log.error("fault in %s %s", scope.get("method"), scope["path"], exc_info=exc)
    return errors.BoxliteError(
        f"the coordinator failed at this request; its log has the cause under {scope[REQUEST_ID]}"
    )


def _framework_error(scope: Scope, status: int, detail: str) -> errors.BoxliteError:
    request = f"{scope.get('method', 'GET')} {scope['path']}"
    if status == 404:
        return errors.NotFoundError(f"no such path: {request}; /swagger-ui/ lists what there is")
    if status == 405:
        return MethodNotAllowedError(f"method not allowed: {request}; /swagger-ui/ lists what there is")
    if status == 413:
        return PayloadTooLargeError(detail)
    if status == 415:
        return UnsupportedMediaTypeError(detail)
    if 400 <= status < 500:
        return errors.InvalidArgumentError(detail)
    return errors.BoxliteError(detail)
