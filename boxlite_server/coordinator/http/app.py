"""The coordinator's ASGI application: the edge around the operations of openapi.yaml and the WebSockets."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

from connexion.exceptions import ProblemException
from connexion.lifecycle import ConnexionRequest, ConnexionResponse
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send
from swagger_ui_bundle import swagger_ui_path

from ... import errors, specs
from .. import client_spec
from ..core import Core
from ..web.routes import ROUTES
from .attach.routes import Attach
from .connections import ConnectionLimits
from .edge import Edge
from .errors import AllowedMethods, error_response
from .idempotency import Idempotency
from .operations import OPERATION, Operations
from .origins import Origins
from .routing import TagResolver, build, connexion_app, is_served
from .validation import VALIDATORS, QueryParser

_SPECS = ("/openapi.yaml", "/openapi.json", "/openapi-client.yaml", "/openapi-client.json")
_DOCUMENTS = ("/", *_SPECS, "/swagger-ui", "/swagger-ui/", "/ui", "/ui/")

_SWAGGER_PAGE = """<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <title>BoxLite server API</title>
  <link rel="stylesheet" href="swagger-ui.css">
  <link rel="icon" href="favicon-32x32.png">
</head>
<body>
  <div id="swagger-ui"></div>
  <script src="swagger-ui-bundle.js"></script>
  <script>SwaggerUIBundle({url: "../openapi.json", dom_id: "#swagger-ui", deepLinking: true})</script>
</body>
</html>
"""


def create_app(
    core: Core,
    origins: Origins | None = None,
    body_seconds: float = ConnectionLimits.body,
    metrics_token: str | None = None,
) -> ASGIApp:
    """Build the ASGI application of one coordinator; it starts `core`, and closes it at shutdown.

    `origins`: the web sites whose pages may use the API; by default its own only. `body_seconds`: the longest pause in
    a request's body. `metrics_token`: see `Edge`.
    """
    spec = specs.openapi()
    http = Idempotency(_http_app(core, spec), core.store, core.leases, core.clock)
    operations = Operations(spec)
    return Edge(
        http,
        Attach(core),
        core.authenticator,
        core.quotas,
        core.audit,
        operations,
        _DOCUMENTS,
        origins,
        body_seconds,
        metrics_token,
    )


@functools.cache
def _spec_documents() -> dict[str, bytes]:
    """The bytes of each path of `_SPECS`, made once: that takes a moment."""
    spec = specs.openapi()
    for_clients = client_spec.derive(spec, is_served)
    texts = (
        specs.read("openapi.yaml"),
        json.dumps(spec).encode(),
        client_spec.as_yaml(for_clients),
        json.dumps(for_clients).encode(),
    )
    return dict(zip(_SPECS, texts, strict=True))


def _connexion_app(core: Core, spec: dict[str, Any]) -> ASGIApp:
    app = connexion_app(
        pythonic_params=True, resolver=TagResolver(core), validator_map=VALIDATORS, uri_parser_class=QueryParser
    )
    app.add_api(_without_security(spec))
    methods = AllowedMethods(spec)

    async def answer_error(request: ConnexionRequest, exc: Exception) -> ConnexionResponse:
        response = error_response(request.scope, exc, methods)
        return ConnexionResponse(
            status_code=response.status_code, headers=dict(response.headers), body=bytes(response.body)
        )

    for kind in (errors.BoxliteError, ProblemException, HTTPException, Exception):
        app.add_error_handler(kind, answer_error)
    build(app)
    api: ASGIApp = app
    return api


def _without_security(spec: dict[str, Any]) -> dict[str, Any]:
    """Copy the spec for Connexion, without `security`: the edge authenticates every request before it is routed."""
    spec = copy.deepcopy(spec)
    spec.pop("security", None)
    for operation in _operations(spec):
        operation.pop("security", None)
    return spec


def _operations(item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the operations of a spec or of one of its path items."""
    for part in item.get("paths", item).values():
        if isinstance(part, dict):
            yield from [part] if "operationId" in part else _operations(part)


def _http_app(core: Core, spec: dict[str, Any]) -> ASGIApp:
    """Serve the specs, the page and Swagger UI; requests for all other paths go to the API."""

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        core.start()
        yield
        await core.close()

    async def document(request: Request) -> Response:
        path = request.url.path
        return Response(_spec_documents()[path], media_type=f"application/{path.rpartition('.')[2]}")

    async def swagger_page(_: Any) -> Response:
        return HTMLResponse(_SWAGGER_PAGE)

    async def to_swagger(_: Any) -> Response:
        return RedirectResponse("/swagger-ui/")

    app = Starlette(
        routes=[
            *ROUTES,
            Route("/swagger-ui", to_swagger),
            *(Route(path, document) for path in _SPECS),
            Route("/swagger-ui/", swagger_page),
            Mount("/swagger-ui", StaticFiles(directory=swagger_ui_path)),
        ],
        lifespan=lifespan,
        exception_handlers={HTTPException: _answer, Exception: _answer},
    )
    app.router.default = api = _connexion_app(core, spec)
    app.router.redirect_slashes = False

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        await (api if scope.get(OPERATION) else app)(scope, receive, send)

    return serve


async def _answer(request: Request, exc: Exception) -> Response:
    return error_response(request.scope, exc)
