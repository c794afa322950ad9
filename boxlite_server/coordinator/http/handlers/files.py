"""Files: tar archives and single files, streamed into a box and out of it, and what directories hold."""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import quote

import connexion
from starlette.responses import Response

from .... import errors
from ...core import Core
from .. import views
from ..bodies import ranges
from ..bodies.streams import ArchiveResponse, drain, received
from ..errors import PreconditionFailedError

MEDIA_TYPE = "application/x-tar"
OCTETS = "application/octet-stream"
MAX_ENTRIES = 1000  # of a directory, in one answer
_TRIES = 3  # at reading a file that changes meanwhile


async def upload_files(
    core: Core,
    prefix: str,
    box_id: str,
    path: str,
    overwrite: bool = True,
    source_is_dir: bool | None = None,
    keep_owner: bool = False,
) -> Any:
    """Store the request's archive. There is no parameter `body`: Connexion would read the body whole for it."""
    body = connexion.request.stream()
    try:
        skipped = await core.files.upload(
            prefix,
            box_id,
            path,
            received(body),
            overwrite=overwrite,
            source_is_dir=source_is_dir,
            keep_owner=keep_owner,
        )
    except errors.BoxliteError:
        await drain(body)
        raise
    return None, 204, {"X-Boxlite-Skipped": skipped} if skipped else {}


async def download_files(core: Core, prefix: str, box_id: str, path: str, follow_symlinks: bool = False) -> Any:
    """Answer with an archive. Refusals come before the answer begins; a failure after that breaks the connection,
    since an archive that ends early looks whole."""
    is_dir, archive = await core.files.download(prefix, box_id, path, follow_symlinks=follow_symlinks)
    headers = {"X-Boxlite-Source-Is-Dir": "true" if is_dir else "false"}
    if isinstance(archive, bytes):
        return Response(archive, media_type=MEDIA_TYPE, headers=headers)
    return ArchiveResponse(archive, media_type=MEDIA_TYPE, headers=headers)


async def read_file(core: Core, prefix: str, box_id: str, path: str) -> Any:
    """Answer with a file or a part of it. A failure after the answer has begun breaks the connection."""
    request = connexion.request
    for _ in range(_TRIES):
        entry = await core.files.find_file(prefix, box_id, path)
        etag = _etag(entry.version)
        ranges.check_match(request.headers, etag)
        if ranges.is_known(request.headers, etag):
            return Response(status_code=304, headers={"ETag": etag})
        headers = {"ETag": etag, "Accept-Ranges": "bytes", **_as_download(entry.name)}
        if request.scope["method"] == "HEAD":
            return Response(media_type=OCTETS, headers={**headers, "Content-Length": str(entry.size)})
        part = ranges.part(request.headers, etag, entry.size)
        status, part = (200, range(entry.size)) if part is None else (206, part)
        headers["Content-Length"] = str(len(part))
        if status == 206:
            headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{entry.size}"
        chunks = await core.files.read(prefix, box_id, path, entry.version, part)
        if chunks is not None:
            return ArchiveResponse(chunks, status_code=status, media_type=OCTETS, headers=headers)
    raise errors.InvalidStateError(f"{path!r} changes all the time; it cannot be read whole")


async def write_file(core: Core, prefix: str, box_id: str, path: str, mode: str | None = None) -> Any:
    """Store the request's body as a file."""
    body, headers = connexion.request.stream(), connexion.request.headers
    try:
        versions, absent = _condition(headers.get("if-match"), headers.get("if-none-match"))
        permissions = None if mode is None else int(mode, 8)
        entry = await core.files.write(
            prefix, box_id, path, received(body), mode=permissions, versions=versions, absent=absent
        )
        if entry is None:
            raise PreconditionFailedError(
                f"{path!r} exists already; nothing was written"
                if absent
                else f"{path!r} has changed: If-Match does not name its present ETag; nothing was written"
            )
    except errors.BoxliteError:
        await drain(body)
        raise
    return None, 204, {"ETag": _etag(entry.version)}


async def stat_file(core: Core, prefix: str, box_id: str, path: str) -> Any:
    return views.file_entry(await core.files.stat(prefix, box_id, path), with_etag=True)


async def list_directory(
    core: Core, prefix: str, box_id: str, path: str, page_size: int | None = None, page_token: str | None = None
) -> Any:
    after = _name(page_token) if page_token else b""
    page = await core.files.entries(prefix, box_id, path, after=after, count=page_size or MAX_ENTRIES)
    last = page.entries[-1].name if page.more and page.entries else b""
    return {
        "entries": [views.file_entry(entry) for entry in page.entries],
        "next_page_token": base64.urlsafe_b64encode(last).decode() or None,
    }


def _etag(version: str) -> str:
    return f'"{version}"'


def _as_download(name: bytes) -> dict[str, str]:
    """Headers that keep a browser from showing what a box has written as a page of this server."""
    return {
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}",
        "X-Content-Type-Options": "nosniff",
    }


def _condition(if_match: str | None, if_none_match: str | None) -> tuple[list[str], bool]:
    """The versions of which a file has to have one, and whether it has to be absent."""
    if if_none_match is not None and if_none_match.strip() != "*":
        raise errors.UnsupportedError("'If-None-Match' can only be * here: the file must not exist")
    if if_match is None:
        return [], if_none_match is not None
    versions = ["*"] if if_match.strip() == "*" else [tag.strip('"') for tag in ranges.tags(if_match)]
    return versions or [""], if_none_match is not None


def _name(token: str) -> bytes:
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True)
    except ValueError:
        raise views.foreign_token() from None
