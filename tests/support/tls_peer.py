"""What a server shows of itself over TLS."""

from __future__ import annotations

import socket

from cryptography import x509

from support.cluster import Cluster


def serial(port: int, cluster: Cluster) -> int:
    """The number of the certificate with which the server at that port shows itself. Names do not matter."""
    context = cluster.tls
    assert context
    context.check_hostname = False
    with socket.create_connection(("127.0.0.1", port)) as plain, context.wrap_socket(plain) as encrypted:
        return x509.load_der_x509_certificate(encrypted.getpeercert(binary_form=True) or b"").serial_number
