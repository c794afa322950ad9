"""The commands on images and volumes."""

from __future__ import annotations

import io
from argparse import Namespace
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlencode

from ... import references
from ...errors import NotFoundError, UpstreamUnavailableError
from .. import flags, output
from ..api import ApiClient, Json
from ..output import each
from ..parser import Commands
from ..progress import Bar, size


def add_to(commands: Commands) -> None:
    _add_images(commands)
    _add_volumes(commands)


# ---- images ----


def _add_images(commands: Commands) -> None:
    sub = commands.add(
        "images",
        images,
        "List the images that the workers hold",
        examples=("boxlite images", "boxlite images --format json"),
    )
    flags.add_shape(sub)

    sub = commands.add("pull", pull, "Pull an image", examples=("boxlite pull alpine:latest",))
    sub.add_argument("-q", "--quiet", action="store_true", help="print only the image's id")
    sub.add_argument("image", metavar="IMAGE", help="the image's reference, such as alpine:latest")

    sub = commands.add(
        "rmi", remove_images, "Remove images from the workers", examples=("boxlite rmi alpine:3.20 busybox",)
    )
    sub.add_argument("-f", "--force", action="store_true", help="ignore missing images")
    sub.add_argument("images", metavar="IMAGE", nargs="+", help="the image's reference, or its id")


def images(api: ApiClient, args: Namespace) -> int:
    found = [image for page in _pages(api, "images") for image in page["images"]]
    if args.quiet:
        for image_id in dict.fromkeys(str(image["id"]) for image in found):
            print(image_id)
    elif args.format != "table":
        print(output.document(found, args.format))
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


def remove_images(api: ApiClient, args: Namespace) -> int:
    def remove(image: str) -> None:
        with suppress(*[NotFoundError] if args.force else ()):
            api.request("DELETE", api.path("images", image))

    return each(args.images, remove, echo=True)


def familiar(repository: str) -> str:
    """A repository in its short form, without the default registry and `library/`."""
    return repository.removeprefix(f"{references.DEFAULT_REGISTRY}/").removeprefix("library/")


# ---- volumes ----


def _add_volumes(commands: Commands) -> None:
    volumes = commands.group(
        "volume",
        "Create, list, show and remove volumes",
        examples=("boxlite volume create data", "boxlite run --rm -v data:/data alpine:latest ls /data"),
    )
    sub = volumes.add(
        "create",
        create_volume,
        "Create a volume, and print its id",
        examples=("boxlite volume create data", "boxlite volume create"),
        check=_check_name,
    )
    sub.add_argument("--name", help="the same as VOLUME")
    sub.add_argument("volume", metavar="VOLUME", nargs="?", help="name the volume (default: its id)")

    sub = volumes.add(
        "ls", list_volumes, "List volumes", aliases=("list",), examples=("boxlite volume ls --format yaml",)
    )
    flags.add_shape(sub)

    sub = volumes.add(
        "get", get_volume, "Show a volume", aliases=("inspect",), examples=("boxlite volume get --format json data",)
    )
    flags.add_format(sub)
    sub.add_argument("volume", metavar="VOLUME", help="the volume's id or name")

    sub = volumes.add(
        "rm",
        remove_volumes,
        "Remove volumes and their data",
        aliases=("delete",),
        examples=("boxlite volume rm data logs",),
    )
    sub.add_argument("-f", "--force", action="store_true", help="ignore missing volumes")
    sub.add_argument("volumes", metavar="VOLUME", nargs="+", help="the id or name of a volume")


def _check_name(args: Namespace) -> str | None:
    return "give the name once: as VOLUME, or by --name" if args.name and args.volume else None


def create_volume(api: ApiClient, args: Namespace) -> int:
    name = args.volume or args.name
    print(api.post(api.path("volumes"), {"name": name} if name else {})["id"])
    return 0


def list_volumes(api: ApiClient, args: Namespace) -> int:
    found = [volume for page in _pages(api, "volumes") for volume in page["volumes"]]
    if args.quiet:
        for volume in found:
            print(volume["id"])
    else:
        print(_volume_table(found) if args.format == "table" else output.document(found, args.format))
    return 0


def get_volume(api: ApiClient, args: Namespace) -> int:
    volume = api.get(api.path("volumes", args.volume))
    print(_volume_table([volume]) if args.format == "table" else output.document(volume, args.format))
    return 0


def remove_volumes(api: ApiClient, args: Namespace) -> int:
    force = f"?force={'true' if args.force else 'false'}"
    return each(args.volumes, lambda volume: api.request("DELETE", api.path("volumes", volume) + force), echo=True)


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
