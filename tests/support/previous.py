"""Versions of this product from before, as the history has them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from support.sdk import python_with

ROOT = Path(__file__).parents[2]
SUPERVISOR = Path("boxlite_server/worker/supervisor")


def checkout(commit: str, directory: Path) -> Path:
    """Lay the product as it was at a commit into a directory, with the supervisor's programs; its Python packages are
    those of the tests. Skips the test where the history does not go back that far."""
    if shutil.which("git") is None or _git("cat-file", "-e", f"{commit}^{{commit}}").returncode != 0:
        pytest.skip(f"the history is not here: commit {commit}")
    archive = _git("archive", commit, "boxlite_server", "openapi.yaml", "worker.proto", "hatch_build.py")
    assert archive.returncode == 0, archive.stderr
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
        files.extractall(directory, filter="data")
    if _git("diff", "--quiet", commit, "--", str(SUPERVISOR / "init"), "hatch_build.py").returncode == 0:
        for program in (ROOT / SUPERVISOR).glob("init-*"):
            shutil.copy2(program, directory / SUPERVISOR)
    else:
        python = python_with("build", "hatchling>=1.27", "ziglang>=0.16,<0.18")
        subprocess.run([python, "hatch_build.py"], cwd=directory, check=True)
    return directory


def running(directory: Path) -> list[str]:
    """Goes before a command of Python's, which then runs the product in that directory."""
    return ["env", f"--chdir={directory}", f"PYTHONPATH={directory}", sys.executable, "-c", _CHECK, str(directory)]


# The process says which product it runs, before it becomes the command.
_CHECK = """
import os, sys, boxlite_server
assert boxlite_server.__file__.startswith(sys.argv[1]), boxlite_server.__file__
os.execvp(sys.argv[2], sys.argv[2:])
"""


def _git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=False)
