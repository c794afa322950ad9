"""The two specs: at the top of a checkout, inside an installed package."""

from __future__ import annotations

from pathlib import Path


def read(name: str) -> bytes:
    """The bytes of ``openapi.yaml`` or ``worker.proto``."""
    package = Path(__file__).parent
    inside = package / name
    return (inside if inside.exists() else package.parent / name).read_bytes()
