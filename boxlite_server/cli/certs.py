"""`boxlite-server certs`: makes a private authority and its certificates; and the flags of TLS."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import AlreadyExistsError, InvalidArgumentError
from . import types
from .flags import DEFAULT_HOME, Commands, add, add_debug

if TYPE_CHECKING:
    from ..tls.files import Files

DEFAULT_DIRECTORY = DEFAULT_HOME / "certs"


def add_certs(commands: Commands) -> None:
    """Add the command and its subcommands."""
    parser = commands.add_parser("certs", help="make a private authority (CA), and certificates of it for TLS")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    beginning = add(actions, "init", init, "make an authority: ca.crt, and its key ca.key, which signs certificates")
    beginning.add_argument("--name", default="boxlite", help="name the authority, for people")
    issuing = add(
        actions, "issue", issue, "make a certificate and its key, NAME.crt and NAME.key; the former ones are replaced"
    )
    kind = issuing.add_mutually_exclusive_group(required=True)
    kind.add_argument(
        "--coordinator",
        metavar="HOST",
        action="append",
        help="make coordinator.crt, for a coordinator that is reached by this name or address; may be repeated",
    )
    kind.add_argument(
        "--worker",
        metavar="ID",
        type=types.worker_id,
        help="make worker-ID.crt, for the worker with this id; workers that join with a token need none",
    )
    issuing.add_argument("--name", type=types.file_stem, help="name the files so (default: as said above)")
    beginning.add_argument("--days", type=types.positive, default=3650, help="let it be valid for so many days")
    issuing.add_argument(
        "--days", type=types.positive, help="let it be valid for so many days (default: 365, and 90 for workers)"
    )
    for parser in (beginning, issuing):
        parser.add_argument(
            "--dir", metavar="DIR", type=Path, default=DEFAULT_DIRECTORY, help="keep authority and certificates here"
        )
        add_debug(parser)


def add_coordinator_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a coordinator's TLS."""
    _add_certificate(parser, "serve HTTPS with")
    parser.add_argument(
        "--tls-ca",
        metavar="FILE",
        type=Path,
        help="call workers over mutual TLS, with the same certificate, and trust those of the authorities in this file",
    )
    parser.add_argument(
        "--tls-ca-key",
        metavar="FILE",
        type=Path,
        help="issue certificates to workers that join, with this key of the authority",
    )


def add_worker_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a worker's TLS."""
    _add_certificate(parser, "serve the coordinator's calls over mutual TLS, with")
    parser.add_argument(
        "--tls-ca",
        metavar="FILE",
        type=Path,
        help="trust a coordinator with a certificate of the authorities in this file, and no other",
    )
    parser.add_argument(
        "--insecure-grpc",
        action="store_true",
        help="serve the coordinator's calls without TLS on any address (default: without TLS, on loopback only)",
    )


def _add_certificate(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--tls-cert", metavar="FILE", type=Path, help=f"{text} this certificate")
    parser.add_argument("--tls-key", metavar="FILE", type=Path, help="use this private key of the certificate")


def files(arguments: argparse.Namespace) -> Files | None:
    """Where certificate and authorities are; None where the flags name none. Raises InvalidArgumentError for flags that
    lack another."""
    certificate, key, ca = arguments.tls_cert, arguments.tls_key, arguments.tls_ca
    is_worker, ca_key = hasattr(arguments, "insecure_grpc"), getattr(arguments, "tls_ca_key", None)
    if (certificate is None) != (key is None):
        raise InvalidArgumentError("--tls-cert and --tls-key belong together; give both")
    if certificate is None and (ca or ca_key):
        raise InvalidArgumentError("--tls-ca and --tls-ca-key need --tls-cert and --tls-key")
    if ca is None and (ca_key or (is_worker and certificate)):
        raise InvalidArgumentError("--tls-ca has to name the authority that the other side's certificate is of")
    if certificate is None:
        return None
    from ..tls.files import Files

    return Files(certificate, key, ca)


def init(arguments: argparse.Namespace) -> int:
    """Make an authority. Raises AlreadyExistsError, as certificates of a former one would be void."""
    from ..tls import certificates
    from ..tls.files import write

    directory = arguments.dir.expanduser()
    certificate, key = directory / "ca.crt", directory / "ca.key"
    for file in (certificate, key):
        if file.exists():
            raise AlreadyExistsError(f"{file} exists, and all certificates of that authority would become void")
    made = certificates.new_ca(arguments.name, arguments.days)
    write(key, made.key, is_secret=True)
    write(certificate, made.certificate, is_secret=False)
    print(certificate)
    return 0


def issue(arguments: argparse.Namespace) -> int:
    """Make a certificate. Raises InvalidArgumentError."""
    from ..tls import certificates
    from ..tls.files import content, write

    directory = arguments.dir.expanduser()
    ca = certificates.Issued(content(directory / "ca.crt"), content(directory / "ca.key"))
    if arguments.worker:
        stem = f"worker-{arguments.worker}"
        made = certificates.issue_worker(ca, arguments.worker, arguments.days or certificates.WORKER_DAYS)
    else:
        stem = "coordinator"
        made = certificates.issue_coordinator(
            ca, arguments.coordinator, arguments.days or certificates.COORDINATOR_DAYS
        )
    certificate = directory / f"{arguments.name or stem}.crt"
    write(certificate.with_suffix(".key"), made.key, is_secret=True)
    write(certificate, made.certificate, is_secret=False)
    print(certificate)
    return 0
