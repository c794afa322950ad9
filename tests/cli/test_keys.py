"""`boxlite-server keys`: the operator's keys, in a database that nobody or a coordinator is using."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.cluster import Cluster, wait_until

from boxlite_server.cli import main
from boxlite_server.formats import split_join_token
from boxlite_server.tls import certificates


class Keys:
    """The command, on one database."""

    def __init__(self, database: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._database = database
        self._capsys = capsys

    def run(self, *command: str) -> tuple[int, str, str]:
        code = main.main(["keys", *command, "--database", str(self._database)])
        return code, *self._capsys.readouterr()

    def __call__(self, *command: str) -> str:
        code, out, err = self.run(*command)
        assert code == 0, err
        return out.strip()

    def json(self, *command: str) -> Any:
        return json.loads(self(*command, "--format", "json"))


@pytest.fixture
def keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Keys:
    return Keys(tmp_path / "coordinator.db", capsys)


def test_a_key_is_shown_once(keys: Keys, tmp_path: Path) -> None:
    code, text, note = keys.run("create", "--name", "ci", "--prefix", "acme")
    assert (code, text.count("\n"), text.startswith("blx_")) == (0, 1, True)
    assert "not shown again" in note
    secret = text.strip().split("_", 2)[2]
    assert secret not in keys("list") + keys("list", "--format", "json")
    assert not [file for file in tmp_path.iterdir() if secret.encode() in file.read_bytes()]


def test_a_key_is_what_was_asked_for(keys: Keys) -> None:
    made = keys.json(
        *("create", "--name", "ci", "--prefix", "acme", "--scope", "box:read,box:exec", "--scope", "worker:admin"),
        *("--expires", "90d"),
    )
    key = made.pop("key")
    assert (made["prefix"], made["scopes"]) == ("acme", ["box:read", "box:exec", "worker:admin"])
    assert made["expires_at"] > made["created_at"]
    assert key.startswith(f"blx_{made['id']}_")
    assert keys.json("list") == [made]
    header, line = keys("list").splitlines()
    assert header.split()[:4] == ["NAME", "ID", "PREFIX", "STATUS"]
    assert line.split()[:4] == ["ci", made["id"], "acme", "active"]


def test_a_key_has_all_of_its_prefix_and_nothing_of_the_fleet_by_default(keys: Keys) -> None:
    scopes = keys.json("create", "--name", "ci", "--prefix", "acme")["scopes"]
    assert "box:exec" in scopes
    assert not [scope for scope in scopes if scope.startswith("worker:")]


@pytest.mark.parametrize(
    "flags",
    [
        ["--name", "ci"],
        ["--prefix", "acme"],
        ["--name", "ci", "--prefix", "admin"],
        ["--name", "ci", "--prefix", "a/b"],
        ["--name", "", "--prefix", "acme"],
        ["--name", "a\nb", "--prefix", "acme"],
        ["--name", "ci", "--prefix", "acme", "--scope", "box:fly"],
        ["--name", "ci", "--prefix", "acme", "--scope", "worker:register"],
        ["--name", "ci", "--prefix", "acme", "--worker"],
        ["--name", "ci", "--prefix", "acme", "--expires", "soon"],
    ],
)
def test_a_key_that_cannot_be_is_refused(keys: Keys, flags: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        keys.run("create", *flags)
    assert ended.value.code == 2


def test_a_key_of_workers_takes_no_scope(keys: Keys) -> None:
    code, _, error = keys.run("create", "--name", "w", "--worker", "--scope", "box:read")
    assert (code, "takes no --scope" in error) == (1, True)
    assert keys.json("create", "--name", "w", "--worker")["scopes"] == ["worker:register"]


def test_a_key_of_workers_is_printed_as_a_join_token(keys: Keys, tmp_path: Path) -> None:
    ca = tmp_path / "ca.crt"
    ca.write_bytes(certificates.new_ca("one").certificate)
    [pin] = certificates.fingerprints(ca.read_bytes())
    first = keys("create", "--name", "w", "--worker", "--tls-ca", str(ca))
    second = keys.json("rotate", "w", "--grace", "1h", "--tls-ca", str(ca))["key"]
    for token in (first, second):
        key, found = split_join_token(token)
        assert (key or "").startswith("blx_")
        assert found == pin
    assert pin not in keys("list", "--format", "json")  # the key of the database is without it


def test_a_join_token_that_cannot_be_is_refused(keys: Keys, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    keys("create", "--name", "ci", "--prefix", "acme")
    for command, reason in (
        (["create", "--name", "x", "--prefix", "acme", "--tls-ca", "ca.crt"], "give --worker too"),
        (["create", "--name", "x", "--worker", "--tls-ca", str(tmp_path / "none")], "cannot read"),
        (["create", "--name", "x", "--worker", "--tls-ca", str(tmp_path / "empty")], "no certificate"),
        (["rotate", "ci", "--tls-ca", str(tmp_path / "empty")], "no certificate"),
    ):
        code, _, error = keys.run(*command)
        assert (code, reason in error) == (1, True), error
    (tmp_path / "empty").write_bytes(certificates.new_ca("one").certificate)
    code, _, error = keys.run("rotate", "ci", "--tls-ca", str(tmp_path / "empty"))
    assert (code, "is not one of workers" in error) == (1, True)
    assert [key["name"] for key in keys.json("list")] == ["ci"]


def test_a_key_is_found_by_id_or_name(keys: Keys) -> None:
    first = keys.json("create", "--name", "ci", "--prefix", "acme")
    second = keys.json("create", "--name", "ci", "--prefix", "other")
    code, _, error = keys.run("revoke", "ci")
    assert code == 1
    assert first["id"] in error
    assert second["id"] in error
    keys("revoke", first["id"])
    keys("revoke", "ci")  # the one that is left
    assert [key["status"] for key in keys.json("list")] == ["revoked", "revoked"]
    assert keys.run("revoke", "nobody")[0] == 1


def test_a_key_that_has_ended_is_not_rotated(keys: Keys) -> None:
    keys("create", "--name", "old", "--prefix", "acme", "--expires", "0")
    code, _, error = keys.run("rotate", "old")
    assert (code, "is expired" in error) == (1, True)


def test_keys_are_made_rotated_and_revoked_while_the_coordinator_serves(keys: Keys, tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, docker_host="unix:///nowhere")
    cluster.start_coordinator()

    def status(key: str) -> int:
        return cluster.http("GET", "/v1/acme/boxes", headers={"Authorization": f"Bearer {key}"})[0]

    assert status("") == 200
    first = keys("create", "--name", "ci", "--prefix", "acme")
    wait_until(lambda: status("") == 401, "nobody gets in without a key", 10)
    assert status(first) == 200
    second = keys("rotate", "ci")
    assert status(second) == 200
    wait_until(lambda: status(first) == 401, "the former secret has ended", 10)
    assert status(second) == 200
    keys("revoke", "ci")
    wait_until(lambda: status(second) == 401, "the key has ended", 10)
    cluster.close()
    assert keys.json("list")[0]["last_used_at"]  # written at the end at the latest
