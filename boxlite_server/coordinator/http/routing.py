"""From an operation of openapi.yaml to the function that serves it, by way of Connexion.

The tag names the module and the operationId the function: ``createBox`` under ``Boxes`` is
``handlers/boxes.py: create_box``. An operation without a function is not built yet, and answers 501.

Whatever depends on the operation alone is made once, when the API is built. Stock Connexion tries one path after the
other, inspects and decorates the handler and makes parsers and validators for each request, and reads a JSON body
twice; for a short command, or with a thousand workers that send heartbeats, this is most of the cost of a request.
Middlewares with no work here are left out: the edge authenticates, and the application serves the documents.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Any, NoReturn

from connexion.apps.asynchronous import AsyncApi, AsyncASGIApp, AsyncOperation
from connexion.decorators.parameter import _get_val_from_param, pythonic
from connexion.decorators.response import AsyncResponseDecorator
from connexion.exceptions import UnsupportedMediaTypeProblem
from connexion.frameworks.starlette import Starlette
from connexion.lifecycle import ConnexionRequest
from connexion.middleware import ConnexionMiddleware
from connexion.middleware.abstract import ROUTING_CONTEXT
from connexion.middleware.context import ContextMiddleware
from connexion.middleware.exceptions import ExceptionMiddleware
from connexion.middleware.request_validation import (
    RequestValidationAPI,
    RequestValidationMiddleware,
    RequestValidationOperation,
)
from connexion.middleware.routing import RoutingMiddleware
from connexion.resolver import Resolution, Resolver
from connexion.utils import inspect_function_arguments, is_nullable
from starlette.types import ASGIApp, Receive, Scope, Send

from ...errors import InvalidArgumentError, NotBuiltError, NotFoundError
from ..core import Core
from .operations import OPERATION
from .validation import BODY, check_content_type

Handler = Callable[..., Awaitable[Any]]

_CONTENT_TYPES = 16  # whose validators are cached for each operation; clients may spell a type in many ways


def connexion_app(**options: Any) -> ConnexionMiddleware:
    """Make an application that serves the APIs added to it; `options` go to ConnexionMiddleware."""
    middlewares = [ExceptionMiddleware, _Routing, _ValidationMiddleware, ContextMiddleware]
    return ConnexionMiddleware(_Handlers(), middlewares=middlewares, **options)


def build(app: ConnexionMiddleware) -> None:
    """Build the middleware stack now. Connexion would do so at the first request, and all other requests would wait."""
    app.app, app.middleware_stack = app._build_middleware_stack()


class TagResolver(Resolver):  # type: ignore[misc]
    """Resolves operations to handlers that are bound to one coordinator's `core`."""

    def __init__(self, core: Core) -> None:
        super().__init__()
        self._core = core

    def resolve(self, operation: Any) -> Resolution:
        spec = operation._operation  # Connexion does not expose the tags
        handler = find_handler(spec["tags"][0], spec["operationId"])
        if handler is None:
            return Resolution(functools.partial(_not_built, spec["operationId"]), spec["operationId"])
        return Resolution(functools.partial(handler, self._core), spec["operationId"])


def find_handler(tag: str, operation_id: str) -> Handler | None:
    """Return the function that serves an operation; None when it is not built yet."""
    try:
        module = importlib.import_module(f".handlers.{tag.lower()}", __package__)
    except ModuleNotFoundError:
        return None
    return getattr(module, re.sub(r"(?<!^)(?=[A-Z])", "_", operation_id).lower(), None)


def is_served(operation: Mapping[str, Any]) -> bool:
    """Whether an operation of the spec is built, and its handler does not only refuse."""
    handler = find_handler(operation["tags"][0], operation["operationId"])
    return handler is not None and handler.__annotations__["return"] != "NoReturn"


async def _not_built(operation_id: str) -> NoReturn:
    raise NotBuiltError(f"{operation_id} is not built yet in this server")


class _Validation(RequestValidationOperation):  # type: ignore[misc]
    """Validates the requests of one operation."""

    def __init__(self, next_app: ASGIApp, *, operation: Any, **options: Any) -> None:
        super().__init__(next_app, operation=operation, **options)
        self._parser = _parser(operation)
        # Connexion adds the parameters of a path once more each time that it reads one of its operations.
        parameters = {(parameter["in"], parameter["name"]): parameter for parameter in operation.parameters}
        self._parameters = self._validator_map["parameter"](
            parameters.values(), uri_parser=self._parser, strict_validation=self.strict_validation
        )
        self._body_of = functools.lru_cache(_CONTENT_TYPES)(self._body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get(OPERATION) != self._operation.operation_id:
            # The edge has found another operation, or none, and so it has checked the scope of another one.
            raise NotFoundError(f"no such path: {scope['path']}; /swagger-ui/ lists what there is")
        self._parameters.validate(scope)
        check_content_type(scope, self._operation.consumes)
        mime_type, encoding = self.extract_content_type(scope["headers"])
        if not mime_type.isascii():  # Connexion cannot read it
            raise UnsupportedMediaTypeProblem(detail="the Content-Type holds characters that no type has")
        body = self._body_of(mime_type.lower(), encoding)
        if body is not None:
            receive, scope = await body.wrap_receive(receive, scope=scope)
        await self.next_app(scope, receive, send)

    def _body(self, mime_type: str, encoding: str) -> Any:
        """Return the validator of bodies of this type; None if they are not validated.

        Raises UnsupportedMediaTypeProblem for a type that the operation does not accept.
        """
        self.validate_mime_type(mime_type)
        schema = self._operation.body_schema(mime_type)
        kinds = self._validator_map["body"]
        if not schema or mime_type not in kinds:
            return None
        return kinds[mime_type](
            schema=schema,
            required=self._operation.request_body.get("required", False),
            nullable=is_nullable(self._operation.body_definition(mime_type)),
            encoding=encoding,
            strict_validation=self.strict_validation,
            uri_parser=self._parser,
        )


class _ValidationAPI(RequestValidationAPI):  # type: ignore[misc]
    def make_operation(self, operation: Any) -> _Validation:
        return _Validation(
            self.next_app,
            operation=operation,
            strict_validation=self.strict_validation,
            validator_map=self.validator_map,
        )


class _ValidationMiddleware(RequestValidationMiddleware):  # type: ignore[misc]
    api_cls = _ValidationAPI


class _Routing(RoutingMiddleware):  # type: ignore[misc]
    """Routes a request to the operation that the edge has found. Only for a path or method that is no operation's does
    Connexion's router look at all of them, to say what is wrong."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get(OPERATION) is None:
            await super().__call__(scope, receive, send)
            return
        routed = {"api_base_path": "", "operation_id": scope[OPERATION]}
        await self.app({**scope, "extensions": {**scope.get("extensions", {}), ROUTING_CONTEXT: routed}}, receive, send)


class _Responses(AsyncResponseDecorator):  # type: ignore[misc]
    """Turns what a handler returns into a response. A handler whose answer is not JSON returns a response."""

    @staticmethod
    def _infer_content_type(data: Any, headers: dict[str, str]) -> str | None:
        return None if data is None else "application/json"


class _Operation(AsyncOperation):  # type: ignore[misc]
    """Calls the handler of one operation, with its parameters by their names in Python and the body as `body`."""

    def __init__(self, operation: Any, *, pythonic_params: bool, jsonifier: Any) -> None:
        super().__init__(operation.function, jsonifier, operation.operation_id, pythonic_params)
        names, _ = inspect_function_arguments(operation.function)
        self._parser = _parser(operation)
        self._of_path, self._of_query = (_named(operation.parameters, place, names) for place in ("path", "query"))
        self._takes_body = "body" in names
        self._answer = _Responses(framework=Starlette, jsonifier=jsonifier)(self._call)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._answer(ConnexionRequest(scope, receive, uri_parser=self._parser))
        await response(scope, receive, send)

    async def _call(self, request: ConnexionRequest) -> Any:
        of_path = request.scope["path_params"]  # which are strings, all of them
        arguments = {name: of_path[parameter["name"]] for name, parameter in self._of_path}
        for name, parameter in self._of_query:
            value = request.query_params.get(parameter["name"], parameter["schema"].get("default"))
            if value is None:
                continue
            if name in arguments:
                raise InvalidArgumentError(f"'{parameter['name']}' is the older name of '{name}'; give only one")
            arguments[name] = _get_val_from_param(value, parameter)
        if self._takes_body:
            arguments["body"] = request.scope.get(BODY)
        return await self._fn(**arguments)


def _named(
    parameters: Iterable[dict[str, Any]], place: str, names: Collection[str]
) -> list[tuple[str, dict[str, Any]]]:
    """Return the parameters `in` that place with their names in Python, as far as these are among `names`. A parameter
    with an older name stands behind the one that it means: both have one name in Python."""
    found = [(pythonic(parameter["name"]), parameter) for parameter in parameters if parameter["in"] == place]
    return [(name, parameter) for name, parameter in found if name in names]


class _Api(AsyncApi):  # type: ignore[misc]
    def make_operation(self, operation: Any) -> _Operation:
        return _Operation(operation, pythonic_params=self.pythonic_params, jsonifier=self.jsonifier)


class _Handlers(AsyncASGIApp):  # type: ignore[misc]
    api_cls = _Api


def _parser(operation: Any) -> Any:
    """Make the parser of an operation's parameters; it holds no state of a request."""
    return operation.uri_parser_class(operation.parameters, operation.body_definition())
