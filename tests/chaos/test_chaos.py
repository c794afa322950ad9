"""A short round of `make chaos`, with a plan of faults that is always the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.fixture
def namespaces() -> None:
    """Skips the test where this machine does not let us make networks."""
    from chaos import isolation  # imported here, so that only a test that needs it imports it

    if reason := isolation.obstacle():
        pytest.skip(reason)


@pytest.mark.timeout(600)
def test_nothing_is_lost_or_doubled_while_everything_is_killed_and_cut_off(namespaces: None) -> None:
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    done = subprocess.run(
        [sys.executable, "-m", "chaos", "--seconds", "45", "--seed", "7", "--workers", "2", "--clients", "4"],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
