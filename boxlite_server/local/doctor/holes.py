"""Known holes of the programs below boxes, and which versions are free of them. Looked up on 2026-11-27."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from .findings import Finding, ok, problem, warning


class Hole(NamedTuple):
    """`mended`: the first version without it in each series (major and minor number) that was mended. Later series
    never had it, and all other versions have it."""

    cve: str
    program: str
    mended: tuple[str, ...]
    what: str


_PROC = ("1.2.8", "1.3.3", "1.4.0-rc.3")
HOLES = (
    Hole("CVE-2024-21626", "runc", ("1.1.12",), "a box gets at the host's files by a descriptor that was left open"),
    Hole("CVE-2024-45310", "runc", ("1.1.14", "1.2.0-rc.3"), "a box makes empty files on the host"),
    Hole("CVE-2025-31133", "runc", _PROC, "a box writes to the host's /proc in place of a masked file"),
    Hole("CVE-2025-52565", "runc", _PROC, "a box writes to the host's /proc in place of its console"),
    Hole("CVE-2025-52881", "runc", _PROC, "a box has runc write its settings to another file of /proc"),
    Hole("CVE-2024-40635", "containerd", ("1.6.38", "1.7.27", "2.0.4"), "an image with a huge user id runs as root"),
    Hole("CVE-2022-36109", "Engine", ("20.10.18",), "a box's user has groups that it should not have"),
    Hole("CVE-2024-41110", "Engine", ("23.0.15", "25.0.6", "26.1.5", "27.1.1"), "requests pass by AuthZ plugins"),
)
OF_PLUGINS = "CVE-2024-41110"  # concerns engines with plugins for authorization alone

_UPSTREAM = re.compile(r"v?(\d+)\.(\d+)\.(\d+)(?:-rc\.?(\d+))?")


def examine(versions: dict[str, str], *, authorizes: bool) -> Iterator[Finding]:
    """Yield what there is to say of the programs `versions`, from name to version. `authorizes`: the engine asks
    plugins for authorization."""
    for program, version in versions.items():
        found = [hole for hole in HOLES if hole.program == program and _has(hole, version)]
        found = [hole for hole in found if authorizes or hole.cve != OF_PLUGINS]
        if not found:
            if any(hole.program == program for hole in HOLES):
                yield ok("versions", f"{program} {version} has no hole that is known to this program")
            continue
        holes = "; ".join(f"{hole.cve} ({hole.what})" for hole in found)
        if _UPSTREAM.fullmatch(version):
            yield problem("versions", f"{program} {version} has known holes: {holes}", f"upgrade {program}")
        else:  # distributions mend old versions, and keep their numbers
            text = f"{program} {version} has known holes unless the distribution has mended them: {holes}"
            log = f"apt-get changelog {_PACKAGES[program]} | grep -E '{'|'.join(hole.cve for hole in found)}'"
            yield warning("versions", text, f"upgrade {program}; on Debian and Ubuntu, what was mended: {log}")


_PACKAGES = {"runc": "runc", "containerd": "containerd", "Engine": "docker.io"}  # of Debian


def _has(hole: Hole, version: str) -> bool:
    """Whether the program has the hole by its number. A version that cannot be read counts as one without it."""
    own = _numbers(version)
    if own is None:
        return False
    mended = [numbers for each in hole.mended if (numbers := _numbers(each))]
    for first in mended:
        if own[:2] == first[:2]:
            return own < first
    return own < max(mended)


def _numbers(version: str) -> tuple[int, ...] | None:
    """Comparable numbers; a candidate for a release comes before it."""
    match = _UPSTREAM.match(version)
    if match is None:
        return None
    major, minor, patch, candidate = match.groups()
    return (int(major), int(minor), int(patch), 0 if candidate else 1, int(candidate or 0))
