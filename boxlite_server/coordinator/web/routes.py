"""The paths of the page, and the way to it."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from .assets import serve_asset

# Relative to `/` and `/ui`: a proxy may serve the coordinator below a path of its own.
_PAGE = "ui/"
_OPERATIONS = "/swagger-ui/"


async def _lead(request: Request) -> Response:
    """Lead browsers to the page, and everybody else to the operations of the API."""
    is_browser = "text/html" in request.headers.get("accept", "")
    return RedirectResponse(_PAGE if is_browser else _OPERATIONS, headers={"Vary": "Accept"})


async def _to_page(_: Request) -> Response:
    return RedirectResponse(_PAGE)


ROUTES = (Route("/", _lead), Route("/ui", _to_page), Route("/ui/{name:path}", serve_asset))
