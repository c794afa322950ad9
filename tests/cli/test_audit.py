"""`boxlite-server audit`: what it shows, and in which form."""

from __future__ import annotations

import ast
import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from boxlite_server import cli, errors
from boxlite_server.cli import main
from boxlite_server.coordinator.store import AuditLine, Store, Tables

NOW = time.time()
LINES = [
    AuditLine(NOW - 7200, "anonymous", "default", "createBox", "/v1/default/boxes/b1", 201, "req_old", "10.0.0.1"),
    AuditLine(NOW - 60, "", "", "listBoxes", "/v1/boxes", 401, "req_wrong", "10.0.0.9"),
    AuditLine(NOW - 30, "api-key", "acme", "removeBox", "/v1/acme/boxes/\x1b[2J\u202e", 404, "req_new", "::1"),
]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command of the operator on a database with these lines."""
    database = tmp_path / "coordinator.db"

    async def fill() -> None:
        store = await Store.open(database)
        await store.insert_audit(LINES)
        await store.close()

    asyncio.run(fill())

    def command(*words: str) -> str:
        assert main.main([*words, "--database", str(database)]) == 0
        return capsys.readouterr().out

    return command


def shown(run: Callable[..., str], *flags: str) -> list[Any]:
    return [line["request_id"] for line in json.loads(run("audit", "--format", "json", *flags))]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), ["req_old", "req_wrong", "req_new"]),
        (("--since", "1h"), ["req_wrong", "req_new"]),
        (("--limit", "1"), ["req_new"]),
        (("--status", "401"), ["req_wrong"]),
        (("--status", "4xx"), ["req_wrong", "req_new"]),
        (("--prefix", "acme"), ["req_new"]),
        (("--action", "createBox"), ["req_old"]),
        (("--key", "api-key"), ["req_new"]),
        (("--key", "nosuch"), []),
        (("--request-id", "req_new"), ["req_new"]),
        (("--request-id", "req_*"), ["req_old", "req_wrong", "req_new"]),
        (("--since", "1h", "--status", "2xx"), []),
    ],
)
def test_lines_are_chosen_by_what_they_say(
    run: Callable[..., str], flags: tuple[str, ...], expected: list[str]
) -> None:
    assert shown(run, *flags) == expected


def test_the_table_shows_all_fields_and_nothing_that_moves_the_cursor(run: Callable[..., str]) -> None:
    header, *lines = run("audit").splitlines()
    assert header.split("   ")[0] == "TIME"
    assert lines[1].split()[1:] == ["401", "listBoxes", "-", "-", "10.0.0.9", "req_wrong", "/v1/boxes"]
    assert lines[2].endswith(r"/v1/acme/boxes/\x1b[2J\u202e")


def test_the_operators_own_changes_of_keys_are_there_and_their_lines_are_found_by_name(run: Callable[..., str]) -> None:
    key = run("keys", "create", "--name", "ci", "--prefix", "acme").strip()
    key_id = key.split("_")[1]
    run("keys", "rotate", "ci")
    run("keys", "revoke", "ci")
    lines = json.loads(run("audit", "--format", "json", "--key", "operator"))
    assert [(line["action"], line["target"], line["prefix"]) for line in lines] == [
        (action, key_id, "acme") for action in ("createKey", "rotateKey", "revokeKey")
    ]
    assert key.split("_", 2)[2] not in run("audit")
    assert shown(run, "--key", "ci") == []


def test_the_operators_own_changes_of_quotas_are_there(run: Callable[..., str]) -> None:
    run("quotas", "set", "acme", "--boxes", "5")
    run("quotas", "remove", "*")
    lines = json.loads(run("audit", "--format", "json", "--key", "operator"))
    assert [(line["action"], line["target"], line["prefix"]) for line in lines] == [
        ("setQuotas", "/v1/admin/quotas/acme", "acme"),
        ("removeQuotas", "/v1/admin/quotas/*", "*"),
    ]


def test_a_change_without_its_line_in_the_audit_is_not_made(
    run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise errors.DatabaseError("the disk is full")

    run("keys", "create", "--name", "ci", "--prefix", "acme")
    before = run("keys", "list", "--format", "json"), run("quotas", "list")
    monkeypatch.setattr(Tables, "insert_audit", fail)
    for command in (
        "quotas set acme --boxes 5",
        "quotas remove acme",
        "keys create --name x --prefix acme",
        "keys rotate ci",
        "keys revoke ci",
    ):
        with pytest.raises(AssertionError):
            run(*command.split())
    assert (run("keys", "list", "--format", "json"), run("quotas", "list")) == before


def test_no_command_changes_the_database_without_a_line() -> None:
    """Each transaction in the code of the commands has its line in it."""
    for path in Path(cli.__file__).parent.glob("*.py"):
        for block in ast.walk(ast.parse(path.read_text())):
            if isinstance(block, ast.AsyncWith) and "transaction()" in ast.unparse(block.items[0]):
                assert "await note(" in ast.unparse(block), f"{path.name}:{block.lineno}"


@pytest.mark.parametrize("flags", [("--status", "x"), ("--status", "6xx"), ("--limit", "0"), ("--since", "soon")])
def test_flags_that_say_nothing_are_refused(run: Callable[..., str], flags: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit):
        run("audit", *flags)


def test_no_coordinator_keeps_the_audit_for_less_than_a_day(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.main(["coordinator", "--audit-keep", "1h"])
    assert "less than a day" in capsys.readouterr().err
