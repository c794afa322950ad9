"""Certificates of a cluster's own authority, checked by the library that makes them and by OpenSSL."""

from __future__ import annotations

import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support import certs

from boxlite_server.cli import main
from boxlite_server.errors import InvalidArgumentError
from boxlite_server.tls import certificates

CA = certificates.new_ca("one")
WORKER_ID = "AbCdEf123456"


def verified(purpose: str, certificate: bytes, directory: Path) -> bool:
    (directory / "ca.crt").write_bytes(CA.certificate)
    (directory / "c.crt").write_bytes(certificate)
    command = ["openssl", "verify", "-x509_strict", "-CAfile", "ca.crt", "-purpose", purpose, "c.crt"]
    return subprocess.run(command, cwd=directory, capture_output=True, check=False).returncode == 0


def test_a_workers_certificate_is_for_servers_alone(tmp_path: Path) -> None:
    worker = certs.worker(CA, WORKER_ID).certificate
    assert (verified("sslserver", worker, tmp_path), verified("sslclient", worker, tmp_path)) == (True, False)
    coordinator = certs.coordinator(CA).certificate
    assert (verified("sslserver", coordinator, tmp_path), verified("sslclient", coordinator, tmp_path)) == (True, True)
    with pytest.raises(InvalidArgumentError, match="clientAuth"):
        certificates.check_coordinator(worker, CA.certificate)
    with pytest.raises(InvalidArgumentError, match="none of the authorities"):
        certificates.check_coordinator(coordinator, certificates.new_ca("one").certificate)


def test_ids_that_differ_in_case_have_different_names() -> None:
    worker = certs.worker(CA, WORKER_ID).certificate
    assert certificates.is_worker(worker, WORKER_ID)
    assert not certificates.is_worker(worker, WORKER_ID.lower())
    assert not certificates.is_worker(CA.certificate, WORKER_ID)


def test_nothing_of_a_request_counts_but_its_key() -> None:
    asked = certificates.request()
    signed = certificates.sign_worker(CA, asked.certificate, WORKER_ID)
    assert certificates.is_worker(signed, WORKER_ID)
    begin, end = certificates.lifetime(signed)
    assert end - datetime.now(UTC) <= timedelta(days=certificates.WORKER_DAYS)
    assert begin < datetime.now(UTC)


@pytest.mark.parametrize("csr", [b"", b"x", CA.certificate, certificates.request().certificate[:-80]])
def test_damaged_requests_are_refused(csr: bytes) -> None:
    with pytest.raises(InvalidArgumentError):
        certificates.sign_worker(CA, csr, WORKER_ID)


def test_a_certificate_does_not_outlive_its_authority() -> None:
    short = certificates.new_ca("short", days=1)
    assert certificates.lifetime(certs.worker(short, WORKER_ID, 90).certificate)[1] == certificates.lifetime(
        short.certificate
    )[1].replace(microsecond=0)


def test_of_several_authorities_the_one_signs_whose_key_is_given() -> None:
    both = certificates.Issued(certificates.new_ca("two").certificate + CA.certificate, CA.key)
    certificates.check_coordinator(certs.coordinator(both).certificate, CA.certificate)
    with pytest.raises(InvalidArgumentError, match="is not the ECDSA key"):
        certs.coordinator(certificates.Issued(CA.certificate, certificates.new_ca("two").key))


# ---- the command --------------------------------------------------------------------------------------------------


def run(*arguments: str) -> int:
    return main.main(["certs", *arguments])


def test_two_commands_make_all_that_a_coordinator_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = ["--dir", str(tmp_path / "certs")]
    assert run("init", *directory) == 0
    assert run("issue", "--coordinator", "boxes.example", "--coordinator", "10.0.0.1", *directory) == 0
    assert run("issue", "--worker", WORKER_ID, *directory) == 0
    made = {file.name: stat.filemode(file.stat().st_mode) for file in (tmp_path / "certs").iterdir()}
    secret, public = "-rw-------", "-rw-r--r--"
    names = ("ca", "coordinator", f"worker-{WORKER_ID}")
    assert made == {f"{name}.{kind[0]}": kind[1] for name in names for kind in (("key", secret), ("crt", public))}
    authority = (tmp_path / "certs" / "ca.crt").read_bytes()
    certificates.check_coordinator((tmp_path / "certs" / "coordinator.crt").read_bytes(), authority)
    assert "PRIVATE" not in "".join(capsys.readouterr())


def test_what_the_command_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = ["--dir", str(tmp_path)]
    assert run("issue", "--coordinator", "h", *directory) == 1
    assert "cannot read" in capsys.readouterr().err
    assert run("init", *directory) == 0
    before = (tmp_path / "ca.key").read_bytes()
    assert run("init", *directory) == 1
    assert "exists" in capsys.readouterr().err
    assert (tmp_path / "ca.key").read_bytes() == before
    assert run("issue", "--coordinator", "no host", *directory) == 1
    assert "neither a host name nor an address" in capsys.readouterr().err
    for wrong in (
        ["--worker", "../x"],
        ["--coordinator", "h", "--name", "ca"],
        ["--coordinator", "h", "--days", "0"],
        [],
    ):
        with pytest.raises(SystemExit):
            run("issue", *wrong, *directory)
