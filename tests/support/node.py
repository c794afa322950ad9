"""The released Node SDK, installed beside the environment of the tests."""

from __future__ import annotations

import contextlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from boxlite_server.errors import EngineError
from boxlite_server.local import machine
from support.sdk import run_script

PACKAGE = "@boxlite-ai/boxlite@0.10.0"
OLDEST_NODE = 18
DIRECTORY = Path(sys.prefix, "node")


def missing() -> str | None:
    """Why the Node SDK cannot run here; None when it can. As root, this installs Node where apt has it."""
    if platform.machine() not in ("x86_64", "aarch64") or platform.libc_ver()[0] != "glibc":
        return f"the Node SDK has no build for {platform.machine()} with {platform.libc_ver()[0] or 'this libc'}"
    if not _has_node():
        with contextlib.suppress(EngineError):
            machine.apt_install("nodejs")
            machine.apt_install("npm")
    if not _has_node():
        return "node and npm are not installed (Debian, Ubuntu: apt-get install nodejs npm)"
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.strip().removeprefix("v").partition(".")[0]) < OLDEST_NODE:
        return f"the Node SDK needs Node {OLDEST_NODE} or newer, here is {version.strip()}"
    return None


def run_node(
    script: Path, *arguments: str, env: Mapping[str, str] | None = None, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run a script against the SDK, as `run_script` does."""
    _install()
    # Node looks for packages beside the script, wherever it is started.
    here = shutil.copy(script, DIRECTORY)
    return run_script(["node", here, *arguments], env, timeout)


def _has_node() -> bool:
    return bool(shutil.which("node") and shutil.which("npm"))


def _install() -> None:
    complete = DIRECTORY / ".complete"
    if complete.exists() and complete.read_text() == PACKAGE:
        return
    DIRECTORY.mkdir(exist_ok=True)
    (DIRECTORY / "package.json").write_text("{}")  # or npm looks for one further up
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error", PACKAGE], cwd=DIRECTORY, check=True
    )
    complete.write_text(PACKAGE)
