"""The coordinator's certificate towards workers, and those that it issues to them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ... import errors
from ..store import Worker
from .link import GrpcLink

if TYPE_CHECKING:
    from ...tls.files import Watched


class Issued(NamedTuple):
    """The certificate of a worker, and those of the authorities to trust, in PEM."""

    certificate: str
    authorities: str


class Certificates:
    """`tls`: the coordinator's certificate; with an authority, workers are called over mutual TLS, and without TLS
    otherwise. `ca_key`: the file with the key of that authority; without it, workers get no certificates here."""

    def __init__(self, tls: Watched | None = None, ca_key: Path | None = None) -> None:
        self._tls = tls if tls and tls.current().ca else None
        self._ca_key = ca_key

    @property
    def encrypt(self) -> bool:
        """Whether calls to workers are encrypted."""
        return self._tls is not None

    def connect(self, worker: Worker) -> GrpcLink:
        """Make a link to a worker. Raises UpstreamUnavailableError, InvalidArgumentError."""
        return GrpcLink(worker, self._tls)

    def authorities(self) -> str:
        """The authorities (PEM) of this cluster; "" where calls to workers are not encrypted."""
        return (self._trusted() or b"").decode()

    async def issue(self, worker_id: str, csr: str) -> Issued:
        """Issue a certificate for the key of `csr` (PEM) to the worker with that id.

        Raises NotFoundError where calls to workers are not encrypted, UnsupportedError without the authority's key, and
        InvalidArgumentError for a malformed request.
        """
        authorities = self._trusted()
        if authorities is None:
            raise errors.NotFoundError("this cluster has no TLS between coordinator and workers (--tls-ca)")
        if self._ca_key is None:
            raise errors.UnsupportedError(
                "this coordinator issues no certificates, since it has no --tls-ca-key; "
                f"issue one with `boxlite-server certs issue --worker {worker_id}`"
            )
        certificate = await asyncio.to_thread(_signed, self._ca_key, authorities, csr, worker_id)
        return Issued(certificate.decode(), authorities.decode())

    def _trusted(self) -> bytes | None:
        return self._tls.current().ca if self._tls else None


def _signed(key: Path, authorities: bytes, csr: str, worker_id: str) -> bytes:
    from ...tls import certificates, files

    ca = certificates.Issued(authorities, files.content(key))
    return certificates.sign_worker(ca, csr.encode(), worker_id)
