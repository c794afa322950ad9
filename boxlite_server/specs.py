"""The two specs, which are at the top of a checkout or inside an installed package."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import yaml


def read(name: str) -> bytes:
    """Return the bytes of ``openapi.yaml`` or ``worker.proto``."""
    package = Path(__file__).parent
    inside = package / name
    return (inside if inside.exists() else package.parent / name).read_bytes()


@functools.cache
def openapi() -> dict[str, Any]:
    """Return ``openapi.yaml``, parsed once. All callers share it, so none may change it."""
    spec: dict[str, Any] = yaml.safe_load(read("openapi.yaml"))
    return spec
