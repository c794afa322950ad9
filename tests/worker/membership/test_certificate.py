"""How a worker joins: whom it trusts, when it renews its certificate, and what it takes for one."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support import certs
from support.cluster import wait_until

from boxlite_server import signatures
from boxlite_server.errors import BoxliteError, InvalidArgumentError
from boxlite_server.tls import certificates, files
from boxlite_server.worker.membership import certificate
from boxlite_server.worker.membership.certificate import Joining, watched
from boxlite_server.worker.membership.identity import Identity

CA, OTHER_CA = certificates.new_ca("one"), certificates.new_ca("one")
KEY = "the key of workers"


def pin(ca: certificates.Issued) -> str:
    return next(iter(certificates.fingerprints(ca.certificate)))


class Coordinator:
    """Answers as a coordinator does, over HTTPS. What it is about to do wrong is set by a test."""

    def __init__(self, directory: Path) -> None:
        self.authorities = CA.certificate
        self.days = 90.0
        self.for_id: str | None = None  # the id to name in certificates; None: the one that asks
        self.status = 200
        self.keys: list[str | None] = []  # the credential of each request
        self.requests: list[dict[str, Any]] = []
        self._tls = files.Watched(certs.written(directory, "coordinator", certs.coordinator(CA)))
        coordinator = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                coordinator.keys.append(self.headers["Authorization"])
                self.answer(200, {"certificates": coordinator.authorities.decode()})

            def do_POST(self) -> None:
                coordinator.keys.append(self.headers["Authorization"])
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                coordinator.requests.append(body)
                asking = coordinator.for_id or self.path.split("/")[-2]
                issued = certificates.sign_worker(CA, body["csr"].encode(), asking, coordinator.days)
                if coordinator.status != 200:
                    self.answer(coordinator.status, {"error": {"message": "so it was"}})
                else:
                    self.answer(200, {"certificate": issued.decode(), "authorities": coordinator.authorities.decode()})

            def answer(self, status: int, body: dict[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.socket = self._tls.current().server.wrap_socket(self._server.socket, server_side=True)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that do not trust it
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    coordinator = Coordinator(tmp_path)
    yield coordinator
    coordinator.close()


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    return Identity.load(tmp_path, None, random.Random())


def joining(coordinator: Coordinator, identity: Identity, pin: str | None) -> Joining:
    return Joining(coordinator.url, KEY, pin, identity, identity.path.parent)


def of_file(each: Joining) -> bytes:
    return each.files.certificate.read_bytes()


def test_the_key_goes_to_nobody_before_the_authority_is_known(coordinator: Coordinator, identity: Identity) -> None:
    coordinator.authorities = OTHER_CA.certificate + CA.certificate
    misled = joining(coordinator, identity, "0" * 64)
    with pytest.raises(BoxliteError, match="not the coordinator of the join token"):
        misled.renew()
    # The authority is known, and has not issued the certificate of this server.
    with pytest.raises(BoxliteError, match="does not answer"):
        joining(coordinator, identity, pin(OTHER_CA)).renew()
    assert coordinator.keys == [None, None]
    assert not misled.files.certificate.exists()


def test_a_worker_joins_and_trusts_what_it_is_told_from_then_on(coordinator: Coordinator, identity: Identity) -> None:
    first = joining(coordinator, identity, pin(CA))
    assert first.is_due()
    assert first.obtain(threading.Event(), random.Random())
    assert coordinator.keys == [None, f"Bearer {KEY}"]
    csr, signature = coordinator.requests[0]["csr"], coordinator.requests[0]["signature"]
    assert signature == signatures.of_certificate_request(identity.secret, identity.id, csr)
    assert first.files.certificate.stat().st_mode & 0o777 == 0o600
    material = watched(first.files, identity).current()
    assert material.ca == CA.certificate
    assert not first.is_due()
    coordinator.authorities = CA.certificate + OTHER_CA.certificate
    again = joining(coordinator, identity, None)  # started without the token
    again.renew()
    assert len(coordinator.keys) == 3  # nothing was asked of an unknown server
    assert watched(again.files, identity).current().ca == CA.certificate + OTHER_CA.certificate


def test_it_is_renewed_when_a_third_of_its_lifetime_is_left(coordinator: Coordinator, identity: Identity) -> None:
    each = joining(coordinator, identity, pin(CA))
    each.renew()
    now, before = datetime.now(UTC), of_file(each)
    assert not each.is_due(now + timedelta(days=59))
    assert each.is_due(now + timedelta(days=61))
    clock = [0.0]
    seen = files.Watched(each.files, monotonic=lambda: clock[0])
    held = seen.current()
    each.renew()
    clock[0] += files.LOOK_SECONDS
    assert of_file(each) != before
    assert seen.current().chain != held.chain


def test_a_token_of_another_authority_brings_a_new_certificate(coordinator: Coordinator, identity: Identity) -> None:
    joining(coordinator, identity, pin(CA)).renew()
    assert not joining(coordinator, identity, None).is_due()
    assert not joining(coordinator, identity, pin(CA)).is_due()
    assert joining(coordinator, identity, pin(OTHER_CA)).is_due()


@pytest.mark.parametrize("damage", [b"", b"-----BEGIN CERTIFICATE-----\n"])
def test_a_damaged_file_is_replaced(coordinator: Coordinator, identity: Identity, damage: bytes) -> None:
    each = joining(coordinator, identity, pin(CA))
    each.renew()
    each.files.certificate.write_bytes(damage)
    assert each.is_due()
    each.obtain(threading.Event(), random.Random())
    watched(each.files, identity)


def test_a_worker_starts_with_a_valid_certificate_that_cannot_be_renewed(
    coordinator: Coordinator, identity: Identity
) -> None:
    each = joining(coordinator, identity, pin(CA))
    coordinator.days = 1 / 1440  # most of its lifetime is over, since it begins a little before its issue
    each.renew()
    coordinator.status = 503
    assert each.is_due()
    assert each.obtain(threading.Event(), random.Random())
    assert len(coordinator.requests) == 2


def test_it_is_kept_valid_while_the_worker_runs(
    coordinator: Coordinator, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate, "LOOK_SECONDS", 0.01)
    each, stopping = joining(coordinator, identity, pin(CA)), threading.Event()
    coordinator.days, coordinator.status = 1 / 1440, 503
    thread = threading.Thread(target=each.keep, args=[stopping])
    thread.start()
    try:
        wait_until(lambda: len(coordinator.requests) > 2, "it is tried again after a failure")
        coordinator.status = 200
        wait_until(each.files.certificate.exists, "there is a certificate")
        before = of_file(each)
        wait_until(lambda: of_file(each) != before, "there is the next one")
    finally:
        stopping.set()
        thread.join(60)


def test_a_worker_that_is_stopped_waits_for_no_certificate(coordinator: Coordinator, identity: Identity) -> None:
    coordinator.status = 403
    stopping = threading.Event()
    stopping.set()
    assert not joining(coordinator, identity, pin(CA)).obtain(stopping, random.Random())


def test_a_certificate_of_another_worker_is_not_taken(coordinator: Coordinator, identity: Identity) -> None:
    coordinator.for_id = "AnotherOne01"
    each = joining(coordinator, identity, pin(CA))
    with pytest.raises(BoxliteError, match="for another worker"):
        each.renew()
    assert not each.files.certificate.exists()


def test_a_worker_does_not_show_itself_as_another_one(tmp_path: Path, identity: Identity) -> None:
    mine = certs.written(tmp_path, "mine", certs.worker(CA, identity.id), CA)
    watched(mine, identity)
    for issued in (certs.worker(CA, "AnotherOne01"), certs.coordinator(CA)):
        with pytest.raises(InvalidArgumentError, match=f"issue one with .* --worker {identity.id}"):
            watched(certs.written(tmp_path, "other", issued, CA), identity)


def test_no_worker_joins_over_plain_http(identity: Identity) -> None:
    with pytest.raises(InvalidArgumentError, match="joins over https"):
        Joining("http://127.0.0.1:1", KEY, pin(CA), identity, identity.path.parent)
