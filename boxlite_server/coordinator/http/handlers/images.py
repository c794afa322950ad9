"""Images: pull, list, get, remove. Requests about aliases and registries are refused with a reason."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, NoReturn

import connexion
from starlette.responses import StreamingResponse
from starlette.types import Scope

from .... import errors
from ...core import Core
from ...domain.images import Image, PullProgress
from ...limits import PULL_SECONDS
from .. import views
from ..errors import asking, error_body

_LINES = "application/x-ndjson"
NO_LIMIT = 2**53 - 1  # released clients require a number; this is the largest that every JSON parser reads


async def pull_image(core: Core, prefix: str, body: dict[str, Any]) -> Any:
    events = core.images.pull(body["reference"], asking(prefix))
    if _LINES in connexion.request.headers.get("accept", ""):
        # A pull that fails at its first step is answered with the status of its error.
        first = await anext(events)
        return StreamingResponse(_lines(core, connexion.request.scope, first, events), media_type=_LINES)
    try:
        async with asyncio.timeout(PULL_SECONDS), contextlib.aclosing(events):
            async for event in events:
                if isinstance(event, Image):
                    return views.image(event), 200, {"Content-Type": "application/json"}
    except TimeoutError:
        raise errors.TimedOutError(
            f"{body['reference']} was not pulled in {PULL_SECONDS:.0f} s; the worker goes on, so ask again"
        ) from None
    raise AssertionError("a pull ends with an image or an error")


async def _lines(
    core: Core, scope: Scope, first: PullProgress | Image, events: AsyncGenerator[PullProgress | Image, None]
) -> AsyncIterator[bytes]:
    try:
        async with contextlib.aclosing(events):
            yield _line(first)
            async for event in events:
                if core.stopping.is_set():
                    raise errors.UpstreamUnavailableError("the coordinator is shutting down; ask again")
                yield _line(event)
    except errors.BoxliteError as exc:
        yield json.dumps(error_body(scope, exc)).encode() + b"\n"


def _line(event: PullProgress | Image) -> bytes:
    fields = {"image": views.image(event)} if isinstance(event, Image) else event._asdict()
    return json.dumps(fields).encode() + b"\n"


async def list_images(core: Core, prefix: str, page_size: int | None = None, page_token: str | None = None) -> Any:
    images = await core.images.all(asking(prefix))
    if page_token:
        behind = views.decode_token(page_token, str, str)
        images = [image for image in images if (image.reference, image.id) > behind]
    page, token = views.page(images, page_size, lambda image: (image.reference, image.id))
    return {"images": [views.image(image) for image in page], "next_page_token": token}


async def get_image(core: Core, prefix: str, image_id: str) -> Any:
    found, versions = await core.images.find(image_id, asking(prefix))
    return views.image_detail(found[0], versions)


async def image_exists(core: Core, prefix: str, image_id: str) -> Any:
    await core.images.find(image_id, asking(prefix))
    return None, 204


async def remove_image(core: Core, prefix: str, image_id: str) -> Any:
    await core.images.remove(image_id, asking(prefix))
    return None, 204


async def get_image_usage(core: Core, prefix: str) -> Any:
    sizes = {image.id: image.size_bytes for image in await core.images.all(asking(prefix))}
    return {"count": len(sizes), "limit": NO_LIMIT, "known_bytes": sum(sizes.values())}


async def list_image_registries(core: Core, prefix: str) -> NoReturn:
    raise errors.UnsupportedError(
        "this server keeps no registries; a worker's engine pulls with the credentials of its own host"
    )


async def add_image_alias(core: Core, prefix: str, image_id: str, body: dict[str, Any]) -> NoReturn:
    raise errors.UnsupportedError("this server keeps no aliases of images; use the image's own name or digest")


async def remove_image_alias(core: Core, prefix: str, image_id: str, alias: str) -> NoReturn:
    raise errors.UnsupportedError("this server keeps no aliases of images; there is none to remove")
