"""Certificates in files, which are read again when they change, so that nobody restarts a process to renew them."""

from __future__ import annotations

import logging
import os
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ..errors import InvalidArgumentError
from . import certificates

LOOK_SECONDS = 1.0  # between two looks at the files
WARNING = timedelta(days=14)  # before the end of a certificate, or a tenth of its lifetime where that is less

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Files:
    """Where the parts are. `key` may be the file of the certificate. Without `ca` there is no mutual TLS."""

    certificate: Path
    key: Path
    ca: Path | None = None

    @property
    def all(self) -> tuple[Path, ...]:
        return (self.certificate, self.key, *([self.ca] if self.ca else []))


@dataclass(frozen=True)
class Material:
    """What the files hold, in PEM."""

    chain: bytes  # the certificate, and those of intermediate authorities
    key: bytes
    ca: bytes | None
    server: ssl.SSLContext  # for HTTPS with this certificate


class Watched:
    """The content of `files`, from any thread. Raises InvalidArgumentError when they cannot be used at first, or if
    `check`, which is called with what was read, raises it. Later, content that cannot be used is left out and logged,
    and the former content stays: the certificate and its key are two files, which change one after the other."""

    def __init__(
        self,
        files: Files,
        check: Callable[[Material], None] = lambda _: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._files = files
        self._check = check
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._state = _state(files)
        self._seen = monotonic()
        self._material = self._read()
        self._warn_at = _warning_of(self._material)

    def current(self) -> Material:
        """What the files hold; another object when they have changed."""
        now = self._monotonic()
        with self._lock:
            if now - self._seen >= LOOK_SECONDS:
                self._seen = now
                self._look()
            return self._material

    def _look(self) -> None:
        if (now := datetime.now(UTC)) >= self._warn_at:
            self._warn_at = now + timedelta(days=1)
            end = certificates.lifetime(self._material.chain)[1]
            log.warning("the certificate in %s ends at %s; renew it", self._files.certificate, end)
        state = _state(self._files)
        if state == self._state:
            return
        try:
            material = self._read()
        except Exception as exc:  # whatever is in the files, connections go on
            log.warning("the former certificate stays in use: %s", exc)
        else:
            if state != _state(self._files):
                return  # changed meanwhile: what was read may be parts of two certificates
            self._material, self._warn_at = material, _warning_of(material)
            until = certificates.lifetime(material.chain)[1]
            log.info("the certificate in %s was renewed; it is valid until %s", self._files.certificate, until)
        self._state = state

    def _read(self) -> Material:
        material = read(self._files)
        try:
            self._check(material)
        except InvalidArgumentError as exc:
            raise InvalidArgumentError(f"{self._files.certificate} cannot be used: {exc.message}") from exc
        return material


def read(files: Files) -> Material:
    """Read files and check that they belong together and are valid now. Raises InvalidArgumentError."""
    chain, key = content(files.certificate), content(files.key)
    ca = content(files.ca) if files.ca else None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(files.certificate, files.key, password=_no_password)
    except (OSError, ValueError) as exc:  # ssl.SSLError is an OSError
        raise InvalidArgumentError(
            f"{files.certificate} and {files.key} are not a certificate and its key in PEM: {_reason(exc)}"
        ) from exc
    begin, end = certificates.lifetime(chain)
    if not begin <= datetime.now(UTC) < end:
        raise InvalidArgumentError(f"the certificate in {files.certificate} is valid from {begin} to {end} only")
    if files.ca:
        try:
            certificates.check_authority(ca or b"")
        except InvalidArgumentError as exc:
            raise InvalidArgumentError(f"{files.ca} cannot be used: {exc.message}") from exc
    return Material(chain, key, ca, context)


def client_context(ca: Path | bytes) -> ssl.SSLContext:
    """The settings of a client that trusts these authorities, a file or PEM, and no others. Raises
    InvalidArgumentError."""
    pem = content(ca) if isinstance(ca, Path) else ca
    try:
        return ssl.create_default_context(cadata=pem.decode())
    except (OSError, ValueError) as exc:
        source = f"{ca} has" if isinstance(ca, Path) else "there are"
        raise InvalidArgumentError(f"{source} no certificates of authorities in PEM: {_reason(exc)}") from exc


def content(file: Path) -> bytes:
    """The content of a file. Raises InvalidArgumentError."""
    try:
        return file.read_bytes()
    except OSError as exc:
        raise InvalidArgumentError(f"cannot read {file}: {exc.strerror}") from exc


def write(file: Path, data: bytes, *, is_secret: bool) -> None:
    """Replace a file atomically; one with a secret is for its owner alone. Raises InvalidArgumentError."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if is_secret else 0o644)
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())
        temporary.replace(file)
    except OSError as exc:
        raise InvalidArgumentError(f"cannot write {file}: {exc.strerror}") from exc


def _warning_of(material: Material) -> datetime:
    begin, end = certificates.lifetime(material.chain)
    return end - min(WARNING, (end - begin) / 10)


def _state(files: Files) -> tuple[object, ...]:
    found: list[object] = []
    for file in files.all:
        try:
            status = file.stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_ino, status.st_mtime_ns, status.st_size))
    return tuple(found)


def _no_password() -> bytes:
    raise ValueError("the key is encrypted; give a key without a password")


def _reason(exc: Exception) -> str:
    return getattr(exc, "strerror", None) or str(exc)
