"""What operators see over REST of keys and of the audit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support.cluster import Cluster, wait_until


@pytest.fixture(scope="module")
def lonely(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A coordinator without workers."""
    cluster = Cluster(tmp_path_factory.mktemp("administration"), "unix:///nowhere")
    cluster.start_coordinator()
    yield cluster
    cluster.close()


def test_an_open_server_says_so_until_the_first_key(lonely: Cluster) -> None:
    assert lonely.http("GET", "/v1/config")[2]["authentication"] == "none"
    lonely.new_key("--prefix", "acme", "--expires", "90d")
    wait_until(lambda: lonely.http("GET", "/v1/config")[2]["authentication"] == "bearer", "the first key is known")


def test_keys_are_listed_without_their_secrets(lonely: Cluster) -> None:
    admin = lonely.new_key("--prefix", "ops", "--scope", "worker:admin")
    workers = lonely.new_key("--worker")
    found = _get(lonely, admin, "keys")["keys"]
    assert [(key["prefix"], key["status"]) for key in found][-2:] == [("ops", "active"), (None, "active")]
    assert found[-1]["id"] == workers.split("_")[1]
    assert found[-2]["scopes"] == ["worker:admin"]
    text = str(found)
    assert not [secret for secret in lonely.secrets if secret in text]
    assert "sha256" not in text
    tenant = lonely.new_key("--prefix", "acme")
    assert _ask(lonely, tenant, "keys")[0] == _ask(lonely, tenant, "audit")[0] == 403


def test_lines_of_the_audit_are_found_by_what_they_are_about(lonely: Cluster) -> None:
    admin = lonely.new_key("--prefix", "ops", "--scope", "worker:admin")
    tenant = lonely.new_key("--prefix", "blue")
    headers = {"Authorization": f"Bearer {tenant}", "X-Request-Id": "mine-1"}
    assert lonely.http("DELETE", "/v1/boxes/none", headers=headers)[0] == 404
    assert lonely.http("GET", "/v1/admin/workers", headers={**headers, "X-Request-Id": "mine-2"})[0] == 403

    def lines(query: str) -> list[tuple[str, int]]:
        return [(line["request_id"], line["status"]) for line in _get(lonely, admin, f"audit?{query}")["lines"]]

    both = [("mine-1", 404), ("mine-2", 403)]
    wait_until(lambda: lines("request_id=mine-*") == both, "both lines are written")
    assert lines(f"key={tenant.split('_')[1]}") == lines("key=test&audit_prefix=blue&status=4xx") == both
    assert lines("action=removeBox&audit_prefix=blue") == both[:1]
    assert lines("status=403&request_id=mine-*") == lines("request_id=mine-*&limit=1") == both[1:]
    assert lines("request_id=mine-*&since=253402300799") == []
    for bad in ("status=4x", "limit=0", "limit=1001", "since=x", "since=-1"):
        assert _ask(lonely, admin, f"audit?{bad}")[0] == 400, bad


def _ask(cluster: Cluster, key: str, path: str) -> tuple[int, dict[str, str], Any]:
    return cluster.http("GET", f"/v1/admin/{path}", headers={"Authorization": f"Bearer {key}"})


def _get(cluster: Cluster, key: str, path: str) -> Any:
    status, _, body = _ask(cluster, key, path)
    assert status == 200, body
    return body
