"""Builds the supervisor's programs for the wheel and for a checkout: `python hatch_build.py`, or as a build hook."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ARCHITECTURES = ("x86_64", "aarch64")
FOLDER = Path("boxlite_server/worker/supervisor")
COMPILE = "-static -Os -s -std=gnu11 -Wall -Wextra -Werror".split()


def build(root: Path) -> list[Path]:
    """Compile the programs that are older than their source, with the C compiler of the package ziglang. Returns the
    paths of all. Raises `subprocess.CalledProcessError` where that fails."""
    sources = sorted((root / FOLDER / "init").glob("*.c"))
    headers = (root / FOLDER / "init").glob("*.h")
    newest = max(path.stat().st_mtime for path in (*sources, *headers, Path(__file__)))
    programs = {name: root / FOLDER / f"init-{name}" for name in ARCHITECTURES}
    for name, program in programs.items():
        if program.exists() and program.stat().st_mtime > newest:
            continue
        new = program.with_suffix(f".{os.getpid()}")
        target = ("-target", f"{name}-linux-musl")
        subprocess.run([sys.executable, "-m", "ziglang", "cc", *target, *COMPILE, *sources, "-o", new], check=True)
        new.replace(program)
    return list(programs.values())


class CustomBuildHook(BuildHookInterface[Any]):
    """What hatchling calls before it makes a wheel, also the one of an editable installation."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        build_data["artifacts"] += [f"/{program.relative_to(self.root)}" for program in build(Path(self.root))]


if __name__ == "__main__":
    build(Path(__file__).parent)
