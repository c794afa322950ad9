"""Tests that make interfaces: each runs once more in network and mount namespaces that stand for the machine's."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from support.child import BOUND

_ENGINE = "BOXLITE_TEST_INSIDE"  # inside: DOCKER_HOST of the engine outside


def engine_outside() -> str | None:
    """DOCKER_HOST of the engine to use inside such namespaces; None outside of them."""
    return os.environ.get(_ENGINE)


def run_inside(request: pytest.FixtureRequest, docker_host: str) -> None:
    """Run the requesting test again, in namespaces of its own where only loopback is; it must pass there."""
    enter = [
        "unshare",
        "--net",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        'ip link set lo up && exec "$@"',
        "sh",
    ]
    test = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", request.node.nodeid]
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    done = subprocess.run(
        [*BOUND, *enter, *test],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        cwd=request.config.rootpath,
        env={**env, _ENGINE: docker_host},
    )
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout
