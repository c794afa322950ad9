"""Files: tar archives, streamed into a box and out of it."""

from __future__ import annotations

from typing import Any

import connexion
from starlette.responses import Response

from .... import errors
from ...core import Core
from ..bodies import ArchiveResponse, drain, received

MEDIA_TYPE = "application/x-tar"


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
