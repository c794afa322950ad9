"""Keys that operators make and revoke over REST, and that none of them may do more than its maker."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from subprocess import CalledProcessError
from typing import Any

import pytest
from support.cluster import Cluster, wait_until

from boxlite_server.coordinator.tenants import scopes

ADMIN_KEY = "the-one-key-of-a-small-installation"
OPERATOR = ",".join((*scopes.TENANT, scopes.ADMIN))


@pytest.fixture(scope="module")
def lonely(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A coordinator without workers, with keys."""
    cluster = Cluster(tmp_path_factory.mktemp("keys"), "unix:///nowhere")
    cluster.new_key("--worker")
    cluster.api_key = ADMIN_KEY
    cluster.start_coordinator()
    yield cluster
    cluster.close()


def ask(cluster: Cluster, key: str, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    authorization = {"Authorization": f"Bearer {key}", **headers}
    status, _, answer = cluster.http(method, f"/v1/{path}", body, headers=authorization)
    return status, answer


def test_a_key_is_made_works_at_once_and_ends_when_it_is_revoked(lonely: Cluster) -> None:
    admin = lonely.new_key("--prefix", "acme", "--scope", OPERATOR)
    wanted = {"name": "ci", "scopes": ["box:read"], "expires_in": 3600}
    status, made = ask(lonely, admin, "POST", "admin/keys", wanted)
    assert (status, made["name"], made["prefix"], made["scopes"]) == (201, "ci", "acme", ["box:read"])
    assert made["expires_at"] and made["status"] == "active"
    me = ask(lonely, made["key"], "GET", "me")[1]
    assert (me["path_prefix"], me["scopes"]) == ("acme", ["box:read"])
    listed = ask(lonely, admin, "GET", "admin/keys")[1]
    assert made["key"] not in str(listed) and made["id"] in str(listed)
    assert ask(lonely, admin, "DELETE", f"admin/keys/{made['id']}") == (204, b"")
    assert ask(lonely, admin, "DELETE", f"admin/keys/{made['id']}") == (204, b"")
    wait_until(lambda: ask(lonely, made["key"], "GET", "me")[0] == 401, "the key has ended")
    assert ask(lonely, admin, "DELETE", "admin/keys/none")[0] == 404

    def actions() -> set[str]:
        return {line["action"] for line in ask(lonely, admin, "GET", "admin/audit")[1]["lines"]}

    wait_until(lambda: {"createKey", "revokeKey"} <= actions(), "the lines of the audit are written")


def test_keys_are_listed_page_by_page(lonely: Cluster) -> None:
    for name in "abc":
        assert ask(lonely, ADMIN_KEY, "POST", "admin/keys", {"name": name, "prefix": "pages"})[0] == 201
    whole = ask(lonely, ADMIN_KEY, "GET", "admin/keys")[1]
    assert len(whole["keys"]) >= 3 and whole["next_page_token"] is None
    seen: list[Any] = []
    token, query = "", "page_size=2"
    while token is not None:
        page = ask(lonely, ADMIN_KEY, "GET", f"admin/keys?{query}")[1]
        assert 1 <= len(page["keys"]) <= 2
        seen += page["keys"]
        token = page["next_page_token"]
        query = f"pageSize=2&pageToken={token}"
    assert [key["id"] for key in seen] == [key["id"] for key in whole["keys"]]
    assert ask(lonely, ADMIN_KEY, "GET", "admin/keys?page_token=x")[0] == 400


def test_a_prefix_has_only_so_many_keys_that_work(lonely: Cluster) -> None:
    def fill() -> None:
        with sqlite3.connect(lonely.database) as database:
            row = "printf('crowd%07d', n), 'crowd', 'crowd', '[]', '', 1.0"
            numbers = "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 1000)"
            columns = "id, name, prefix, scopes, secret_sha256, created_at"
            database.execute(f"INSERT INTO keys ({columns}) {numbers} SELECT {row} FROM numbers")

    fill()
    status, refused = ask(lonely, ADMIN_KEY, "POST", "admin/keys", {"name": "x", "prefix": "crowd"})
    assert (status, refused["error"]["code"]) == (429, "resource_exhausted")
    assert "the prefix crowd may have 1000 API keys" in refused["error"]["message"]
    with pytest.raises(CalledProcessError) as failed:
        lonely.new_key("--prefix", "crowd")
    assert "the prefix crowd may have 1000 API keys" in failed.value.stderr
    assert ask(lonely, ADMIN_KEY, "DELETE", "admin/keys/crowd0000001")[0] == 204
    assert ask(lonely, ADMIN_KEY, "POST", "admin/keys", {"name": "x", "prefix": "crowd"})[0] == 201


def test_a_key_makes_none_that_may_do_more_than_it(lonely: Cluster) -> None:
    fleet = lonely.new_key("--prefix", "ops", "--scope", "worker:admin,box:read", "--expires", "1h")
    for more, status in (
        ({"prefix": "acme"}, 403),  # the boxes of another tenant
        ({"scopes": ["box:exec"]}, 403),
        ({"scopes": ["worker:register"]}, 400),
        ({"scopes": ["box:fly"]}, 400),
        ({"expires_in": 7200}, 403),
        ({"name": "two\nlines"}, 400),
        ({"prefix": "admin", "scopes": ["box:read"]}, 400),
    ):
        assert ask(lonely, fleet, "POST", "admin/keys", {"name": "more", **more})[0] == status, more
    made = ask(lonely, fleet, "POST", "admin/keys", {"name": "same"})[1]
    assert (made["prefix"], made["scopes"]) == ("ops", ["box:read"])
    assert made["expires_at"] == ask(lonely, fleet, "GET", "me")[1]["expires_at"]
    assert ask(lonely, made["key"], "POST", "admin/keys", {"name": "child"})[0] == 403
    assert "more" not in {key["name"] for key in ask(lonely, fleet, "GET", "admin/keys")[1]["keys"]}


def test_the_one_key_makes_keys_of_any_prefix(lonely: Cluster) -> None:
    status, made = ask(lonely, ADMIN_KEY, "POST", "admin/keys", {"name": "blue", "prefix": "blue"})
    assert (status, made["prefix"], made["expires_at"]) == (201, "blue", None)
    assert set(made["scopes"]) == set(scopes.TENANT)
    status, refused = ask(lonely, ADMIN_KEY, "POST", "admin/keys", {"name": "x"}, **{"Idempotency-Key": "once"})
    assert (status, refused["error"]["code"]) == (400, "unsupported")  # its answer would be kept


def test_an_open_coordinator_makes_no_first_key_over_rest(tmp_path: Any) -> None:
    cluster = Cluster(tmp_path, "unix:///nowhere")
    try:
        cluster.start_coordinator()
        status, _, answer = cluster.http("POST", "/v1/admin/keys", {"name": "mine"})
        assert (status, answer["error"]["code"]) == (409, "invalid_state")
        assert cluster.http("GET", "/v1/boxes")[0] == 200
    finally:
        cluster.close()
