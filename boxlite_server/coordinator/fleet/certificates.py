"""The certificates of workers, issued by a coordinator that has the key of the authority."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ... import errors
from .registry import Fleet

if TYPE_CHECKING:
    from ...tls.files import Watched


class Issued(NamedTuple):
    """The certificate of a worker, and those of the authorities to trust, in PEM."""

    certificate: str
    authorities: str


class Certificates:
    """Issues certificates to the workers of `fleet` with the authority of `tls`, whose key is in the file `key`."""

    def __init__(self, fleet: Fleet, tls: Watched | None, key: Path | None) -> None:
        self._fleet = fleet
        self._tls = tls
        self._key = key

    def authorities(self) -> str:
        """The authorities (PEM) of this cluster; "" for a cluster without TLS between coordinator and workers."""
        return (self._trusted() or b"").decode()

    async def issue(self, worker_id: str, csr: str, signature: str) -> Issued:
        """Issue a certificate for the key of `csr` (PEM) to the worker with that id. `signature`: see
        `signatures.of_certificate_request`.

        Raises NotFoundError for a cluster without TLS, UnsupportedError without the authority's key,
        PermissionDeniedError where the id is another worker's, and InvalidArgumentError for a malformed request.
        """
        authorities = self._trusted()
        if authorities is None:
            raise errors.NotFoundError("this cluster has no TLS between coordinator and workers (--tls-ca)")
        if self._key is None:
            raise errors.UnsupportedError(
                "this coordinator issues no certificates, since it has no --tls-ca-key; "
                f"issue one with `boxlite-server certs issue --worker {worker_id}`"
            )
        await self._fleet.check_request(worker_id, csr, signature)
        certificate = await asyncio.to_thread(_signed, self._key, authorities, csr, worker_id)
        return Issued(certificate.decode(), authorities.decode())

    def _trusted(self) -> bytes | None:
        return self._tls.current().ca if self._tls else None


def _signed(key: Path, authorities: bytes, csr: str, worker_id: str) -> bytes:
    from ...tls import certificates, files

    ca = certificates.Issued(authorities, files.content(key))
    return certificates.sign_worker(ca, csr.encode(), worker_id)
