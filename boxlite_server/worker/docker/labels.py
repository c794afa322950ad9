"""How containers and images of ours are marked and named on an engine that others use, too."""

from __future__ import annotations

from ..runtime import BoxRef, Owner

CLUSTER_LABEL = "boxlite.cluster"
WORKER_LABEL = "boxlite.worker"
BOX_LABEL = "boxlite.box"
GENERATION_LABEL = "boxlite.generation"
VOLUME_LABEL = "boxlite.volume"
SNAPSHOT_LABEL = "boxlite.snapshot"
EXPORT_LABEL = "boxlite.export"  # of the helpers of an export, in place of the worker's; they are nobody's box

SNAPSHOT_REPOSITORY = "boxlite/snapshot"  # tagged with the snapshot's id
DISK_REPOSITORY = "boxlite/box"  # the disk that a box began with, tagged with the box's id
EXPORT_REPOSITORY = "boxlite/export"


def container_name(box: BoxRef) -> str:
    return f"boxlite-{box.box_id}-{box.generation}"


def owned_by(owner: Owner) -> list[str]:
    """The filter that finds what is the owner's."""
    return [f"{CLUSTER_LABEL}={owner.cluster_id}", f"{WORKER_LABEL}={owner.worker_id}"]


def volume_name(volume_id: str) -> str:
    return f"boxlite-{volume_id}"
