"""`boxlite-server doctor`: whether this host can run a worker, and how well its boxes would be isolated."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from ..errors import BoxliteError
from ..worker.presets import filters_system_calls
from . import dockerd, machine

OLDEST_ENGINE = (20, 10)
LITTLE_DISK = 5 << 30  # bytes that are free for images and boxes


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"  # a worker runs, and something is weaker or missing
    PROBLEM = "problem"  # no worker runs, or it refuses boxes


class Finding(NamedTuple):
    """What was found, and what mends it; `remedy` is empty where nothing has to be done."""

    level: Level
    text: str
    remedy: str = ""


def examine(docker_host: str) -> Iterator[Finding]:
    """Yield what there is to say of the engine at `docker_host` and of this host."""
    try:
        info = json.loads(dockerd.request(docker_host, "GET", "/info", timeout=20))
    except (BoxliteError, ValueError) as exc:
        yield Finding(Level.PROBLEM, f"no engine answers at {docker_host}: {exc}", "start Docker, or set DOCKER_HOST")
        return
    yield _version(str(info.get("ServerVersion", "")))
    options = [str(option) for option in info.get("SecurityOptions") or ()]
    yield from _users(options)
    yield _seccomp(options)
    yield from _limits(info)
    yield _network()
    yield _disk(str(info.get("DockerRootDir", "")))


def _version(version: str) -> Finding:
    numbers = tuple(int(part) if part.isdigit() else 0 for part in version.split(".")[:2])
    if numbers < OLDEST_ENGINE:
        return Finding(Level.PROBLEM, f"the engine {version} is older than 20.10", "upgrade Docker Engine")
    return Finding(Level.OK, f"Docker Engine {version} answers")


def _users(options: list[str]) -> Iterator[Finding]:
    if _has(options, "rootless"):
        yield Finding(Level.OK, "the engine is rootless: root in a box is an ordinary user of this host")
    elif _has(options, "userns"):
        yield Finding(Level.OK, "the engine remaps users: root in a box is an ordinary user of this host")
    else:
        yield Finding(
            Level.WARNING,
            "root in a box is root of this host, without most of its capabilities",
            'set "userns-remap": "default" in the engine\'s daemon.json, or run boxes with worker --runtime runsc',
        )


def _seccomp(options: list[str]) -> Finding:
    if not filters_system_calls(options):
        return Finding(
            Level.PROBLEM,
            "the engine runs containers without a seccomp profile, so boxes of the presets standard and maximum are "
            "refused",
            'remove "seccomp-profile" from the engine\'s daemon.json',
        )
    return Finding(Level.OK, "the engine filters the system calls of boxes (seccomp)")


def _limits(info: Mapping[str, Any]) -> Iterator[Finding]:
    missing = [
        words
        for field, words in {
            "MemoryLimit": "memory",
            "SwapLimit": "swap",
            "CpuCfsQuota": "cpus",
            "PidsLimit": "processes",
        }.items()
        if info.get(field) is False
    ]
    version = info.get("CgroupVersion", "1")
    if missing:
        yield Finding(
            Level.WARNING,
            f"the engine cannot limit {', '.join(missing)} of boxes (cgroup version {version})",
            "delegate these controllers to the engine, or boot with cgroup_enable=memory swapaccount=1",
        )
    else:
        yield Finding(Level.OK, f"the engine limits memory, cpus and processes of boxes (cgroup version {version})")


def _network() -> Finding:
    if reason := machine.cannot_filter():
        return Finding(
            Level.PROBLEM,
            f"a worker cannot filter what boxes send, and refuses boxes with a network: {reason}",
            "run the worker as root and install nftables, or accept it with worker --unfiltered-network",
        )
    return Finding(Level.OK, "a worker can filter what boxes send (nftables)")


def _disk(directory: str) -> Finding:
    try:
        free = shutil.disk_usage(directory).free
    except OSError:
        return Finding(Level.WARNING, f"the engine's directory {directory or '(unknown)'} cannot be seen from here")
    if free < LITTLE_DISK:
        return Finding(
            Level.WARNING,
            f"only {free / 2**30:.1f} GiB are free in {directory}",
            "docker system prune, or a larger disk",
        )
    return Finding(Level.OK, f"{free / 2**30:.0f} GiB are free in {directory}")


def _has(options: list[str], name: str) -> bool:
    return any(option.startswith(f"name={name}") for option in options)


def run() -> int:
    """Print the findings for the engine of DOCKER_HOST; the exit code is 1 if one of them is a problem."""
    found = list(examine(os.environ.get("DOCKER_HOST") or dockerd.DEFAULT_SOCKET))
    for level, text, remedy in found:
        print(f"{level:8} {text}" + (f"\n         → {remedy}" if remedy else ""))
    return int(any(finding.level is Level.PROBLEM for finding in found))
