"""Certificates in files, for tests."""

from __future__ import annotations

from pathlib import Path

from boxlite_server.tls import certificates
from boxlite_server.tls.certificates import Issued
from boxlite_server.tls.files import Files

MINUTE_AGO = -1 / 1440  # days


def written(directory: Path, name: str, issued: Issued, ca: Issued | None = None) -> Files:
    """Write a certificate and its key, and with `ca` the authority to trust; what was there is replaced in place."""
    files = Files(directory / f"{name}.crt", directory / f"{name}.key", directory / f"{name}-ca.crt" if ca else None)
    files.certificate.write_bytes(issued.certificate)
    files.key.write_bytes(issued.key)
    if ca and files.ca:
        files.ca.write_bytes(ca.certificate)
    return files


def coordinator(ca: Issued, days: float = 1) -> Issued:
    return certificates.issue_coordinator(ca, ["127.0.0.1"], days)


def worker(ca: Issued, worker_id: str, days: float = 1) -> Issued:
    return certificates.issue_worker(ca, worker_id, days)
