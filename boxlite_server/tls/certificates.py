"""Certificates of a cluster's own authority (CA), with ECDSA keys on P-256, in PEM.

The extended key usage says which role a certificate is for. A coordinator serves clients and calls workers, so its
certificate is for servers and clients. A worker's is for servers alone: another worker refuses it in the handshake.
What a worker's certificate names is the worker's id and no address, so that it passes for that worker alone, wherever
it runs, and never for a coordinator.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import ssl
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..errors import InvalidArgumentError
from ..ids import worker_host

CA_DAYS = 3650
COORDINATOR_DAYS = 365  # until somebody issues the next one
WORKER_DAYS = 90  # a worker that has joined renews its certificate by itself

_CLOCK_SKEW = timedelta(minutes=5)  # by which the clock of whoever checks a certificate may be late
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_COORDINATOR = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
_WORKER = (ExtendedKeyUsageOID.SERVER_AUTH,)


class Issued(NamedTuple):
    """A certificate and its private key, both in PEM."""

    certificate: bytes
    key: bytes


def new_ca(name: str, days: float = CA_DAYS) -> Issued:
    """Make an authority that signs certificates of coordinators and workers, and no other authorities."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _named(name)
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _begun(subject, subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    return Issued(_pem(certificate), _key_pem(key))


def issue_coordinator(ca: Issued, hosts: Sequence[str], days: float = COORDINATOR_DAYS) -> Issued:
    """Make the certificate of a coordinator that clients and workers reach at `hosts`, names or addresses.

    Raises InvalidArgumentError for a host that is neither, and for an authority that is damaged.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    names = [_general_name(host) for host in hosts]
    return Issued(
        _signed(ca, key.public_key(), f"coordinator {hosts[0]}"[:64], names, _COORDINATOR, days), _key_pem(key)
    )


def issue_worker(ca: Issued, worker_id: str, days: float = WORKER_DAYS) -> Issued:
    """Make the certificate of the worker with that id. Raises InvalidArgumentError."""
    key = ec.generate_private_key(ec.SECP256R1())
    return Issued(_for_worker(ca, key.public_key(), worker_id, days), _key_pem(key))


def request() -> Issued:
    """Make a private key, and the request (CSR) for a certificate of it. Nothing but the public key counts of it."""
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(_named("worker")).sign(key, hashes.SHA256())
    return Issued(csr.public_bytes(serialization.Encoding.PEM), _key_pem(key))


def sign_worker(ca: Issued, csr: bytes, worker_id: str, days: float = WORKER_DAYS) -> bytes:
    """The certificate (PEM) of the worker with that id for the key of its request. Raises InvalidArgumentError."""
    try:
        asked = x509.load_pem_x509_csr(csr)
        key = asked.public_key()
        is_signed = asked.is_signature_valid
    except Exception as exc:  # what the library raises for damaged requests is of many kinds
        raise InvalidArgumentError(f"this is no certificate signing request in PEM: {exc}") from exc
    if not (is_signed and isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)):
        raise InvalidArgumentError("the request for a certificate has to be signed by its own ECDSA key on P-256")
    return _for_worker(ca, key, worker_id, days)


def is_worker(certificate: bytes, worker_id: str) -> bool:
    """Whether the first certificate of `certificate` (PEM) is that of the worker with that id."""
    try:
        names = _first(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    return worker_host(worker_id) in names.get_values_for_type(x509.DNSName)


def check_coordinator(chain: bytes, ca: bytes) -> None:
    """Raise InvalidArgumentError unless workers that trust `ca` accept the certificate with that chain (PEM) from a
    coordinator."""
    leaf, last = _first(chain), x509.load_pem_x509_certificates(chain)[-1]
    try:
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        usage = x509.ExtendedKeyUsage(_COORDINATOR)  # without the extension a certificate is for all
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usage:
        raise InvalidArgumentError("it is not for clients (extended key usage clientAuth), and so calls no worker")
    if not any(_is_issued(last, authority) for authority in x509.load_pem_x509_certificates(ca)):
        raise InvalidArgumentError("none of the authorities in the file of --tls-ca has issued it")


def lifetime(certificate: bytes) -> tuple[datetime, datetime]:
    """When the first certificate of `certificate` (PEM) begins and ends to be valid. Raises InvalidArgumentError."""
    first = _first(certificate)
    return first.not_valid_before_utc, first.not_valid_after_utc


def check_key(ca: Issued) -> None:
    """Raise InvalidArgumentError unless the key is that of one of the authorities."""
    _authority(ca)


def check_authority(certificates: bytes) -> None:
    """Raise InvalidArgumentError unless `certificates` (PEM) are those of authorities."""
    try:
        found = [each.extensions for each in x509.load_pem_x509_certificates(certificates)]
        are_authorities = [each.get_extension_for_class(x509.BasicConstraints).value.ca for each in found]
    except Exception as exc:  # what the library raises for damaged certificates is of many kinds
        raise InvalidArgumentError(f"it has no certificates of authorities in PEM: {exc}") from exc
    if not all(are_authorities):
        raise InvalidArgumentError("it has a certificate that is not one of an authority (CA)")


def fingerprints(certificates: bytes) -> dict[str, bytes]:
    """All certificates of `certificates` (PEM), each by the SHA-256 of its DER form in hexadecimal digits."""
    found = _PEM.findall(certificates)
    return {hashlib.sha256(ssl.PEM_cert_to_DER_cert(each.decode())).hexdigest(): each + b"\n" for each in found}


# ---- below ------------------------------------------------------------------------------------------------


def _for_worker(ca: Issued, key: ec.EllipticCurvePublicKey, worker_id: str, days: float) -> bytes:
    return _signed(ca, key, f"worker {worker_id}", [x509.DNSName(worker_host(worker_id))], _WORKER, days)


def _signed(
    ca: Issued,
    key: ec.EllipticCurvePublicKey,
    name: str,
    names: Iterable[x509.GeneralName],
    usage: Iterable[x509.ObjectIdentifier],
    days: float,
) -> bytes:
    authority, signing = _authority(ca)
    usages = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=False,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _begun(_named(name), authority.subject, key, days, authority.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usages, critical=True)
        .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()), critical=False)
        .sign(signing, hashes.SHA256())
    )
    return _pem(certificate)


def _begun(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    days: float,
    latest: datetime | None = None,
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    end = now + timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(min(end, latest) if latest else end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _authority(ca: Issued) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """The certificate and the key of an authority; of several certificates, the one that has the key."""
    try:
        key = serialization.load_pem_private_key(ca.key, password=None)
        found = x509.load_pem_x509_certificates(ca.certificate)
    except Exception as exc:  # what the library raises for damaged keys is of many kinds
        raise InvalidArgumentError(f"the authority's key or certificate cannot be read: {exc}") from exc
    for certificate in found:
        if isinstance(key, ec.EllipticCurvePrivateKey) and key.public_key() == certificate.public_key():
            return certificate, key
    raise InvalidArgumentError("the authority's key is not the ECDSA key of its certificate")


def _first(certificates: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(certificates)
    except ValueError as exc:
        raise InvalidArgumentError(f"this is no certificate in PEM: {exc}") from exc


def _is_issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    label = r"[0-9A-Za-z]([0-9A-Za-z-]{0,61}[0-9A-Za-z])?"
    if len(host) > 253 or not re.fullmatch(rf"(\*\.)?{label}(\.{label})*", host):
        raise InvalidArgumentError(f"{host!r} is neither a host name nor an address")
    return x509.DNSName(host)


def _named(name: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "boxlite"), x509.NameAttribute(NameOID.COMMON_NAME, name)]
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
