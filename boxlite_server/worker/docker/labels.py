"""How a worker marks and names its containers, images and volumes on an engine that others use, too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..runtime import BoxRef, Owner

CLUSTER_LABEL = "boxlite.cluster"
WORKER_LABEL = "boxlite.worker"
BOX_LABEL = "boxlite.box"
GENERATION_LABEL = "boxlite.generation"
VOLUME_LABEL = "boxlite.volume"
CPUS_LABEL = "boxlite.cpus"  # numbers with commas between them: the cpus that a box is pinned to
SNAPSHOT_LABEL = "boxlite.snapshot"
DISK_LIMIT_LABEL = "boxlite.disk-limit"  # bytes that the worker lets the box write; empty: it need not watch
EXPORT_LABEL = "boxlite.export"  # the worker id of an export's helpers, whose worker label is empty: they are no boxes

SNAPSHOT_REPOSITORY = "boxlite/snapshot"  # tagged with the snapshot's id
DISK_REPOSITORY = "boxlite/box"  # the disk that a box began with, tagged with the box's id
EXPORT_REPOSITORY = "boxlite/export"  # tagged with a new id
GARBAGE_REPOSITORY = "boxlite/garbage"  # what nobody wants any more, and a container is still based on


def owner_labels(owner: Owner) -> dict[str, str]:
    """The labels on everything of the owner."""
    return {CLUSTER_LABEL: owner.cluster_id, WORKER_LABEL: owner.worker_id}


def owned_by(owner: Owner) -> list[str]:
    """The label filter that finds what the owner has."""
    return [f"{label}={value}" for label, value in owner_labels(owner).items()]


def image_labels(image: Mapping[str, Any]) -> dict[str, str]:
    """The labels in the engine's description of an image."""
    return (image.get("Config") or {}).get("Labels") or {}


def container_name(box: BoxRef) -> str:
    return f"boxlite-{box.box_id}-{box.generation}"


def volume_name(volume_id: str) -> str:
    return f"boxlite-{volume_id}"
