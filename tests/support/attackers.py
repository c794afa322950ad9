"""Boxes that attack the worker, and what has to be well with the worker afterwards."""

from __future__ import annotations

import gc
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from boxlite_server import ids
from boxlite_server.worker.commands import ExecSpec, Process
from boxlite_server.worker.docker.runtime import DockerRuntime
from boxlite_server.worker.docker.supervised import Supervisors
from boxlite_server.worker.holder import Holder
from boxlite_server.worker.runtime import BoxRef, Mount, Owner
from boxlite_server.worker.supervisor.link import Link
from boxlite_server.worker.supervisor.links import Links
from support.held import Held, held_by
from support.sites import Site, collect, policy

_PYTHON = Path(sys.base_prefix, "bin", Path(sys.executable).resolve().name)
_ATTACKER = "/attacker/box_attacker.py"
_COMMAND = (f"/python/bin/{_PYTHON.name}", "-I", "-S", _ATTACKER)
_LIBRARIES = {"LD_LIBRARY_PATH": "/python/lib"}
_SOON = 8.0  # seconds
_POOLED = 3  # connections to the engine that are kept for the next calls
_GROWTH = 32 * 1024  # KiB by which the memory of a worker that is well may differ


def mounts() -> tuple[Mount, ...]:
    """The attacking program, and this machine's Python to run it."""
    places = {"/python": sys.base_prefix, "/attacker": str(Path(__file__).parent)}
    places |= {path: path for path in ("/lib", "/lib64", "/usr/lib") if Path(path).exists()}
    return tuple(Mount(at, host_path=path, read_only=True) for at, path in places.items())


class Field(Site):
    """A worker whose boxes attack it; `program` runs in them as their supervisor."""

    runtime: DockerRuntime

    @property
    def supervisors(self) -> Supervisors:
        return self.runtime._supervisors

    def attacked(self, **fields: object) -> BoxRef:
        """A running box that has the attacking program."""
        fields = {"mounts": mounts(), "env": _LIBRARIES, "memory_mib": 256, **fields}
        return self.running_box(**fields)

    def replaced(self, attack: str) -> BoxRef:
        """A running box that has the attacking program for its supervisor, where the site's program is that."""
        return self.attacked(env={**_LIBRARIES, "ATTACK": attack})

    def attack(self, box: BoxRef, name: str, *arguments: str, **fields: object) -> Process:
        """The attacking program as a command of the box."""
        return self.runtime.spawn(box, ExecSpec(self.command(name, *arguments), **fields))  # type: ignore[arg-type]

    def command(self, attack: str, *arguments: str) -> tuple[str, ...]:
        return (*_COMMAND, attack, *arguments)

    def link(self, box: BoxRef) -> Link:
        links = self.supervisors._links
        assert links is not None
        return links.link(f"boxlite-{box.box_id}-{box.generation}")

    def run(self, box: BoxRef, *command: str, **fields: object) -> tuple[bytes, bytes, int]:
        return collect(self.runtime.spawn(box, ExecSpec(command, **fields)))  # type: ignore[arg-type]


def replacement(directory: Path) -> Path:
    """A program for boxes that attacks the worker in the supervisor's place."""
    path = directory / "replacement"
    path.write_text(f'#!/bin/sh\nexec {" ".join(_COMMAND)} "$@"\n')
    return path


@contextmanager
def field(request: pytest.FixtureRequest, program: Path) -> Iterator[Field]:
    """A worker with this program as the supervisor of its boxes."""
    home = request.getfixturevalue("tmp_path_factory").mktemp("home")
    owner = Owner(ids.new_id(), ids.new_id())
    runtime = DockerRuntime(
        lambda: owner,
        request.getfixturevalue("docker_host"),
        policy(Path("/")),
        Holder(home),
        links=Links(home / "boxes", program),
    )
    image, bare_image = request.getfixturevalue("test_image"), request.getfixturevalue("bare_image")
    yield Field(runtime, image, bare_image, home, owner=owner)
    for state in runtime.list_boxes():
        runtime.remove(state.box, force=True)
    runtime.close()


@contextmanager
def unharmed(site: Field, bystander: BoxRef) -> Iterator[None]:
    """Nothing that the block does with other boxes harms the worker, or this box of it."""
    site.run(bystander, "true")
    _tidy_up()
    before, began, spent = held_by(os.getpid()), time.monotonic(), time.process_time()
    yield
    assert site.run(bystander, "echo", "well") == (b"well\n", b"", 0)
    share = (time.process_time() - spent) / (time.monotonic() - began)
    assert share < 0.8, f"the worker was kept busy: {share:.0%} of a processor"

    _tidy_up()
    deadline = time.monotonic() + _SOON
    while not _is_as_before(before, after := held_by(os.getpid())):
        assert time.monotonic() < deadline, f"the worker holds {after}, and held {before}"
        time.sleep(0.05)


def _tidy_up() -> None:
    """Let go of what only the tests keep: errors, which refer to themselves, in the records of pytest's log."""
    for handler in logging.getLogger().handlers:
        getattr(handler, "records", []).clear()
    gc.collect()


def _is_as_before(before: Held, after: Held) -> bool:
    return (
        after.descriptors <= before.descriptors + _POOLED
        and after.threads <= before.threads
        and after.memory <= before.memory + _GROWTH
    )
