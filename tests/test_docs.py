"""The commands in README.md and docs/ run as they stand, and what the pages name is there.

A block belongs to a story, or is a part of its page: those parts run in order, in one shell that ends at the first
failure, against a cluster of real processes. A story begins on a machine of its own, where nothing runs yet, and its
addresses and ports are those of the pages. What can run in neither stands in one table, with the tests that check it
otherwise.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from support.cluster import Cluster
from support.pages import ALL, PAGES, ROOT, SHOWN, TYPED, Block, blocks, commands
from support.postgresql import Server
from support.reader import Reader
from support.sdk import NEWEST, sdk_python

PAPERS = (*PAGES, *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")))
BIN = Path(sys.executable).parent
WORKER = "frosty-meadow-42"  # as the pages call it
PAGE_SECONDS = 240
TO_COME = frozenset({"worker/network/"})  # rooms with a place already

DEPLOY = "docs/deploy.md"
ELSEWHERE = ""  # in place of a page: what a reader does besides, as it stands here

# Stories by name: their blocks in order, by page and first line.
STORIES: dict[str, list[tuple[str, str]]] = {
    "one host": [
        (DEPLOY, "python3 -m venv /opt/boxlite"),
        (DEPLOY, "useradd --system --home-dir /var/lib/boxlite --create-home boxlite"),
        (DEPLOY, "systemctl daemon-reload"),
        (DEPLOY, "export BOXLITE_REST_URL=https://127.0.0.1:8200 BOXLITE_CA_CERT=/etc/boxlite/certs/ca.crt"),
        (
            DEPLOY,
            'boxlite-server backup "/var/lib/boxlite/before-$(date +%s).db" --database /var/lib/boxlite/coordinator.db',
        ),
        (DEPLOY, "systemctl restart boxlite-coordinator"),
        (DEPLOY, "export BOXLITE_REST_URL=https://127.0.0.1:8200 BOXLITE_CA_CERT=/etc/boxlite/certs/ca.crt"),
    ],
    "ten hosts": [
        (DEPLOY, "useradd --system --home-dir /var/lib/boxlite --create-home boxlite"),
        (ELSEWHERE, "systemctl enable --now boxlite-coordinator; cp /etc/boxlite/join-token ."),
        (DEPLOY, "install -d -m 755 /etc/boxlite"),
        (DEPLOY, "systemctl enable --now boxlite-worker  # the coordinator runs"),
        (DEPLOY, "export BOXLITE_COORDINATOR_DB=/var/lib/boxlite/coordinator.db  # on the coordinator's host"),
    ],
    "two coordinators": [
        (DEPLOY, "useradd --system --home-dir /var/lib/boxlite --create-home boxlite"),
        (DEPLOY, "export BOXLITE_COORDINATOR_DB=postgresql://boxlite@db.example/boxlite"),
        (DEPLOY, "systemctl daemon-reload"),
        (ELSEWHERE, "test -s /etc/boxlite/certs/second.key"),
        (DEPLOY, "export BOXLITE_REST_URL=https://127.0.0.1:8200 BOXLITE_CA_CERT=/etc/boxlite/certs/ca.crt"),
    ],
    "an installation by pipx": [
        ("README.md", "pipx install ./dist/*.whl && boxlite-server dev"),
        ("README.md", "boxlite run --rm alpine:latest echo hello"),
        ("README.md", "import asyncio"),
        ("README.md", "API=http://127.0.0.1:8200/v1"),
    ],
    "three commands": [("README.md", "boxlite-server coordinator --port 8200")],
    "one key": [("README.md", "export BOXLITE_API_KEY=$(openssl rand -hex 32)")],
    "a wheel": [("docs/operations.md", "make dist")],
    "TLS": [
        ("docs/operations.md", "boxlite-server certs init"),
        (
            "docs/operations.md",
            "boxlite-server worker --coordinator https://coordinator.internal:8200 "
            "--api-key-file /etc/boxlite/join-token",
        ),
    ],
    "keys": [("docs/operations.md", "boxlite-server keys create --name web --prefix acme")],
    "quotas": [
        (
            "docs/operations.md",
            "boxlite-server quotas set acme --boxes 50 --running-boxes 10 --cpus 20 --memory-mib 65536 --volumes 20",
        )
    ],
    "PostgreSQL": [
        ("docs/database.md", "boxlite-server coordinator --database postgresql://boxlite@db.example/boxlite"),
        ("docs/database.md", "pg_dump --format=custom --file=boxlite.dump postgresql://boxlite@db.example/boxlite"),
    ],
    "single tests": [
        ("docs/development.md", ".venv/bin/python -m pytest -q tests/coordinator/fleet/test_placement.py")
    ],
}

# Blocks that install packages from an index.
ONLINE = {
    (DEPLOY, "python3 -m venv /opt/boxlite"),
    (
        DEPLOY,
        'boxlite-server backup "/var/lib/boxlite/before-$(date +%s).db" --database /var/lib/boxlite/coordinator.db',
    ),
}

# Blocks that can run nowhere in a test: why, and the tests that check what they do.
EXCUSED = {
    ("README.md", "apt-get update && apt-get install -y make python3-venv"): (
        "it installs packages, and serves until Ctrl-C",
        "tests/local/test_demo.py",
    ),
    (DEPLOY, "apt-get update && apt-get install -y docker.io nftables python3-venv"): (
        "it installs packages",
        "tests/local/test_doctor.py",
    ),
    (DEPLOY, "cd deploy"): ("its images come from the internet", "tests/deploy/test_compose.py"),
    ("docs/failures.md", "make chaos                          # 15 minutes; prints the seed of its plan of faults"): (
        "it takes 15 minutes",
        "tests/chaos/test_chaos.py",
    ),
    ("docs/development.md", "make run            # a cluster on this machine, serving until Ctrl-C"): (
        "it runs all tests, and for hours",
        "tests/test_docs.py",
    ),
    (
        "docs/command.md",
        "boxlite auth login --url https://boxes.example:8200              # asks for the API key, and does not show it",
    ): ("it needs a server with keys", "tests/cluster/test_log_in.py"),
}
_TOLD = frozenset(key for story in STORIES.values() for key in story if key[0] != ELSEWHERE)
_OWN = _TOLD | EXCUSED.keys()


def runs(page: Path) -> list[Block]:
    """The blocks of a page that run with the others of that page."""
    return [block for block in blocks(page) if block.language not in SHOWN and block.key not in _OWN]


# ---- every block ----------------------------------------------------------------------------------------


def test_every_block_is_run_or_checked_otherwise(record_property: Callable[[str, object], None]) -> None:
    for block in ALL:
        assert block.language in {"sh", "python"} | SHOWN, f"{block.page}:{block.line}: no language that is run"
    keys = [block.key for block in TYPED]
    assert len(keys) == len(set(keys)), "two blocks of a page begin alike"
    unused = _OWN - set(keys)
    assert not unused, f"no such blocks any more: {unused}"
    assert not EXCUSED.keys() & _TOLD
    for _, checked_by in EXCUSED.values():
        assert (ROOT / checked_by).exists(), f"{checked_by} is not there"
    with_page = sum(len(runs(page)) for page in PAGES)
    assert with_page + len(_TOLD) + len(EXCUSED) == len(TYPED)
    record_property("blocks", f"{with_page} with their page, {len(_TOLD)} in stories, {len(EXCUSED)} checked otherwise")


@pytest.mark.parametrize("block", [pytest.param(block, id=f"{block.page}:{block.line}") for block in TYPED])
def test_a_block_has_no_wrong_command(block: Block) -> None:
    """Those that nobody runs too: the shell reads it, this product has its commands and flags, and make its targets."""
    if block.language == "python":
        ast.parse(block.text)
        return
    subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
    for words in commands(block):
        with suppress(SystemExit):  # raised with 0 by --version
            _parser(words[0]).parse_args(words[1:])
            continue
        assert words[1:] == ["--version"], f"{block.page}:{block.line}: {shlex.join(words)}"
    for target in re.findall(r"^make ([\w-]+)", block.text, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"make has no {target}"


def _parser(name: str) -> Any:
    from boxlite_server.cli import main
    from boxlite_server.client import cli

    return cli.build_parser() if name == "boxlite" else main._parser()


def test_no_block_is_indented() -> None:
    """Indented blocks would be shown as commands and never run."""
    for page in PAPERS:
        inside, before = False, ""
        for number, line in enumerate(page.read_text().splitlines(), 1):
            inside ^= line.startswith("```")
            is_indented = line.startswith("    ") and not before.strip() and not inside
            assert not is_indented, f"{page.name}:{number}: a block that is indented and not fenced"
            before = line


# ---- stories --------------------------------------------------------------------------------------------


@pytest.mark.timeout(900)
@pytest.mark.parametrize("story", STORIES)
def test_a_story_goes_as_told(story: str, reader: Reader, request: pytest.FixtureRequest) -> None:
    by_key = {block.key: block for block in TYPED}
    printed = ""
    with ExitStack() as stack:
        if prepare := PREPARED.get(story):
            stack.enter_context(prepare(reader, request))
        for key in STORIES[story]:
            block = by_key.get(key, Block(ELSEWHERE, 0, "sh", key[1]))
            printed += reader.type(block.language, block.text, online=key in ONLINE)
    print(printed)
    if expected := SAID.get(story):
        assert re.search(expected, printed, re.MULTILINE | re.DOTALL)


SAID = {
    "an installation by pipx": "^hello$.*^hello$.*README.md.*^hello$.*^hello$",
    "three commands": "^[0-9A-Za-z]{12}$",
    "one key": "^hello$",
    "single tests": "passed",
    "one host": "^hello$.*the coordinator accepts the API key.*^hello$",
    "ten hosts": " active ",
    "two coordinators": "^hello$",
}


def _postgresql(reader: Reader, request: pytest.FixtureRequest) -> AbstractContextManager[None]:
    """The server of the tests is db.example, and has the database of the pages."""
    server: Server = request.getfixturevalue("postgresql")
    with suppress(psycopg.errors.DuplicateDatabase):  # of another story
        server.new_database("boxlite")
    return reader.serve(5432, server.port)


@contextmanager
def _wheel(reader: Reader, request: pytest.FixtureRequest) -> Iterator[None]:
    """A release is at hand."""
    (reader.here / "dist").mkdir()
    shutil.copy(request.getfixturevalue("built_wheel"), reader.here / "dist")
    yield


@contextmanager
def _pipx(reader: Reader, request: pytest.FixtureRequest) -> Iterator[None]:
    reader.use_pipx()
    with _wheel(reader, request):
        yield


PREPARED: dict[str, Callable[[Reader, pytest.FixtureRequest], AbstractContextManager[None]]] = {
    "an installation by pipx": _pipx,
    "PostgreSQL": _postgresql,
    "two coordinators": _postgresql,
    "one host": _wheel,
}


# ---- pages ----------------------------------------------------------------------------------------------


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
