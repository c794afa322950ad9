"""The worker's certificate, with which it serves gRPC: given by the operator, or issued by the coordinator to a worker
that joins with a token, and renewed from then on."""

from __future__ import annotations

import logging
import random
import ssl
import threading
from datetime import UTC, datetime
from pathlib import Path

import grpc

from ... import signatures
from ...errors import BoxliteError, InvalidArgumentError, UpstreamUnavailableError
from ...tls import certificates, files
from .coordinator import CoordinatorClient, split_url
from .identity import Identity

DIRECTORY = "tls"  # in the worker's home: what a coordinator has issued
LOOK_SECONDS = 600.0  # between two looks whether it is time for the next certificate
LONGEST_PAUSE = 15.0  # seconds between attempts to join

log = logging.getLogger(__name__)


class Joining:
    """Has the coordinator at `url` issue this worker's certificate, and keeps it in `home`.

    `pin`: the SHA-256 of the one authority to trust at first, from the join token; None for a worker that has joined
    before. What the coordinator sends along with the certificate is trusted from then on, so that authorities can be
    replaced.
    """

    def __init__(self, url: str, api_key: str | None, pin: str | None, identity: Identity, home: Path) -> None:
        if split_url(url).scheme != "https":
            raise InvalidArgumentError(
                f"a worker joins over https, and {url} is another address; to do without TLS, remove the directory "
                f"{home / DIRECTORY}, and give an API key in place of a join token"
            )
        self._url = url
        self._api_key = api_key
        self._pin = pin
        self._identity = identity
        self.files = joined_files(home)

    def obtain(self, stopping: threading.Event, rng: random.Random) -> bool:
        """Get a certificate, unless there is a valid one; try until the coordinator issues it. False: `stopping` is set
        before."""
        while self.is_due():
            try:
                self.renew()
            except BoxliteError as exc:
                if self._is_valid():
                    log.warning("the certificate cannot be renewed now: %s", exc)
                    return True
                log.warning("no certificate yet, trying again: %s", exc)
                if stopping.wait(rng.uniform(1, LONGEST_PAUSE)):
                    return False
        return True

    def keep(self, stopping: threading.Event) -> None:
        """Renew the certificate whenever a third of its lifetime is left. The body of a thread."""
        while not stopping.wait(LOOK_SECONDS):
            try:
                if self.is_due():
                    self.renew()
            except Exception as exc:  # nobody would begin this thread again
                log.warning("the certificate cannot be renewed, trying again: %s", exc)

    def is_due(self, now: datetime | None = None) -> bool:
        """Whether it is time for a certificate: there is none of this worker and this authority, or it ends soon."""
        try:
            chain = files.content(self.files.certificate)
            begin, end = certificates.lifetime(chain)
            is_ours = certificates.is_worker(chain, self._identity.id) and self._knows_authority()
        except InvalidArgumentError:
            return True
        return not is_ours or (now or datetime.now(UTC)) >= begin + (end - begin) * 2 / 3

    def renew(self) -> None:
        """Get a certificate now. Raises `BoxliteError`."""
        authorities = self._authorities()
        client = CoordinatorClient(self._url, self._api_key, lambda: files.client_context(authorities))
        asked = certificates.request()
        csr = asked.certificate.decode()
        signature = signatures.of_certificate_request(self._identity.secret, self._identity.id, csr)
        status, answer = client.certify(self._identity.id, csr, signature)
        if status != 200:
            raise UpstreamUnavailableError(f"the coordinator issues no certificate ({status}): {_message(answer)}")
        issued, trusted = str(answer.get("certificate")).encode(), str(answer.get("authorities")).encode()
        certificates.check_authority(trusted)
        if not certificates.is_worker(issued, self._identity.id):
            raise UpstreamUnavailableError("the coordinator has issued a certificate for another worker")
        assert self.files.ca is not None
        files.write(self.files.ca, trusted, is_secret=False)
        files.write(self.files.certificate, asked.key + issued, is_secret=True)
        log.info("the coordinator has issued a certificate, valid until %s", certificates.lifetime(issued)[1])

    def _is_valid(self) -> bool:
        try:
            files.read(self.files)
        except InvalidArgumentError:
            return False
        return self._knows_authority()

    def _knows_authority(self) -> bool:
        """Whether the authority of the token is among those that were trusted before. Raises InvalidArgumentError."""
        assert self.files.ca is not None
        known = files.content(self.files.ca)
        return self._pin is None or self._pin in certificates.fingerprints(known)

    def _authorities(self) -> bytes:
        """The authorities (PEM) to trust: those of before, else the one of the token. Raises `BoxliteError`."""
        assert self.files.ca is not None
        if self._pin is None or (self.files.ca.exists() and self._knows_authority()):
            return files.content(self.files.ca)
        client = CoordinatorClient(self._url, None, _trusting_anybody)
        status, answer = client.authorities()
        found = certificates.fingerprints(str(answer.get("certificates", "")).encode())
        if status != 200 or self._pin not in found:
            raise UpstreamUnavailableError(
                f"the server at {self._url} is not the coordinator of the join token: it does not have the authority "
                f"{self._pin[:16]}… ({status})"
            )
        return found[self._pin]


def joined_files(home: Path) -> files.Files:
    """Where a worker that has joined keeps its certificate, with its key in the same file, and the authorities."""
    directory = home / DIRECTORY
    return files.Files(directory / "worker.pem", directory / "worker.pem", directory / "authorities.pem")


def watched(found: files.Files, identity: Identity) -> files.Watched:
    """The certificate in these files. Raises InvalidArgumentError, also for a certificate of another worker."""

    def check(material: files.Material) -> None:
        if not certificates.is_worker(material.chain, identity.id):
            raise InvalidArgumentError(
                f"it is not for this worker; issue one with `boxlite-server certs issue --worker {identity.id}`"
            )

    return files.Watched(found, check)


def server_credentials(tls: files.Watched) -> grpc.ServerCredentials:
    """The settings of a gRPC server with the certificate that `tls` has when a connection comes. It takes connections
    of clients with a certificate for clients, which those of workers are not."""
    given = tls.current()

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal given
        if (present := tls.current()) is given:
            return None
        given = present
        return _configuration(present)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(given),
        renewed,  # type: ignore[arg-type]  # None is fine: nothing has changed
        require_client_authentication=True,
    )


def _configuration(material: files.Material) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(material.key, material.chain)], material.ca)


def _trusting_anybody() -> ssl.SSLContext:
    """For what is checked by other means."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _message(answer: dict[str, object]) -> str:
    error = answer.get("error")
    return str(error.get("message")) if isinstance(error, dict) else "no reason given"
