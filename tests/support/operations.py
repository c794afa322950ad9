"""The table of all operations in docs/api.md: `make docs` writes it, a test compares it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

from boxlite_server.coordinator.http.routing import find_handler

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "api.md"
METHODS = ("get", "head", "put", "post", "patch", "delete")
SPEC = yaml.safe_load((ROOT / "openapi.yaml").read_text())

_BEGIN = "<!-- operations: made by `make docs` -->\n"
_END = "<!-- end of operations -->\n"


class Operation(NamedTuple):
    name: str
    tag: str
    method: str
    path: str
    summary: str

    @property
    def state(self) -> str:
        """What the table says of a handler; a handler that never returns only refuses, and gives the reason."""
        handler = find_handler(self.tag, self.name)
        if handler is None:
            return "501"
        return "400" if handler.__annotations__["return"] == "NoReturn" else "works"


def operations() -> Iterator[Operation]:
    """All operations of openapi.yaml, in its order."""
    for path, item in SPEC["paths"].items():
        for method, spec in item.items():
            if method in METHODS:
                yield Operation(spec["operationId"], spec["tags"][0], method.upper(), path, spec["summary"])


def table() -> str:
    """One row for each operation, the tags in the order of the spec."""
    order = [tag["name"] for tag in SPEC["tags"]]
    rows = ["| | Operation | Request | State |", "|---|---|---|---|"]
    last = ""
    for operation in sorted(operations(), key=lambda each: order.index(each.tag)):
        tag = "" if operation.tag == last else operation.tag
        last = operation.tag
        rows.append(
            f"| {tag} | `{operation.name}` {_lower(operation.summary)} "
            f"| `{operation.method} {operation.path}` | {operation.state} |"
        )
    return "\n".join(rows) + "\n"


def _lower(summary: str) -> str:
    return summary[0].lower() + summary[1:]


def parts(page: str) -> tuple[str, str, str]:
    """The page in front of the table, the table, and behind it; raises ValueError without the marks."""
    front, table_and_rest = re.split(f"(?<={re.escape(_BEGIN)})", page, maxsplit=1)
    inside, rest = re.split(f"(?={re.escape(_END)})", table_and_rest, maxsplit=1)
    return front, inside, rest


if __name__ == "__main__":
    front, _, rest = parts(PAGE.read_text())
    PAGE.write_text(front + table() + rest)
