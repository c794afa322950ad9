"""Every operation of openapi.yaml, HTTP and WebSocket, with every kind of credential: who gets in, and who does not.

The cases are made from the spec, so that a new operation is among them.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from support.asgi import ask, handshake
from support.keys import new_key
from support.requests import SPEC, Request, requests
from support.rows import WORKER

from boxlite_server.coordinator.core import Core
from boxlite_server.coordinator.http.app import create_app
from boxlite_server.coordinator.http.operations import Operations
from boxlite_server.coordinator.tenants import scopes

ANY_KEY = {"getCurrentPrincipal", "createTicket"}  # operations for which any credential is enough
FORM = b"grant_type=client_credentials&client_id=me&client_secret="

_numbers = itertools.count()


REQUESTS = list(requests())
each_request = pytest.mark.parametrize("request_", REQUESTS, ids=[f"{each.id}-{each.kind}" for each in REQUESTS])


@dataclass
class Site:
    """A coordinator, and credentials of all kinds."""

    runner: asyncio.Runner
    core: Core
    app: Any
    ended: dict[str, str] = field(default_factory=dict)  # keys that open nothing any more
    keys: dict[str, str] = field(default_factory=dict)  # by what they lack, or by whose they are

    def send(self, request: Request, prefix: str, credential: str | None) -> int:
        """The status of the answer. Each request has an address of its own, so that none is slowed."""
        path = request.path.replace("{prefix}", prefix)
        headers = {} if credential is None else {"authorization": f"Bearer {credential}"}
        client = (f"10.0.{next(_numbers) // 250}.{next(_numbers) % 250}", 1)
        if request.kind == "websocket":
            return self.runner.run(handshake(self.app, path, headers=headers, client=client))
        return self.runner.run(ask(self.app, request.method, path, headers=headers, client=client))[0]

    def new_key(self, **fields: Any) -> str:
        return self.runner.run(new_key(self.core.store, **fields))[1]

    def token(self, key: str) -> str:
        form = FORM + key.encode()
        headers = {"content-type": "application/x-www-form-urlencoded", "content-length": str(len(form))}
        status, _, body = self.runner.run(ask(self.app, "POST", "/v1/oauth/tokens", form, headers=headers))
        assert status == 200, body
        return str(json.loads(body)["access_token"])

    def lacking(self, scope: str) -> str:
        """A key of acme that has every scope of clients but this one."""
        if scope not in self.keys:
            self.keys[scope] = self.new_key(scopes=tuple(each for each in scopes.CLIENT if each != scope))
        return self.keys[scope]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with asyncio.Runner() as runner:
        core = runner.run(Core.open(tmp_path_factory.mktemp("keys") / "c.db", None))
        runner.run(core.store.put_worker(WORKER))
        site = Site(runner, core, create_app(core))
        now = time.time()
        site.keys["acme"] = site.new_key()
        site.keys["other"] = site.new_key(prefix="other")
        site.keys["worker"] = site.new_key(prefix="", scopes=(scopes.WORKER,))
        site.keys["token"] = site.token(site.keys["acme"])
        site.ended["expired"] = site.new_key(expires_at=now - 1)
        site.ended["revoked"] = site.new_key(revoked_at=now - 1)
        site.ended["rotated"] = site.new_key()
        runner.run(core.store.rotate_key(site.ended["rotated"].split("_")[1], "0" * 64, now - 1))
        site.ended["wrong"] = site.keys["acme"][:-1] + ("A" if site.keys["acme"][-1] != "A" else "B")
        site.ended["no key at all"] = "secret"
        site.ended["of the worker's gRPC"] = WORKER.secret
        site.ended["wrong token"] = site.keys["token"][:-1] + ("0" if site.keys["token"][-1] != "0" else "1")
        yield site
        runner.run(core.close())


def test_every_operation_has_a_scope_and_every_scope_is_described() -> None:
    Operations(SPEC)  # raises ValueError otherwise
    described = set(SPEC["components"]["securitySchemes"]["KeyScopes"]["flows"]["clientCredentials"]["scopes"])
    used = {request.scope for request in REQUESTS if request.scope}
    assert used == described == {*scopes.CLIENT, scopes.WORKER}
    assert {request.id for request in REQUESTS if request.scope == ""} == ANY_KEY
    of_workers = {"registerWorker", "heartbeat", "issueCertificate"}
    assert {request.id for request in REQUESTS if request.scope == scopes.WORKER} == of_workers
    assert scopes.WORKER not in scopes.CLIENT
    assert sum(request.kind == "websocket" for request in REQUESTS) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"security": None},
        {"security": [{"BearerAuth": []}]},
        {"security": [{"KeyScopes": ["box:read", "box:write"]}]},
    ],
)
def test_an_operation_without_one_scope_is_not_served(change: dict[str, Any]) -> None:
    spec = json.loads(json.dumps(SPEC))
    spec["paths"]["/v1/{prefix}/volumes"]["post"] |= change
    with pytest.raises(ValueError, match=re.escape("post /v1/{prefix}/volumes")):
        Operations(spec)


@pytest.mark.parametrize("path", ["/v1/{prefix}/secrets", "/v1/admin/metrics"])
def test_a_path_whose_prefix_the_edge_would_not_see_is_not_served(path: str) -> None:
    spec = json.loads(json.dumps(SPEC))
    spec["paths"][path] = spec["paths"]["/v1/{prefix}/volumes"]
    with pytest.raises(ValueError, match=re.escape(path)):
        Operations(spec)


@each_request
def test_without_a_valid_credential(site: Site, request_: Request) -> None:
    for credential in (None, *site.ended.values()):
        status = site.send(request_, "acme", credential)
        if request_.scope is None:
            assert status not in (401, 403, 404)
        else:
            assert status == 401


@each_request
def test_with_the_right_key(site: Site, request_: Request) -> None:
    credential = site.keys["worker" if request_.scope == scopes.WORKER else "acme"]
    for prefix in ("acme", "default"):
        assert site.send(request_, prefix, credential) not in (401, 403)


@each_request
def test_with_a_token(site: Site, request_: Request) -> None:
    status = site.send(request_, "acme", site.keys["token"])
    assert (status == 403) == (request_.scope == scopes.WORKER)
    assert status != 401


@each_request
def test_with_the_key_of_another_tenant(site: Site, request_: Request) -> None:
    status = site.send(request_, "acme", site.keys["other"])
    if request_.is_of_tenant:
        assert status == 404
    elif request_.scope == scopes.WORKER:
        assert status == 403
    else:
        assert status not in (401, 403)


@each_request
def test_without_the_scope(site: Site, request_: Request) -> None:
    status = site.send(request_, "acme", site.lacking(request_.scope or ""))
    assert (status == 403) == bool(request_.scope)


@each_request
def test_with_the_key_of_a_worker(site: Site, request_: Request) -> None:
    status = site.send(request_, "default", site.keys["worker"])
    assert (status == 403) == (request_.scope not in (None, "", scopes.WORKER))
    assert status != 401


def test_refused_requests_are_counted(site: Site) -> None:
    def counted() -> dict[str, int]:
        headers = {"authorization": f"Bearer {site.keys['acme']}"}
        return dict(
            json.loads(site.runner.run(ask(site.app, "GET", "/v1/admin/coordinator/metrics", headers=headers))[2])
        )

    before = counted()["refused_requests_total"]
    request = next(each for each in REQUESTS if each.id == "listBoxes")
    credentials = [None, site.ended["wrong"], site.ended["wrong token"], site.ended["revoked"], site.ended["expired"]]
    for credential in (*credentials, site.keys["worker"], site.keys["acme"]):
        site.send(request, "default", credential)
    after = counted()["refused_requests_total"]
    more = {reason: after[reason] - before[reason] for reason in after}
    assert more == {"missing": 1, "wrong": 2, "ended": 2, "forbidden": 1}


# ---- ways around ----

SEALED = [
    ("GET", "/v1//acme/boxes"),
    ("GET", "/v1/acme/boxes/"),
    ("GET", "/v1/acme/boxes/web\n"),
    ("GET", "/v1/acme/boxes/web/logs\n"),
    ("POST", "/v1/acme/boxes/web/start\n"),
    ("GET", "/v1/acme/boxes/web/../../other/boxes"),
    ("GET", "/v1/./acme/boxes"),
    ("GET", "//v1/acme/boxes"),
    ("GET", "/v1/admin/workers/"),
    ("GET", "/v1/admin/workers/w1/"),
    ("GET", "/V1/acme/boxes"),
    ("GET", "/v1/ACME/boxes"),
    ("HEAD", "/v1/acme/boxes"),
    ("HEAD", "/v1/admin/workers"),
    ("get", "/v1/acme/boxes"),
    ("OPTIONS", "/v1/acme/boxes"),
    ("GET", "/swagger-ui/../v1/acme/boxes"),
    ("GET", "/openapi.yaml/../v1/acme/boxes"),
    ("GET", "/v1/config/../acme/boxes"),
    ("GET", "/v1/acme/images/a/../../boxes"),
]


@pytest.mark.parametrize(("method", "path"), SEALED)
def test_no_spelling_of_a_path_leads_around_the_check(site: Site, method: str, path: str) -> None:
    poor = site.new_key(prefix="poor", scopes=("volume:read",))
    for headers in ({}, {"authorization": f"Bearer {poor}"}):
        status, _, body = site.runner.run(ask(site.app, method, path, headers=headers))
        assert status in (401, 403, 404, 405), body


def test_an_operation_that_the_edge_did_not_check_is_not_run(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """If edge and router ever disagree about a path, nothing is run."""
    request = next(each for each in REQUESTS if each.id == "listBoxes")
    assert site.send(request, "acme", site.keys["acme"]) == 200
    monkeypatch.setattr(Operations, "find", lambda *_: None)
    assert site.send(request, "acme", site.keys["acme"]) == 404
