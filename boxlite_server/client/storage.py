"""The commands on images and volumes."""

from __future__ import annotations

import sys
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

from boxlite_server import references
from boxlite_server.client import output
from boxlite_server.client.api import ApiClient, Json
from boxlite_server.client.boxes import print_error
from boxlite_server.errors import BoxliteError

_UNITS = ("B", "kB", "MB", "GB", "TB")

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
                size(image.get("size_bytes")),
            )
            for image in found
        ]
        print(output.table(("REPOSITORY", "TAG", "IMAGE ID", "CACHED", "SIZE"), rows))
    return 0


def pull(api: ApiClient, args: Namespace) -> int:
    with _elapsed(f"Pulling {args.image}", shown=not args.quiet and sys.stderr.isatty()):
        image = api.post(api.path("images", "pull"), {"reference": args.image})
    if args.quiet:
        print(image["id"])
    else:
        print(f"{image['reference']}  {image['id']}  {size(image.get('size_bytes'))}")
    return 0


@contextmanager
def _elapsed(text: str, *, shown: bool) -> Iterator[None]:
    """Show on stderr how long it has been going on; the API tells nothing more until the end."""
    done, began = threading.Event(), time.monotonic()

    def show() -> None:
        while not done.wait(0.2):
            print(f"\r{text} … {time.monotonic() - began:.0f} s", end="", file=sys.stderr, flush=True)
        print("\r\033[K", end="", file=sys.stderr, flush=True)

    thread = threading.Thread(target=show, daemon=True)
    if shown:
        thread.start()
    try:
        yield
    finally:
        done.set()
        if shown:
            thread.join()


def familiar(repository: str) -> str:
    """A repository as people write it: without what is meant anyway."""
    return repository.removeprefix(f"{references.DEFAULT_REGISTRY}/").removeprefix("library/")


def size(byte_count: Any) -> str:
    """`7.73 MB`, in powers of 1000 as docker shows them."""
    if not isinstance(byte_count, int):
        return ""
    number, unit = float(byte_count), 0
    while number >= 1000 and unit < len(_UNITS) - 1:
        number, unit = number / 1000, unit + 1
    return f"{number:.3g} {_UNITS[unit]}"


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
