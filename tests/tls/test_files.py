"""Certificates in files: what is refused, and what a change brings."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from support import certs

from boxlite_server.errors import InvalidArgumentError
from boxlite_server.tls import certificates, files
from boxlite_server.tls.certificates import Issued

CA = certificates.new_ca("one")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        self.now += files.LOOK_SECONDS
        return self.now


def encrypted(issued: Issued) -> Issued:
    key = serialization.load_pem_private_key(issued.key, password=None)
    secret = serialization.BestAvailableEncryption(b"secret")
    form = serialization.PrivateFormat.PKCS8
    return issued._replace(key=key.private_bytes(serialization.Encoding.PEM, form, secret))


@pytest.mark.parametrize(
    ("issued", "ca", "reason"),
    [
        (certs.coordinator(CA)._replace(key=certs.coordinator(CA).key), CA, "are not a certificate and its key"),
        (encrypted(certs.coordinator(CA)), CA, "without a password"),
        (Issued(b"", b""), CA, "are not a certificate and its key"),
        (certs.coordinator(CA, certs.MINUTE_AGO), CA, "is valid from"),
        (certs.coordinator(CA), certs.coordinator(CA), "not one of an authority"),
        (certs.coordinator(CA), Issued(b"-----BEGIN CERTIFICATE-----", b""), "no certificates of authorities"),
    ],
    ids=["another key", "encrypted key", "empty", "expired", "no authority", "damaged authority"],
)
def test_what_cannot_be_used_is_refused(tmp_path: Path, issued: Issued, ca: Issued, reason: str) -> None:
    with pytest.raises(InvalidArgumentError, match=reason):
        files.Watched(certs.written(tmp_path, "c", issued, ca))


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"cannot read .*none"):
        files.Watched(files.Files(tmp_path / "none", tmp_path / "none"))


def test_a_renewed_certificate_is_taken_when_its_key_is_there_too(tmp_path: Path) -> None:
    first, second = certs.coordinator(CA), certs.coordinator(CA)
    found = certs.written(tmp_path, "c", first, CA)
    watched = files.Watched(found, monotonic=Clock())
    before = watched.current()
    assert watched.current() is before
    found.certificate.write_bytes(second.certificate)
    assert watched.current() is before
    found.key.write_bytes(second.key)
    after = watched.current()
    assert (after.chain, after.key) == second
    assert watched.current() is after


@pytest.mark.parametrize("name", ["c.crt", "c.key", "c-ca.crt"])
def test_files_that_vanish_change_nothing_until_they_are_back(tmp_path: Path, name: str) -> None:
    found = certs.written(tmp_path, "c", certs.coordinator(CA), CA)
    watched = files.Watched(found, monotonic=Clock())
    before = watched.current()
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    assert watched.current() is before
    (tmp_path / name).write_bytes(content)
    assert watched.current().chain == before.chain


def test_authorities_can_be_added_while_all_runs(tmp_path: Path) -> None:
    found = certs.written(tmp_path, "c", certs.coordinator(CA), CA)
    watched = files.Watched(found, monotonic=Clock())
    both = CA.certificate + certificates.new_ca("two").certificate
    assert found.ca
    found.ca.write_bytes(both)
    assert watched.current().ca == both
    assert len(certificates.fingerprints(both)) == 2


def test_a_certificate_that_ends_soon_is_named_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    watched = files.Watched(certs.written(tmp_path, "c", certs.coordinator(CA, 0.0001)), monotonic=Clock())
    for _ in range(3):
        watched.current()
    assert caplog.text.count("renew it") == 1
    certs.written(tmp_path, "c", certs.coordinator(CA, 90))
    for _ in range(3):
        watched.current()
    assert caplog.text.count("renew it") == 1


def test_secrets_are_for_their_owner_alone(tmp_path: Path) -> None:
    for secret, mode in ((True, 0o600), (False, 0o644)):
        for _ in range(2):
            files.write(tmp_path / "new" / str(mode), b"x", is_secret=secret)
        assert (tmp_path / "new" / str(mode)).stat().st_mode & 0o777 == mode
    assert len(list((tmp_path / "new").iterdir())) == 2
    with pytest.raises(InvalidArgumentError, match="cannot write"):
        files.write(tmp_path / "new" / "384" / "x", b"", is_secret=True)
