"""Images: pull, list, get, remove. The catalogue's aliases and registries are refused with a reason."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any, NoReturn

from ... import errors
from .. import wire
from ..core import Core

NO_LIMIT = 2**53 - 1  # released clients want a number; this is the largest that JSON carries everywhere


async def pull_image(core: Core, prefix: str, body: dict[str, Any]) -> Any:
    return wire.image(await core.images.pull(body["reference"]))


async def list_images(core: Core, prefix: str, page_size: int | None = None, page_token: str | None = None) -> Any:
    images = await core.images.all()
    if page_token:
        behind = _decode_token(page_token)
        images = [image for image in images if (image.reference, image.id) > behind]
    page = images[:page_size]
    token = _encode_token(page[-1].reference, page[-1].id) if len(page) < len(images) else None
    return {"images": [wire.image(image) for image in page], "next_page_token": token}


async def get_image(core: Core, prefix: str, image_id: str) -> Any:
    found, versions = await core.images.find(image_id)
    return wire.image_detail(found[0], versions)


async def image_exists(core: Core, prefix: str, image_id: str) -> Any:
    await core.images.find(image_id)
    return None, 204


async def remove_image(core: Core, prefix: str, image_id: str) -> Any:
    await core.images.remove(image_id)
    return None, 204


async def get_image_usage(core: Core, prefix: str) -> Any:
    sizes = {image.id: image.size_bytes for image in await core.images.all()}
    return {"count": len(sizes), "limit": NO_LIMIT, "known_bytes": sum(sizes.values())}


async def list_image_registries(core: Core, prefix: str) -> NoReturn:
    raise errors.UnsupportedError(
        "this server keeps no registries; a worker's engine pulls with the credentials of its own host"
    )


async def add_image_alias(core: Core, prefix: str, image_id: str, body: dict[str, Any]) -> NoReturn:
    raise errors.UnsupportedError("this server keeps no aliases of images; use the image's own name or digest")


async def remove_image_alias(core: Core, prefix: str, image_id: str, alias: str) -> NoReturn:
    raise errors.UnsupportedError("this server keeps no aliases of images; there is none to remove")


def _encode_token(reference: str, image_id: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([reference, image_id]).encode()).decode()


def _decode_token(token: str) -> tuple[str, str]:
    try:
        reference, image_id = json.loads(base64.b64decode(token, altchars=b"-_", validate=True))
        return str(reference), str(image_id)
    except (binascii.Error, ValueError, TypeError):
        raise errors.InvalidArgumentError("pageToken is none of ours; use next_page_token of the page before") from None
