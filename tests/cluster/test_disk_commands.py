"""`boxlite snapshot`, `clone`, `export` and `import` against a live cluster."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cluster import Cluster
from support.command import boxlite, output


@pytest.fixture
def box(cluster: Cluster, test_image: str) -> Iterator[str]:
    name = f"box-{os.urandom(4).hex()}"
    output(boxlite(cluster, "create", "--name", name, "--memory", "128", test_image))
    output(boxlite(cluster, "exec", name, "--", "sh", "-c", "echo one > /file"))
    yield name
    boxlite(cluster, "rm", "-f", name)


def in_box(cluster: Cluster, box: str, *command: str) -> str:
    return output(boxlite(cluster, "exec", box, "--", *command))


def test_snapshots(cluster: Cluster, box: str) -> None:
    made = output(boxlite(cluster, "snapshot", "create", box, "two words")).strip()
    in_box(cluster, box, "sh", "-c", "echo two > /file")
    output(boxlite(cluster, "snapshot", "create", box, "other"))
    lines = output(boxlite(cluster, "snapshot", "ls", box)).splitlines()
    assert lines[0].split() == ["NAME", "CREATED", "WRITTEN", "SIZE", "ID"]
    assert lines[1].startswith("two words   ")
    assert lines[1].endswith(made)
    assert output(boxlite(cluster, "snapshot", "list", "-q", box)) == "two words\nother\n"
    assert [one["name"] for one in json.loads(output(boxlite(cluster, "snapshot", "ls", "--format", "json", box)))] == [
        "two words",
        "other",
    ]
    shown = json.loads(output(boxlite(cluster, "snapshot", "inspect", box, "two words")))
    assert [one["id"] for one in shown] == [made]
    refused = boxlite(cluster, "snapshot", "restore", box, "two words")
    assert (refused.returncode, refused.stdout) == (1, b"")
    assert b"stop it first" in refused.stderr
    output(boxlite(cluster, "stop", "-t", "1", box))
    assert output(boxlite(cluster, "snapshot", "restore", box, "two words")) == f"{box}\n"
    assert in_box(cluster, box, "cat", "/file") == "one\n"
    done = boxlite(cluster, "snapshot", "rm", box, "two words", "nosuch", "other")
    assert (done.returncode, done.stdout) == (1, b"two words\nother\n")
    assert b"nosuch" in done.stderr
    assert output(boxlite(cluster, "snapshot", "ls", "-q", box)) == ""


def test_clone(cluster: Cluster, box: str) -> None:
    copy = output(boxlite(cluster, "clone", box, "--name", f"{box}-copy")).strip()
    assert len(copy) == 12
    assert in_box(cluster, f"{box}-copy", "cat", "/file") == "one\n"
    output(boxlite(cluster, "rm", "-f", copy))


def test_export_and_import(cluster: Cluster, box: str, tmp_path: Path) -> None:
    file = tmp_path / "some.boxlite"
    done = boxlite(cluster, "export", box, "-o", str(file))
    assert (output(done), done.stderr) == (f"{file}\n", b"")
    assert output(boxlite(cluster, "export", box, "-o", str(tmp_path))) == f"{tmp_path / box}.boxlite\n"
    piped = boxlite(cluster, "export", box, "-o", "-")
    assert piped.returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f"{box}.boxlite", "some.boxlite"])
    for archive, stdin in ((str(file), b""), ("-", piped.stdout)):
        made = boxlite(cluster, "import", archive, "--name", f"{box}-back", stdin=stdin)
        assert made.stderr == b""
        assert in_box(cluster, f"{box}-back", "cat", "/file") == "one\n"
        output(boxlite(cluster, "rm", "-f", output(made).strip()))


def test_a_failed_export_leaves_no_file(cluster: Cluster, tmp_path: Path) -> None:
    done = boxlite(cluster, "export", "nosuch", "-o", str(tmp_path / "file"))
    assert done.returncode == 1
    assert b"not found" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_import_of_something_else(cluster: Cluster, tmp_path: Path) -> None:
    done = boxlite(cluster, "import", __file__)
    assert done.returncode == 1
    assert b"no .boxlite archive" in done.stderr
    done = boxlite(cluster, "import", str(tmp_path / "nosuch"))
    assert done.returncode == 1
    assert b"No such file" in done.stderr
