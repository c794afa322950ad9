"""Signatures between a coordinator and its workers, made with the secret that each worker shares with them."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

SIGNATURE = "signature"  # the field of a heartbeat that holds its signature


def of_heartbeat(secret: str, worker_id: str, beat: Mapping[str, Any]) -> str:
    """The signature of a heartbeat: of all its fields but the signature, whatever their order."""
    signed = {key: value for key, value in beat.items() if key != SIGNATURE}
    return _sign(secret, f"heartbeat {worker_id} {json.dumps(signed, sort_keys=True, separators=(',', ':'))}")


def of_coordinator(secret: str, worker_id: str, nonce: str) -> str:
    """The proof of a coordinator that it has the worker's secret. `nonce`: what the worker has made up for it."""
    return _sign(secret, f"coordinator {worker_id} {nonce}")


def of_certificate_request(secret: str, worker_id: str, csr: str) -> str:
    """The signature of a worker's request for a certificate. `csr`: the request, in PEM."""
    return _sign(secret, f"certificate {worker_id} {csr}")


def is_same(given: object, expected: str) -> bool:
    """Whether `given` is the signature that was expected, found in a time that does not tell how much of it is."""
    return isinstance(given, str) and hmac.compare_digest(given.encode(errors="replace"), expected.encode())


def _sign(secret: str, text: str) -> str:
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()
