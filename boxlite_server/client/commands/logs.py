"""`logs`: prints the output of a box's main command."""

from __future__ import annotations

import base64
import http.client
import json
from argparse import Namespace
from collections.abc import Iterator
from urllib.parse import urlencode

from ...errors import BoxliteError, UpstreamUnavailableError
from .. import terminal
from ..api import ApiClient, unreachable

_DESCRIPTORS = {"stdout": terminal.STDOUT, "stderr": terminal.STDERR}


def logs(api: ApiClient, args: Namespace) -> int:
    query = {"follow": "true"} if args.follow else {}
    if args.tail is not None:
        query["tail"] = str(args.tail)
    path = api.path("boxes", args.box, "logs") + ("?" + urlencode(query) if query else "")
    with api.download("GET", path, "text/event-stream") as response:
        try:
            for name, data in _events(response):
                if name in _DESCRIPTORS:
                    terminal.write_all(_DESCRIPTORS[name], base64.b64decode(json.loads(data)["data"]))
                elif name == "end":
                    return 0
                elif name == "error":
                    raise BoxliteError(data)
        except BrokenPipeError:
            raise
        except (OSError, http.client.HTTPException) as error:
            raise unreachable(api.url, error) from error
    raise UpstreamUnavailableError("the server broke the log off; some of it may be missing")


def _events(response: http.client.HTTPResponse) -> Iterator[tuple[str, str]]:
    """Yield the name and the data of each server-sent event."""
    name, data = "", []
    for raw in response:
        field, _, value = raw.decode().rstrip("\n").partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            data.append(value)
        elif not field and name:
            yield name, "\n".join(data)
            name, data = "", []
