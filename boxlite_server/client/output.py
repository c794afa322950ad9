"""Formats the output of commands: tables, JSON, YAML, and the small part of Go's templates that scripts use."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from ..errors import BoxliteError, InvalidArgumentError

_ACTION = re.compile(r"\{\{-?\s*(json\s+)?\.([\w.]*)\s*-?\}\}")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A text table in docker's style: each column is as wide as its widest cell, with three blanks between."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def as_json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def document(value: object, form: str) -> str:
    """The value as a document in the form `json` or `yaml`, without a line end."""
    if form == "json":
        return as_json(value)
    import yaml  # which most commands do without

    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip("\n")


def one_line(text: str) -> str:
    return " ".join(text.split())


def age(timestamp: str, now: datetime | None = None) -> str:
    """How long ago an RFC 3339 time was, in one unit: `12 seconds ago`. Any other text is returned unchanged."""
    try:
        then = datetime.fromisoformat(timestamp)
    except ValueError:
        return timestamp
    seconds = int(((now or datetime.now(UTC)) - then.astimezone(UTC)).total_seconds())
    count, unit = max(seconds, 0), "second"
    for size, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count, unit = seconds // size, name
            break
    return f"{count} {unit}{'' if count == 1 else 's'} ago"


def render(template: str, document: Any) -> str:
    """Fill `{{.Dotted.Path}}` and `{{json .Path}}`. Raises `InvalidArgumentError` for anything else."""

    def fill(action: re.Match[str]) -> str:
        value = _at(document, action[2])
        return json.dumps(value, ensure_ascii=False) if action[1] else _plain(value)

    rest = _ACTION.sub("", template)
    if "{{" in rest or "}}" in rest:
        raise InvalidArgumentError(f"template '{template}' is not supported: use {{{{.Path}}}} or {{{{json .Path}}}}")
    return _ACTION.sub(fill, template)


def _at(document: Any, path: str) -> Any:
    value = document
    for key in filter(None, path.split(".")):
        if not isinstance(value, dict) or key not in value:
            raise InvalidArgumentError(f"template: the box has no field '.{path}'")
        value = value[key]
    return value


def _plain(value: Any) -> str:
    if value is None:
        return "<nil>"
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


def version() -> str:
    try:
        return metadata.version("boxlite-server")
    except metadata.PackageNotFoundError:
        return "unknown"


def print_error(message: str) -> None:
    print("Error:", " ".join(message.splitlines()), file=sys.stderr)


def print_warning(message: str) -> None:
    print("Warning:", " ".join(message.splitlines()), file=sys.stderr)


def each(boxes: Iterable[str], act: Callable[[str], object], *, echo: bool = False) -> int:
    """Call `act` for each box, and print errors. Returns the exit code: 1 if any call failed, else 0.

    `echo` prints the name of each box whose call succeeded.
    """
    failed = 0
    for box in boxes:
        try:
            act(box)
        except BoxliteError as error:
            print_error(error.message)
            failed = 1
        else:
            if echo:
                print(box)
    return failed
