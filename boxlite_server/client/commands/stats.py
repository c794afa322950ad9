"""`stats`: prints what boxes use."""

from __future__ import annotations

import json
import time
from argparse import Namespace

from .. import flags, output, progress
from ..api import ApiClient, Json
from ..parser import Commands

STREAM_SECONDS = 1.0
_HEADER = ("BOX", "CPU %", "MEMORY", "NET IN", "NET OUT", "COMMANDS", "ERRORS", "STDIN", "STDOUT")
_WIDTHS = (12, 7, 10, 10, 10, 8, 6, 10, 10)


def add_to(commands: Commands) -> None:
    sub = commands.add(
        "stats",
        stats,
        "Show what boxes use: cpu, memory and network",
        examples=("boxlite stats", "boxlite stats --no-stream --format json web", "boxlite stats -s web db"),
    )
    flags.add_format(sub)
    stream = sub.add_mutually_exclusive_group()
    stream.add_argument("-s", "--stream", action="store_true", help="print a line every second until Ctrl-C")
    stream.add_argument("--no-stream", action="store_true", help="print once, which is the default")
    sub.add_argument("boxes", metavar="BOX", nargs="*", help="the id or name of a box (default: all that run)")


def stats(api: ApiClient, args: Namespace) -> int:
    """Print the usage once, or with `--stream` every second until Ctrl-C."""
    boxes = [api.get_box(box) for box in args.boxes]
    if not args.boxes:
        boxes = [box for box in api.list_boxes() if box["status"] == "running"]
    if not args.stream:
        print(_shown(boxes, [_metrics(api, box) for box in boxes], args.format, is_one=len(args.boxes) == 1))
        return 0
    if args.format == "table":
        print(_line(_HEADER), flush=True)
    while True:
        for box in boxes:
            print(_piece(box, _metrics(api, box), args.format), flush=True)
        time.sleep(STREAM_SECONDS)


def _metrics(api: ApiClient, box: Json) -> Json:
    return api.get(api.path("boxes", box["box_id"], "metrics"))


def _shown(boxes: list[Json], metrics: list[Json], form: str, *, is_one: bool) -> str:
    if form == "table":
        return output.table(_HEADER, map(_row, boxes, metrics))
    named = [{"box_id": box["box_id"], "name": box["name"], **each} for box, each in zip(boxes, metrics, strict=True)]
    return output.document(metrics[0] if is_one else named, form)


def _piece(box: Json, metrics: Json, form: str) -> str:
    """One of many: a line, or a document of a stream of YAML."""
    if form == "yaml":
        return "---\n" + output.document(metrics, form)
    return json.dumps(metrics) if form == "json" else _line(_row(box, metrics))


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
