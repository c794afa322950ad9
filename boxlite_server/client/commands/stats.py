"""`stats`: prints the resource usage of a box."""

from __future__ import annotations

import json
import time
from argparse import Namespace

from .. import output, progress
from ..api import ApiClient, Json

STREAM_SECONDS = 1.0
_HEADER = ("BOX", "CPU %", "MEMORY", "NET IN", "NET OUT", "COMMANDS", "ERRORS", "STDIN", "STDOUT")
_WIDTHS = (12, 7, 10, 10, 10, 8, 6, 10, 10)


def stats(api: ApiClient, args: Namespace) -> int:
    """Print the usage once, or with `--stream` every second until Ctrl-C."""
    box = api.get_box(args.box)
    path = api.path("boxes", box["box_id"], "metrics")
    if not args.stream:
        metrics = api.get(path)
        print(output.as_json(metrics) if args.format == "json" else output.table(_HEADER, [_row(box, metrics)]))
        return 0
    if args.format == "table":
        print(_line(_HEADER), flush=True)
    while True:
        metrics = api.get(path)
        print(json.dumps(metrics) if args.format == "json" else _line(_row(box, metrics)), flush=True)
        time.sleep(STREAM_SECONDS)


def _row(box: Json, metrics: Json) -> tuple[str, ...]:
    cpu = metrics.get("cpu_percent")
    return (
        str(box["name"] or box["box_id"]),
        "-" if cpu is None else f"{cpu:.1f}",
        _size(metrics.get("memory_bytes")),
        _size(metrics.get("network_bytes_received")),
        _size(metrics.get("network_bytes_sent")),
        str(metrics.get("commands_executed_total", "-")),
        str(metrics.get("exec_errors_total", "-")),
        _size(metrics.get("bytes_sent_total")),
        _size(metrics.get("bytes_received_total")),
    )


def _line(cells: tuple[str, ...]) -> str:
    """A row with columns of fixed width, since the rows to come are not known."""
    return "   ".join(cell.ljust(width) for cell, width in zip(cells, _WIDTHS, strict=True)).rstrip()


def _size(count: int | None) -> str:
    return "-" if count is None else progress.size(count)
