"""The container engine: whether it answers, its versions, and how well its boxes are isolated."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors import BoxliteError
from ...worker.presets import filters_system_calls
from .. import dockerd, machine
from . import holes
from .findings import Finding, ok, problem, skipped, warning

OLDEST_ENGINE = (20, 10)
LITTLE_DISK = 5 << 30  # bytes that are free for images and boxes

# Drivers other than these keep a whole copy of the image for each box, or have been given up.
GOOD_DRIVERS = frozenset({"overlay2", "overlayfs", "btrfs", "zfs", "fuse-overlayfs"})


def docker_host() -> str:
    """Where the engine is: DOCKER_HOST, or the usual socket."""
    return os.environ.get("DOCKER_HOST") or dockerd.DEFAULT_SOCKET


def missing(host: str) -> Finding | None:
    """Why no engine answers at `host`; None if one does."""
    try:
        dockerd.request(host, "GET", "/_ping", timeout=20)
    except BoxliteError as exc:
        socket = Path(host.removeprefix("unix://"))
        if not host.startswith("unix://") or os.environ.get("DOCKER_HOST"):
            return problem("engine", f"no engine answers at {host}: {exc.message}", "start it, or set DOCKER_HOST")
        if machine.which("dockerd") is None and not socket.exists():
            remedy = "apt-get install -y docker.io, or https://docs.docker.com/engine/install/"
            return problem("engine", "Docker Engine is not installed", remedy)
        if socket.exists() and not os.access(socket, os.W_OK):
            remedy = 'sudo usermod -aG docker "$USER", and log in again'
            return problem("engine", f"this user may not use Docker's socket {socket}", remedy)
        return problem("engine", f"Docker Engine does not answer at {host}", "sudo systemctl enable --now docker")
    return None


def examine(host: str) -> Iterator[Finding]:
    """Yield what there is to say of the engine at `host`, and of this host as a place for its boxes."""
    if found := missing(host):
        yield found
        return
    try:
        info = json.loads(dockerd.request(host, "GET", "/info", timeout=20))
        version = json.loads(dockerd.request(host, "GET", "/version", timeout=20))
    except (BoxliteError, ValueError) as exc:
        yield problem("engine", f"the engine at {host} does not say what it is: {exc}", "systemctl restart docker")
        return
    options = [str(option) for option in info.get("SecurityOptions") or ()]
    yield _version(str(info.get("ServerVersion", "")))
    plugins = info.get("Plugins") or {}
    yield from holes.examine(_versions(version), authorizes=bool(plugins.get("Authorization")))
    yield _driver(info)
    yield from _limits(info)
    yield from _users(options)
    yield _seccomp(options)
    yield _network()
    yield _disk(str(info.get("DockerRootDir", "")))


def _versions(answer: Mapping[str, Any]) -> dict[str, str]:
    """The versions of the programs below boxes, by their names."""
    return {str(each.get("Name")): str(each.get("Version")) for each in answer.get("Components") or ()}


def _driver(info: Mapping[str, Any]) -> Finding:
    driver = str(info.get("Driver", ""))
    details = {str(key): str(value) for key, value in info.get("DriverStatus") or ()}
    if driver not in GOOD_DRIVERS:
        return warning(
            "storage",
            f"the engine's storage driver {driver or '(unknown)'} makes boxes slow and their disks large",
            'set "storage-driver": "overlay2" in the engine\'s daemon.json; images have to be pulled again',
        )
    if details.get("Supports d_type") == "false":
        remedy = "put the engine's directory on ext4, or on xfs made with `mkfs.xfs -n ftype=1`"
        return problem(
            "storage", f"{driver} lies on a file system without d_type, where files of boxes go wrong", remedy
        )
    return ok("storage", f"the engine's storage driver is {driver}")


def _version(version: str) -> Finding:
    numbers = tuple(int(part) if part.isdigit() else 0 for part in version.split(".")[:2])
    if numbers < OLDEST_ENGINE:
        return problem(
            "engine",
            f"the engine {version} is older than 20.10",
            "upgrade Docker Engine: https://docs.docker.com/engine/install/",
        )
    return ok("engine", f"Docker Engine {version} answers")


def _users(options: list[str]) -> Iterator[Finding]:
    if _has(options, "rootless"):
        yield ok("isolation", "the engine is rootless: root in a box is an ordinary user of this host")
    elif _has(options, "userns"):
        yield ok("isolation", "the engine remaps users: root in a box is an ordinary user of this host")
    else:
        yield warning(
            "isolation",
            "root in a box is root of this host, without most of its capabilities",
            'set "userns-remap": "default" in the engine\'s daemon.json, or run boxes with worker --runtime runsc',
        )


def _seccomp(options: list[str]) -> Finding:
    if not filters_system_calls(options):
        return problem(
            "isolation",
            "the engine runs containers without a seccomp profile, so boxes of the presets standard and maximum are "
            "refused",
            'remove "seccomp-profile" from the engine\'s daemon.json',
        )
    return ok("isolation", "the engine filters the system calls of boxes (seccomp)")


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
        yield warning(
            "cgroups",
            f"the engine cannot limit {', '.join(missing)} of boxes (cgroup version {version})",
            "delegate these controllers to the engine, or boot with cgroup_enable=memory swapaccount=1",
        )
    else:
        yield ok("cgroups", f"the engine limits memory, cpus and processes of boxes (cgroup version {version})")


def _network() -> Finding:
    if reason := machine.cannot_filter():
        return problem(
            "network",
            f"a worker cannot filter what boxes send, and refuses boxes with a network: {reason}",
            "run the worker as root and install nftables, or accept it with worker --unfiltered-network",
        )
    return ok("network", "a worker can filter what boxes send (nftables)")


def _disk(directory: str) -> Finding:
    try:
        free = shutil.disk_usage(directory).free
    except OSError:
        return skipped("disk", f"the engine's directory {directory or '(unknown)'} cannot be seen from here")
    if free < LITTLE_DISK:
        return warning(
            "disk",
            f"only {free / 2**30:.1f} GiB are free in {directory}",
            "docker system prune -a, or a larger disk",
        )
    return ok("disk", f"{free / 2**30:.0f} GiB are free in {directory}")


def _has(options: list[str], name: str) -> bool:
    return any(option.startswith(f"name={name}") for option in options)
