"""`logs`: prints the output of a box's main command."""

from __future__ import annotations

import base64
import http.client
import json
from argparse import ArgumentTypeError, Namespace
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

from ...errors import BoxliteError, UpstreamUnavailableError
from .. import flags, terminal
from ..api import ApiClient, unreachable
from ..parser import Commands
from ..sse import events_of

_DESCRIPTORS = {"stdout": terminal.STDOUT, "stderr": terminal.STDERR}


def add_to(commands: Commands) -> None:
    sub = commands.add(
        "logs",
        logs,
        "Show the output of a box's main command",
        examples=("boxlite logs -f web", "boxlite logs -t --since 10m web", "boxlite logs -n 20 web"),
    )
    sub.add_argument("-f", "--follow", action="store_true", help="print new output until the box stops")
    sub.add_argument("-n", "--tail", type=_tail, metavar="N", help="show only the last N lines (default: all lines)")
    sub.add_argument(
        "--since",
        type=since_flag,
        metavar="TIME",
        help="show only what was written since this time: 30s, 10m, 2h or 7d ago, 2026-01-31T12:00:00Z, or a Unix time",
    )
    sub.add_argument("-t", "--timestamps", action="store_true", help="show when each line was written")
    flags.add_box(sub)


def _tail(text: str) -> int | None:
    return None if text == "all" else flags.count(text)


def since_flag(text: str) -> str:
    """Parse a time, or how long ago it was, into RFC 3339. Raises ArgumentTypeError."""
    if text[-1:] in ("s", "m", "h", "d"):
        with suppress(ArgumentTypeError, OverflowError):
            return _rfc3339(datetime.now(UTC) - timedelta(seconds=flags.duration(text)))
    with suppress(ValueError, OverflowError, OSError):
        return _rfc3339(datetime.fromtimestamp(float(text), UTC))
    with suppress(ValueError, OverflowError):
        return _rfc3339(datetime.fromisoformat(text).astimezone(UTC))  # without a zone, it is this machine's time
    raise ArgumentTypeError(f"'{text}' is no time; write 10m for ten minutes ago, or 2026-01-31T12:00:00Z")


def _rfc3339(time: datetime) -> str:
    return time.isoformat(timespec="microseconds").replace("+00:00", "Z")


def logs(api: ApiClient, args: Namespace) -> int:
    query = {"follow": "true"} if args.follow else {}
    if args.tail is not None:
        query["tail"] = str(args.tail)
    if args.since is not None:
        query["since"] = args.since
    if args.timestamps:
        query["timestamps"] = "true"
    path = api.path("boxes", args.box, "logs") + ("?" + urlencode(query) if query else "")
    with api.download("GET", path, "text/event-stream") as response:
        try:
            for event in events_of(response):
                if event.name in _DESCRIPTORS:
                    terminal.write_all(_DESCRIPTORS[event.name], base64.b64decode(json.loads(event.data)["data"]))
                elif event.name == "end":
                    return 0
                elif event.name == "error":
                    raise BoxliteError(event.data)
        except BrokenPipeError:
            raise
        except (OSError, http.client.HTTPException) as error:
            raise unreachable(api.url, error) from error
    raise UpstreamUnavailableError("the server broke the log off; some of it may be missing")
