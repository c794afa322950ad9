"""The files of the page as browsers get them: read and compressed once, with the headers that confine the page.

The page shows names and output that come from boxes, so its policy lets it load and ask nothing but this server, run no
text as a program, and be shown inside no other page.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

_FOLDER = Path(__file__).parent / "static"
_INDEX = "index.html"
_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".svg": "image/svg+xml",
}

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # a browser asks each time whether its copy is still right, and gets 304
    "Vary": "Accept-Encoding",
}


class Asset(NamedTuple):
    """One file of the page."""

    content: bytes
    compressed: bytes
    media_type: str
    etag: str  # weak: both forms have the same one


@functools.cache
def assets() -> Mapping[str, Asset]:
    """Read all files of the page, by their paths below /ui/."""
    return {path.relative_to(_FOLDER).as_posix(): _asset(path) for path in _FOLDER.rglob("*") if path.suffix in _TYPES}


def _asset(path: Path) -> Asset:
    content = path.read_bytes()
    etag = f'W/"{hashlib.sha256(content).hexdigest()[:32]}"'
    return Asset(content, gzip.compress(content, mtime=0), _TYPES[path.suffix], etag)


async def serve_asset(request: Request) -> Response:
    """Answer with the file that the path below /ui/ names. Raises HTTPException for a file that the page lacks."""
    asset = assets().get(request.path_params["name"] or _INDEX)
    if asset is None:
        raise HTTPException(404)
    headers = {**_HEADERS, "ETag": asset.etag}
    if asset.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    content = asset.content
    if "gzip" in request.headers.get("accept-encoding", ""):
        content, headers["Content-Encoding"] = asset.compressed, "gzip"
    return Response(content, media_type=asset.media_type, headers=headers)
