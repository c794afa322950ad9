"""Quotas over HTTP: set by an administrator, shown to the tenant, and named where they refuse."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from support.asgi import ask, handshake
from support.coordinator_site import CoordinatorSite
from support.keys import new_key

from boxlite_server.coordinator.http.app import create_app
from boxlite_server.coordinator.tenants import quotas as tenants_quotas
from boxlite_server.coordinator.tenants import scopes


class Api:
    """A coordinator with one worker, an administrator `root`, and the tenants `acme` and `other`."""

    def __init__(self, runner: asyncio.Runner, site: CoordinatorSite) -> None:
        self._run = runner.run
        self._app = create_app(site.core)
        fields = {"root": {"prefix": "root"}, "acme": {"scopes": scopes.TENANT}}
        fields["other"] = {"prefix": "other", "scopes": scopes.TENANT}
        self._keys = {name: self._run(new_key(site.core.store, **each))[1] for name, each in fields.items()}

    def send(self, who: str, method: str, path: str, body: Any = None) -> tuple[int, dict[str, str], Any]:
        headers = {"authorization": f"Bearer {self._keys[who]}", "content-type": "application/json"}
        parts = [] if body is None else [json.dumps(body).encode()]
        if parts:
            headers["content-length"] = str(len(parts[0]))
        status, answered, content = self._run(ask(self._app, method, path, *parts, headers=headers))
        return status, answered, json.loads(content) if content else None

    def knock(self, who: str, path: str) -> int:
        return self._run(handshake(self._app, path, headers={"authorization": f"Bearer {self._keys[who]}"}))


@pytest.fixture
def api(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setattr(tenants_quotas, "FRESH_SECONDS", 0.0)
    site = CoordinatorSite(tmp_path / "c.db")
    with asyncio.Runner() as runner:
        runner.run(site.open(site.one))
        yield Api(runner, site)
        runner.run(site.core.close())


def test_a_quota_that_is_used_up_is_named(api: Api) -> None:
    assert api.send("root", "PUT", "/v1/admin/quotas/acme", {"boxes": 1})[0] == 200
    assert api.send("acme", "POST", "/v1/boxes", {"image": "alpine"})[0] == 201
    status, headers, answer = api.send("acme", "POST", "/v1/boxes", {"image": "alpine"})
    assert (status, answer["error"]["code"], answer["error"]["type"]) == (
        429,
        "resource_exhausted",
        "ResourceExhaustedError",
    )
    assert "the quota boxes of prefix 'acme' is 1" in answer["error"]["message"]
    assert int(headers["retry-after"]) >= 1
    assert api.send("other", "POST", "/v1/boxes", {"image": "alpine"})[0] == 201


def test_too_many_requests_in_a_second_are_refused_on_http_and_websocket(api: Api) -> None:
    assert api.send("root", "PUT", "/v1/admin/quotas/acme", {"requests_per_second": 1})[0] == 200
    answers = [
        api.send("acme", "GET", path) for path in ("/v1/boxes", "/v1/default/boxes", "/v1/me", "/v1/acme/nosuch")
    ]
    assert [status for status, _, _ in answers] == [200, 429, 429, 429]
    assert "requests_per_second" in answers[1][2]["error"]["message"]
    assert (answers[1][2]["error"]["code"], answers[2][2]["error"]["code"]) == (429, "resource_exhausted")
    assert answers[1][1]["retry-after"] == "1"
    assert api.knock("acme", "/v1/boxes/web/attach") == 429
    assert api.send("other", "GET", "/v1/boxes")[0] == 200
    assert api.send("root", "GET", "/v1/admin/quotas/acme")[0] == 200


def test_an_administrator_is_never_held_up(api: Api) -> None:
    assert api.send("root", "PUT", "/v1/admin/quotas/*", {"requests_per_second": 0})[0] == 200
    assert api.send("root", "GET", "/v1/boxes")[0] == 429
    for _ in range(3):
        assert api.send("root", "GET", "/v1/admin/quotas")[0] == 200


def test_a_tenant_sees_its_quotas_and_what_it_has(api: Api) -> None:
    assert api.send("root", "PUT", "/v1/admin/quotas/*", {"volumes": 4})[0] == 200
    assert api.send("root", "PUT", "/v1/admin/quotas/acme", {"boxes": 3, "spooled_bytes": 2**40})[0] == 200
    assert api.send("acme", "POST", "/v1/boxes", {"image": "alpine", "memory_mib": 256, "start": True})[0] == 201
    me = api.send("acme", "GET", "/v1/me")[2]
    shown = {name: value for name, value in me["quotas"].items() if value is not None}
    assert shown == {"boxes": 3, "volumes": 4, "spooled_bytes": 2**40}
    assert me["used"] == {"boxes": 1, "running_boxes": 1, "cpus": 1, "memory_mib": 256, "volumes": 0}
    assert api.send("other", "GET", "/v1/me")[2]["used"]["boxes"] == 0
    config = api.send("acme", "GET", "/v1/config")[2]
    assert {name: value for name, value in config["quotas"].items() if value is not None} == {"volumes": 4}


def test_an_administrator_lists_and_removes_quotas(api: Api) -> None:
    api.send("root", "PUT", "/v1/admin/quotas/acme", {"boxes": 3})
    api.send("root", "PUT", "/v1/admin/quotas/acme", {"cpus": 8})
    [listed] = api.send("root", "GET", "/v1/admin/quotas")[2]["quotas"]
    assert listed == api.send("root", "GET", "/v1/admin/quotas/acme")[2]
    assert (listed["prefix"], listed["own"]["cpus"], listed["own"]["boxes"]) == ("acme", 8, None)
    for _ in range(2):
        assert api.send("root", "DELETE", "/v1/admin/quotas/acme")[0] == 204
    assert api.send("root", "GET", "/v1/admin/quotas")[2] == {"quotas": []}


@pytest.mark.parametrize("body", [{"boxes": -1}, {"boxes": "3"}, {"boxes": 1.5}, {"cpus": 2**60}, []])
def test_a_bad_quota_is_refused_and_changes_nothing(api: Api, body: Any) -> None:
    api.send("root", "PUT", "/v1/admin/quotas/acme", {"boxes": 3})
    assert api.send("root", "PUT", "/v1/admin/quotas/acme", body)[0] == 400
    assert api.send("root", "GET", "/v1/admin/quotas/acme")[2]["own"]["boxes"] == 3
