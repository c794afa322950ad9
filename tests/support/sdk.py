"""The released SDKs, each in a virtual environment of its own beside that of the tests."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

_PROJECT = tomllib.loads(Path(__file__).parents[2].joinpath("pyproject.toml").read_text())
_DEVELOPMENT: list[str] = _PROJECT["project"]["optional-dependencies"]["dev"]
NEWEST = next(line.removeprefix("boxlite==") for line in _DEVELOPMENT if line.startswith("boxlite=="))

# The SDKs' own threads may still hold Python objects when the interpreter is taken down, and then abort the
# process: about every other run. So a script that has ended leaves without that.
_LAUNCHER = """
import os, runpy, sys, traceback
del sys.argv[0]
code = 0
try:
    if sys.argv[0] == "-c":
        exec(compile(sys.argv.pop(1), "<script>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as exit:
    code = exit.code or 0
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
except BaseException:
    traceback.print_exc()
    code = 1
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)
"""


def sdk_python(version: str = NEWEST) -> str:
    """The Python that has this version of `boxlite`; it is installed at first use."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        if importlib.metadata.version("boxlite") == version:
            return sys.executable
    return python_with(version, f"boxlite=={version}")


def python_with(name: str, *requirements: str) -> str:
    """The Python of a virtual environment of that name, which has these packages."""
    directory = Path(sys.prefix, "sdk", name)
    python = str(directory / "bin" / "python")
    complete = directory / ".complete"
    if not complete.exists() or complete.read_text() != "\n".join(requirements):
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(directory)], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *requirements], check=True)
        complete.write_text("\n".join(requirements))
    return python


def run_sdk(
    version: str,
    script: Path | str,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    timeout: float = 120,
) -> subprocess.CompletedProcess[str]:
    """Run a script, a file or the code itself, against the SDK of that version.

    Its environment is ours without any BOXLITE_ variable, and with `env`. Raises TimeoutExpired.
    """
    program = [str(script)] if isinstance(script, Path) else ["-c", script]
    program = ["-c", _LAUNCHER, *program]
    return run_script([sdk_python(version), *program, *arguments], env, timeout)


def run_script(
    command: Sequence[str], env: Mapping[str, str] | None, timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run a script's command. Its environment is ours without any BOXLITE_ variable, and with `env`."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("BOXLITE_")}
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**inherited, **(env or {})},
    )
