"""What the operator of a coordinator has decided for all boxes."""

from __future__ import annotations

from dataclasses import dataclass

REQUEST_SECONDS = 24 * 3600  # for how long an Idempotency-Key stands for its first request


@dataclass(frozen=True)
class Policy:
    """Defaults are for boxes whose request says nothing, in seconds, 0 for never. A limit of None is none."""

    default_auto_stop: int = 0
    default_auto_delete: int = 0
    max_boxes_per_prefix: int | None = None


CREATE_SECONDS = 280.0  # on all workers that are tried; an image pull is part of it; released clients give up after 300
LAST_TRY_SECONDS = 5.0
MAX_STOP_SECONDS = 240.0

CALL_SECONDS = 60.0
DEFAULT_STOP_SECONDS = 30.0

IDLE_SECONDS = 60.0  # between two pieces of what a worker hands out
WORK_SECONDS = (
    280.0  # while it works on the whole: holds a disk, unpacks an archive; released clients give up after 300
)

COPY_SECONDS = 280.0  # a disk is copied; released clients give up after 300

PATIENCE_SECONDS = 290.0  # longer than any one call to a worker; released clients give up after 300

PULL_SECONDS = 280.0  # for a whole answer: released clients give up after 300

ASK_SECONDS = 5.0
REMOVE_SECONDS = 60.0
