"""Prometheus and promtool, of this machine or of its distribution's package, which is unpacked and not installed: an
installed one would serve."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from boxlite_server.local import machine
from support.child import BOUND
from support.cluster import free_port, wait_until

PROGRAMS = ("promtool", "prometheus")


def programs(directory: Path) -> dict[str, str] | None:
    """The paths of both programs; None where this machine has neither them nor a way to them."""
    found = {name: machine.which(name) for name in PROGRAMS}
    if not all(found.values()):
        found = _unpacked(directory)
    return {name: str(path) for name, path in found.items()} if all(found.values()) else None


def _unpacked(directory: Path) -> dict[str, str | None]:
    if machine.which("apt-get") and machine.which("dpkg-deb"):
        if not _download(directory) and os.geteuid() == 0:
            with machine.apt_alone():
                machine.run("apt-get", "update")
            _download(directory)
        for package in directory.glob("prometheus_*.deb"):
            machine.run("dpkg-deb", "-x", str(package), str(directory))
    paths = {name: directory / "usr" / "bin" / name for name in PROGRAMS}
    return {name: str(path) if path.exists() else None for name, path in paths.items()}


def _download(directory: Path) -> bool:
    return machine.run("apt-get", "download", "prometheus", cwd=directory).returncode == 0


class Prometheus:
    """A server that is asked with queries."""

    def __init__(self, port: int) -> None:
        self._port = port

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series of the result. AssertionError for an expression that is wrong."""
        path = f"/api/v1/query?{urlencode({'query': expression})}"
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}") as answer:
            found = json.load(answer)
        assert found["status"] == "success", (expression, found)
        return list(found["data"]["result"])

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/-/ready"):
                return True
        except OSError:
            return False


@contextmanager
def server(program: str, config: Path, directory: Path) -> Iterator[Prometheus]:
    """Run a Prometheus with all of its data in the directory."""
    port = free_port()
    command = [program, f"--config.file={config}", f"--storage.tsdb.path={directory}/data"]
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [*BOUND, *command, f"--web.listen-address=127.0.0.1:{port}"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=directory,
        )
    try:
        prometheus = Prometheus(port)
        wait_until(prometheus.is_ready, "Prometheus is ready")
        yield prometheus
    finally:
        process.terminate()
        process.wait(30)


def run(program: str, *arguments: str) -> str:
    """Run promtool; what it prints. AssertionError when it finds something wrong."""
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
