"""Turns."""

from __future__ import annotations

from ... import errors
from ..._gen import worker_pb2 as pb
from ..store import Box


def ref(box: Box) -> pb.BoxRef:
    """The box as a worker knows it."""
    return pb.BoxRef(box_id=box.id, generation=box.generation, wish=box.wish)


def forgotten(box_id: str) -> errors.BoxliteError:
    return errors.UpstreamUnavailableError(f"box {box_id} was forgotten, together with its worker")


def lease_of(box_id: str) -> str:
    return f"box/{box_id}"
