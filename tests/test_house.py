"""The house keeps its order: who may import whom, how large a room, a module and a function may be."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOUSE = ROOT / "boxlite_server"
MAX_ENTRIES = 20
MAX_MODULE_LINES = 500
MAX_FUNCTION_LINES = 50

# Folders whose __init__.py does more than say in one line what the folder holds.
SPEAKING = {
    "boxlite_server": "the version",
    "boxlite_server/coordinator": "silences a warning of Connexion's before it is imported",
    "boxlite_server/coordinator/store": "the facade that everybody imports",
    "boxlite_server/coordinator/store/schema": "finds the scripts beside it",
}

# Functions that may be longer, and why.
LONG = {
    "boxlite_server/cli/main.py: _add_coordinator": "a list of flags",
    "boxlite_server/cli/main.py: _add_worker": "a list of flags",
    "boxlite_server/coordinator/core.py: over": "a list of parts",
}


def _written(folder: Path) -> list[Path]:
    """What people have written in a folder."""
    return [entry for entry in folder.iterdir() if entry.name != "__pycache__"]


def _folders() -> Iterator[Path]:
    for folder in (HOUSE, *HOUSE.rglob("*/")):
        if folder.name not in ("__pycache__", "_gen"):
            yield folder


def _modules() -> Iterator[Path]:
    for folder in _folders():
        yield from folder.glob("*.py")


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _lint(directory: Path) -> tuple[int, str]:
    """Exit code and output of import-linter for the package in a directory."""
    command = Path(sys.executable).with_name("lint-imports")
    env = {**os.environ, "PYTHONPATH": str(directory), "COLUMNS": "200"}
    done = subprocess.run([command, "--no-cache"], cwd=directory, env=env, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_imports_lead_down_the_house() -> None:
    """The contracts in pyproject.toml; `make lint` shows the same."""
    code, said = _lint(ROOT)
    assert code == 0, said


CLIMBING = [
    ("worker/monitoring/health.py", "import docker", "Docker Engine"),
    ("cli/main.py", "import sqlite3", "SQL"),
    ("worker/docker/gate.py", "from ..service import order", "worker's rooms"),
    ("coordinator/store/meta.py", "from .. import leases", "coordinator's rooms"),
    ("coordinator/http/handlers/volumes.py", "from ...._gen import worker_pb2", "gRPC"),
    ("client/api.py", "from ..coordinator import limits", "client"),
    ("worker/monitoring/health.py", "from ...coordinator import limits", "each other"),
]


@pytest.mark.parametrize(("module", "line", "contract"), CLIMBING)
def test_an_import_that_climbs_is_refused(tmp_path: Path, module: str, line: str, contract: str) -> None:
    shutil.copytree(HOUSE, tmp_path / "boxlite_server", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    climbing = tmp_path / "boxlite_server" / module
    climbing.write_text(f"{climbing.read_text()}\n{line}\n")
    code, said = _lint(tmp_path)
    assert code == 1
    assert any(contract in told and " BROKEN" in told for told in said.splitlines()), said


def test_no_folder_is_crowded() -> None:
    crowded = {_name(folder): len(found) for folder in _folders() if len(found := _written(folder)) > MAX_ENTRIES}
    assert not crowded


def test_every_folder_says_in_one_line_what_it_holds() -> None:
    for folder in _folders():
        scripts_alone = not any(folder.glob("*.py"))
        if scripts_alone:
            continue
        tree = ast.parse((folder / "__init__.py").read_text())
        docstring = ast.get_docstring(tree)
        assert docstring, f"{_name(folder)}/__init__.py does not say what the folder holds"
        if _name(folder) in SPEAKING:
            assert len(tree.body) > 1, f"{_name(folder)} is no exception any more"
            continue
        assert "\n" not in docstring, f"{_name(folder)}/__init__.py says it in more than one line"
        assert len(tree.body) == 1, f"{_name(folder)}/__init__.py holds more than a docstring"


def test_no_module_is_long() -> None:
    lengths = {_name(module): len(module.read_text().splitlines()) for module in _modules()}
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_MODULE_LINES}


def test_no_function_is_long() -> None:
    functions = {
        f"{_name(module)}: {node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for module in _modules()
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert not {name: lines for name, lines in functions.items() if lines > MAX_FUNCTION_LINES and name not in LONG}
    assert LONG.keys() <= functions.keys(), "no such functions any more"
