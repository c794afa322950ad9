"""The commands on images and volumes."""

from __future__ import annotations

import io
from argparse import Namespace
from collections.abc import Iterator
from urllib.parse import urlencode

from ... import references
from ...errors import BoxliteError, UpstreamUnavailableError
from .. import output
from ..api import ApiClient, Json
from ..output import print_error
from ..progress import Bar, size

# ---- images ----


def images(api: ApiClient, args: Namespace) -> int:
    found = [image for page in _pages(api, "images") for image in page["images"]]
    if args.quiet:
        for image_id in dict.fromkeys(str(image["id"]) for image in found):
            print(image_id)
    elif args.format == "json":
        print(output.as_json(found))
    else:
        rows = [
            (
                familiar(image["repository"]),
                image["tag"] or "<none>",
                image["id"].removeprefix("sha256:")[:12],
                output.age(image["cached_at"]),
                size(image.get("size_bytes") or 0),
            )
            for image in found
        ]
        print(output.table(("REPOSITORY", "TAG", "IMAGE ID", "CACHED", "SIZE"), rows))
    return 0


def pull(api: ApiClient, args: Namespace) -> int:
    image: Json | None = None
    with Bar(f"Pulling {args.image}", stream=io.StringIO() if args.quiet else None) as bar:
        for event in api.post_lines(api.path("images", "pull"), {"reference": args.image}):
            if "current_bytes" in event:
                bar.update(event["current_bytes"], event["total_bytes"])
            else:
                image = event.get("image", event)
        if image is None:
            raise UpstreamUnavailableError("the server broke off the pull; try again")
        bar.update(bar.total or 0)
    print(image["id"] if args.quiet else f"{image['reference']}  {image['id']}  {size(image.get('size_bytes') or 0)}")
    return 0


def familiar(repository: str) -> str:
    """A repository in its short form, without the default registry and `library/`."""
    return repository.removeprefix(f"{references.DEFAULT_REGISTRY}/").removeprefix("library/")


# ---- volumes ----


def create_volume(api: ApiClient, args: Namespace) -> int:
    print(api.post(api.path("volumes"), {"name": args.name} if args.name else {})["id"])
    return 0


def list_volumes(api: ApiClient, args: Namespace) -> int:
    found = [volume for page in _pages(api, "volumes") for volume in page["volumes"]]
    if args.quiet:
        for volume in found:
            print(volume["id"])
    elif args.format == "json":
        print(output.as_json(found))
    else:
        print(_volume_table(found))
    return 0


def get_volume(api: ApiClient, args: Namespace) -> int:
    volume = api.get(api.path("volumes", args.volume))
    print(_volume_table([volume]) if args.format == "table" else output.as_json(volume))
    return 0


def remove_volumes(api: ApiClient, args: Namespace) -> int:
    failed = 0
    for volume in args.volumes:
        try:
            api.request("DELETE", api.path("volumes", volume) + f"?force={'true' if args.force else 'false'}")
            print(volume)
        except BoxliteError as error:
            print_error(error.message)
            failed = 1
    return failed


def _volume_table(volumes: list[Json]) -> str:
    rows = [(volume["id"], volume["name"], output.age(volume["created_at"])) for volume in volumes]
    return output.table(("ID", "NAME", "CREATED"), rows)


def _pages(api: ApiClient, kind: str) -> Iterator[Json]:
    query = ""
    while True:
        page = api.get(api.path(kind) + query)
        yield page
        token = page.get("next_page_token")
        if not token:
            return
        query = "?" + urlencode({"pageToken": token})
