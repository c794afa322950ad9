"""`boxlite-server quotas`: the operator's quotas, in a database that nobody or a coordinator is using."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from boxlite_server.cli import main


class Command:
    """The command, on one database."""

    def __init__(self, database: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._database = database
        self._capsys = capsys

    def run(self, *arguments: str) -> tuple[int, str, str]:
        code = main.main(["quotas", *arguments, "--database", str(self._database)])
        return code, *self._capsys.readouterr()

    def json(self) -> Any:
        return json.loads(self.run("list", "--format", "json")[1])


@pytest.fixture
def quotas(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(tmp_path / "coordinator.db", capsys)


def test_quotas_are_set_one_by_one(quotas: Command) -> None:
    assert quotas.run("set", "acme", "--boxes", "10", "--memory-mib", "65536")[0] == 0
    assert quotas.run("set", "acme", "--boxes", "none", "--requests-per-second", "50")[0] == 0
    assert quotas.run("set", "*", "--running-boxes", "5")[0] == 0
    every, acme = quotas.json()
    assert (every["prefix"], every["own"]["running_boxes"]) == ("*", 5)
    assert {name: value for name, value in acme["own"].items() if value is not None} == {
        "memory_mib": 65536,
        "requests_per_second": 50,
    }
    assert acme["used"]["boxes"] == 0
    table = [line.split() for line in quotas.run("list")[1].splitlines()]
    assert ["acme", "memory_mib", "65536", "0"] in table
    assert ["acme", "requests_per_second", "50"] in table


def test_quotas_are_removed(quotas: Command) -> None:
    quotas.run("set", "acme", "--boxes", "10")
    assert quotas.run("remove", "acme")[0] == 0
    assert quotas.json() == []


@pytest.mark.parametrize(
    "arguments",
    [["acme"], ["a/b", "--boxes", "1"], ["admin", "--boxes", "1"], ["acme", "--boxes", "-1"], ["acme", "--boxes", "x"]],
)
def test_what_is_no_quota_is_refused(quotas: Command, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert quotas.run("set", *arguments)[0] != 0
    except SystemExit as exc:
        assert exc.code == 2
    capsys.readouterr()
    assert quotas.json() == []
