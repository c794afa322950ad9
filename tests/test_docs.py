"""The commands in README.md and docs/ run as they stand, and what the pages name is there.

Each page is one story: its blocks run in order, in one shell that ends at the first failure, against a cluster of
real processes. Only addresses are put in for those that a reader has: `http://127.0.0.1:8200` and `.venv/bin/`.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from support.cluster import Cluster
from support.sdk import NEWEST, sdk_python

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
PAPERS = (*PAGES, *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")))
BIN = Path(sys.executable).parent
SHOWN = frozenset({"text", "json", "ini"})  # languages of blocks that nobody types
WORKER = "frosty-meadow-42"  # as the pages call it
PAGE_SECONDS = 240
TO_COME = frozenset({"worker/network/"})  # rooms with a place already

# Blocks that cannot run here, by page and first line, and why.
EXCUSED = {
    ("README.md", "apt-get update && apt-get install -y make python3-venv"): (
        "installs packages, and serves until Ctrl-C; tests/local/test_demo.py runs what make run does"
    ),
    ("README.md", "boxlite-server coordinator --port 8200"): (
        "needs two hosts; tests/cluster/test_command.py runs these lines on one"
    ),
    ("README.md", "export BOXLITE_API_KEY=$(openssl rand -hex 32)"): "needs two hosts",
    ("docs/operations.md", ".venv/bin/pip wheel --no-deps --wheel-dir dist ."): "tests/test_package.py makes a wheel",
    (
        "docs/operations.md",
        "python3 -m venv /opt/boxlite",
    ): "writes to /opt; tests/test_package.py reads the wheel",
    ("docs/operations.md", "boxlite-server keys create --name web --prefix acme"): (
        "would lock the page's other commands out; tests/cli/test_keys.py runs these"
    ),
    (
        "docs/operations.md",
        "boxlite-server quotas set acme --boxes 50 --running-boxes 10 --cpus 20 --memory-mib 65536 --volumes 20",
    ): "would bound the page's other commands; tests/cli/test_quotas.py runs these",
    (
        "docs/command.md",
        "boxlite auth login --url https://boxes.example:8200              # asks for the API key, and does not show it",
    ): "needs a server with keys; tests/cluster/test_log_in.py and tests/client/commands/test_auth.py run these",
    ("docs/operations.md", "boxlite-server certs init"): "serves until Ctrl-C; tests/cluster/test_tls.py runs these",
    (
        "docs/operations.md",
        "boxlite-server worker --coordinator https://coordinator.internal:8200 --api-key-file /etc/boxlite/join-token",
    ): "needs two hosts; tests/cluster/test_tls.py has workers that join",
    ("docs/operations.md", "systemctl daemon-reload"): "needs systemd",
    ("docs/database.md", "pip install 'boxlite-server[postgresql]'"): (
        "installs packages, and needs a PostgreSQL; tests/cluster/test_two_coordinators.py has one"
    ),
    ("docs/database.md", "pg_dump --format=custom --file=boxlite.dump postgresql://boxlite@db.example/boxlite"): (
        "needs a PostgreSQL, and says nothing of this program"
    ),
    ("docs/failures.md", "make chaos                          # 15 minutes; prints the seed of its plan of faults"): (
        "takes 15 minutes; tests/chaos/test_chaos.py runs a short one"
    ),
    ("docs/development.md", "make run            # a cluster on this machine, serving until Ctrl-C"): (
        "runs all tests, and for hours"
    ),
    ("docs/development.md", ".venv/bin/python -m pytest -q tests/coordinator/fleet/test_placement.py"): (
        "a test run inside of the test run"
    ),
    (
        "docs/development.md",
        ".venv/bin/pip wheel --no-deps --wheel-dir dist .",
    ): "tests/test_package.py makes a wheel",
}


class Block(NamedTuple):
    page: str
    line: int
    language: str
    text: str

    @property
    def excuse(self) -> str | None:
        return EXCUSED.get((self.page, self.text.splitlines()[0]))


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page. Fences stand at the beginning of a line and name a language."""
    name, language, begin, lines = page.relative_to(ROOT).as_posix(), "", 0, []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if not line.startswith("```"):
            lines.append(line)
        elif not begin:
            language, begin, lines = line.removeprefix("```"), number, []
        else:
            yield Block(name, begin, language, "\n".join(lines) + "\n")
            begin = 0
    assert not begin, f"{name}:{begin}: the block does not end"


ALL = [block for page in PAGES for block in blocks(page)]


def runs(page: Path) -> list[Block]:
    """The blocks of a page that are run."""
    return [block for block in blocks(page) if block.language not in SHOWN and not block.excuse]


def test_every_block_is_run_or_excused() -> None:
    for block in ALL:
        assert block.language in {"sh", "python"} | SHOWN, f"{block.page}:{block.line}: no language that is run"
    unused = EXCUSED.keys() - {(block.page, block.text.splitlines()[0]) for block in ALL}
    assert not unused, f"no such blocks any more: {unused}"


def test_no_block_is_indented() -> None:
    """Indented blocks would be shown as commands and never run."""
    for page in PAPERS:
        inside, before = False, ""
        for number, line in enumerate(page.read_text().splitlines(), 1):
            inside ^= line.startswith("```")
            is_indented = line.startswith("    ") and not before.strip() and not inside
            assert not is_indented, f"{page.name}:{number}: a block that is indented and not fenced"
            before = line


@pytest.fixture(scope="module")
def cluster(new_shared_cluster: Callable[..., Cluster]) -> Iterator[Cluster]:
    """A cluster for the pages alone, with the worker that they name; they leave no box behind."""
    cluster = new_shared_cluster()
    cluster.start_coordinator()
    cluster.start_worker(name=WORKER)
    yield cluster
    assert cluster.containers() == []


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES if runs(page)])
def test_a_page_does_what_it_says(page: Path, cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text((ROOT / "README.md").read_text())
    done = subprocess.run(
        ["bash", "-c", _script(page, cluster.url, tmp_path)],
        cwd=tmp_path,
        env=_environment(cluster, tmp_path),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PAGE_SECONDS,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0
    if page.name == "README.md":
        assert done.stdout.splitlines().count("hello") == 3  # of the command, of the SDK, of curl


def _script(page: Path, url: str, directory: Path) -> str:
    """The page's blocks in one shell; each is announced, so that a failure shows where it happened."""
    parts = ["set -eo pipefail"]
    for block in runs(page):
        text = block.text.replace("http://127.0.0.1:8200", url).replace(".venv/bin/", f"{BIN}/")
        parts.append(f"echo {shlex.quote(f'--- {block.page}:{block.line}')}")
        if block.language == "python":
            program = directory / f"block-{block.line}.py"
            # The SDK's own threads may abort a process whose interpreter is taken down.
            program.write_text(f"{text}\nimport os, sys\nsys.stdout.flush()\nos._exit(0)\n")
            text = shlex.join([sdk_python(NEWEST), str(program)]) + "\n"
        parts.append(text)
    return "\n".join(parts)


def _environment(cluster: Cluster, directory: Path) -> dict[str, str]:
    """That of a reader whose server is the test's."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("BOXLITE_")}
    return {
        **env,
        "PATH": f"{BIN}{os.pathsep}{env['PATH']}",
        "HOME": str(directory),
        "NO_PROXY": "127.0.0.1",
        "BOXLITE_REST_URL": cluster.url,
        "BOXLITE_COORDINATOR_URL": cluster.url,
        "BOXLITE_COORDINATOR_DB": cluster.database,
    }


# ---- what the pages name --------------------------------------------------------------------------------


def test_links_lead_somewhere() -> None:
    for page in PAPERS:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target} is not there"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_what_the_architecture_names_is_in_the_code() -> None:
    """Rows of `| step | `module.py` | `Class.method` | … |`, and every folder and module in the text."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    steps = re.findall(r"^\|[^|]*\| `([\w/.]+\.py)` \| ((?:`[\w.]+`,? ?)+)\|", text, re.MULTILINE)
    assert len(steps) > 20
    for module, names in steps:
        defined = _defined(ROOT / "boxlite_server" / module)
        for name in re.findall(r"`([\w.]+)`", names):
            assert name in defined, f"{module} has no {name}"
    for path in re.findall(r"`((?:coordinator|worker|client|cli|local|tests)/[\w/.]*)`", text):
        is_there = (ROOT / "boxlite_server" / path).exists() or (ROOT / path).exists()
        assert is_there != (path in TO_COME), f"{path} is {'there' if is_there else 'not there'}"


def test_the_architecture_shows_every_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    for side in ("coordinator", "worker"):
        for entry in (ROOT / "boxlite_server" / side).iterdir():
            room = f"{side}/{entry.name}" + ("/" if entry.is_dir() else "")
            assert entry.name.startswith("__") or f"`{room}`" in text, f"{room} is not shown"


def _defined(module: Path) -> set[str]:
    """Functions, classes, and methods by the name of their class."""
    names = set()
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            inner = [each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
            names |= {f"{node.name}.{each.name}" for each in inner}
    return names
