"""The states of boxes, snapshots, volumes and workers; the values are those of the database and of the REST API."""

from __future__ import annotations

from enum import StrEnum


class BoxStatus(StrEnum):
    """What a box is, as far as the coordinator knows."""

    CREATING = "creating"  # the row is written, the container not yet confirmed; clients see it as configured
    CONFIGURED = "configured"  # created and never started, or about to be started
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    PAUSED = "paused"
    FAILED = "failed"  # the box cannot run; its `error` says why
    REMOVING = "removing"  # clients see it as stopping
    UNKNOWN = "unknown"  # the worker is unreachable; shown to clients, never stored


class DesiredState(StrEnum):
    """What a box should be, where BoxStatus is what it is."""

    RUNNING = "running"
    STOPPED = "stopped"


class SnapshotState(StrEnum):
    """All but READY name an operation that is under way, or that a crash broke off."""

    CREATING = "creating"
    READY = "ready"
    RESTORING = "restoring"  # the box is being put back to the snapshot
    REMOVING = "removing"


class VolumeState(StrEnum):
    """CREATING and DELETING outlive a crash in the middle of either."""

    CREATING = "creating"
    READY = "ready"
    DELETING = "deleting"


class WorkerStatus(StrEnum):
    """What the operator wants of a worker, or that it cannot be reached."""

    ACTIVE = "active"
    DRAINING = "draining"  # the worker keeps its boxes and gets no new ones
    UNREACHABLE = "unreachable"  # shown to clients, never stored
