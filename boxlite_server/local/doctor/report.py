"""All that can be examined from this host, as text or JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import engine, fleet, host, secrets
from .findings import Finding, Level, skipped


@dataclass(frozen=True)
class Options:
    """What to look at. `coordinator` is None where none was named, `database` where it is not a file of SQLite."""

    coordinator: fleet.Coordinator | None
    home: Path
    certs: Path
    database: Path | None
    key_file: Path | None
    ports: dict[str, int]


def examine(options: Options) -> Iterator[Finding]:
    """Yield all findings. Raises InvalidArgumentError for authorities that cannot be read."""
    yield from engine.examine(engine.docker_host())
    yield from host.examine(options.home, options.ports)
    yield from secrets.examine(options.certs, options.home, options.database, options.key_file)
    if options.coordinator:
        yield from fleet.examine(options.coordinator)
    else:
        yield skipped("ports", "the ways to and from a coordinator: --coordinator names none")


def run(options: Options, *, as_json: bool) -> int:
    """Print the findings; the exit code is 1 if one of them is a problem."""
    found = []
    for finding in examine(options):
        found.append(finding)
        if not as_json:
            _print(finding)
    is_well = all(finding.level is not Level.PROBLEM for finding in found)
    if as_json:
        print(json.dumps({"ok": is_well, "findings": [finding._asdict() for finding in found]}, indent=2))
    return 0 if is_well else 1


def _print(finding: Finding) -> None:
    print(f"{finding.level:8} {finding.subject:12} {finding.text}")
    if finding.remedy:
        print(f"{'':21} → {finding.remedy}")
