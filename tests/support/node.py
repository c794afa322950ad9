"""Packages of npm, installed beside the environment of the tests, and the released Node SDK among them."""

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


def missing() -> str | None:
    """Why the Node SDK cannot run here; None when it can. As root, this installs Node where apt has it."""
    if platform.machine() not in ("x86_64", "aarch64") or platform.libc_ver()[0] != "glibc":
        return f"the Node SDK has no build for {platform.machine()} with {platform.libc_ver()[0] or 'this libc'}"
    if not _has_node():
        with contextlib.suppress(EngineError):
            machine.apt_install("nodejs")
            machine.apt_install("npm")
    return older_than(OLDEST_NODE)


def older_than(major: int) -> str | None:
    """Why what needs this version of Node cannot run here; None when it can."""
    if not _has_node():
        return "node and npm are not installed (Debian, Ubuntu: apt-get install nodejs npm)"
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.strip().removeprefix("v").partition(".")[0]) < major:
        return f"Node {major} or newer is needed, here is {version.strip()}"
    return None


def run_node(
    script: Path, *arguments: str, env: Mapping[str, str] | None = None, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run a script against the SDK, as `run_script` does."""
    # Node looks for packages beside the script, wherever it is started.
    here = shutil.copy(script, packages("sdk", PACKAGE))
    return run_script(["node", here, *arguments], env, timeout)


def packages(name: str, *requirements: str) -> Path:
    """The directory of that name, which has these packages in `node_modules`; they are installed at first use."""
    directory = Path(sys.prefix, "node", name)
    complete = directory / ".complete"
    if not complete.exists() or complete.read_text() != "\n".join(requirements):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "package.json").write_text("{}")  # or npm looks for one further up
        npm = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"]
        subprocess.run([*npm, *requirements], cwd=directory, check=True)
        complete.write_text("\n".join(requirements))
    return directory


def _has_node() -> bool:
    return bool(shutil.which("node") and shutil.which("npm"))
