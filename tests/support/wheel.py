"""The wheel of this checkout, and an installation of it that knows of no checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What pip says where no package index can be reached. A package that is missing from an index says something else.
_NO_INDEX = ("NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "Temporary failure in name resolution")


def build(source: Path, directory: Path) -> Path:
    """Make the wheel of a checkout, by the build backend of the development environment, without a network."""
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(directory)]
    subprocess.run([*command, str(source)], check=True)
    (made,) = directory.glob("*.whl")
    return made


def install(wheel: Path, directory: Path, *, extra: str = "") -> Path:
    """Install a wheel with what it needs, from wheels alone, into a new virtual environment; the directory of its
    commands. Skips the test where no package index can be reached."""
    subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
    pip = [str(directory / "bin/python"), "-m", "pip", "install", "-q", "--only-binary", ":all:", f"{wheel}{extra}"]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if any(text in done.stderr for text in _NO_INDEX):
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    return directory / "bin"
