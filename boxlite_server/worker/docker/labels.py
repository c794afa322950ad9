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
IMAGE_LABEL = "boxlite.image"  # the image that the box was asked for; its container may be made of a base
EXPORT_LABEL = "boxlite.export"  # the worker id of helpers, whose worker label is empty: they are no boxes

SNAPSHOT_REPOSITORY = "boxlite/snapshot"  # tagged with the snapshot's id
DISK_REPOSITORY = "boxlite/box"  # the disk that a box began with, tagged with the box's id
EXPORT_REPOSITORY = "boxlite/export"  # tagged with a new id
GARBAGE_REPOSITORY = "boxlite/garbage"  # what nobody wants any more, and a container is still based on
# Tagged with the id of the image that it is a base for. No registry has that name, so nobody can pull such an image.
BASE_REPOSITORY = "boxlite.invalid/base"


def owner_labels(owner: Owner) -> dict[str, str]:
    """The labels on everything of the owner."""
    return {CLUSTER_LABEL: owner.cluster_id, WORKER_LABEL: owner.worker_id}


def owned_by(owner: Owner) -> list[str]:
    """The label filter that finds what the owner has."""
    return [f"{label}={value}" for label, value in owner_labels(owner).items()]


def helper_labels(owner: Owner) -> dict[str, str]:
    """The labels on the owner's helpers: those of boxes and disks are empty, and no search for boxes finds them."""
    labels = {CLUSTER_LABEL: owner.cluster_id, WORKER_LABEL: "", BOX_LABEL: "", GENERATION_LABEL: ""}
    return labels | {SNAPSHOT_LABEL: "", EXPORT_LABEL: owner.worker_id}


def helpers_of(owner: Owner) -> list[str]:
    """The label filter that finds the owner's helpers."""
    return [f"{CLUSTER_LABEL}={owner.cluster_id}", f"{EXPORT_LABEL}={owner.worker_id}"]


def is_base(tag: str) -> bool:
    """Whether an image with this tag is a base."""
    return tag.startswith(f"{BASE_REPOSITORY}:")


def base_tag(image: Mapping[str, Any]) -> str:
    """The tag that makes an image a base; empty if it has none."""
    return next((tag for tag in image.get("RepoTags") or () if is_base(tag)), "")


def image_labels(image: Mapping[str, Any]) -> dict[str, str]:
    """The labels in the engine's description of an image."""
    return (image.get("Config") or {}).get("Labels") or {}


def container_name(box: BoxRef) -> str:
    return f"boxlite-{box.box_id}-{box.generation}"


def volume_name(volume_id: str) -> str:
    return f"boxlite-{volume_id}"
