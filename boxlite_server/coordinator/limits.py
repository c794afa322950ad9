"""How long things may take, and what the operator of a coordinator decides for all boxes."""

from __future__ import annotations

from dataclasses import dataclass

# One whole client request. Released clients give up after 300 s, so each of these is shorter.
CREATE_SECONDS = 280.0  # createBox, on all workers that are tried; an image pull is part of it
LAST_TRY_SECONDS = 5.0  # createBox's call to a worker, at least, when the earlier tries have used up the time
PULL_SECONDS = 280.0  # pullImage, when the client wants one whole answer
PATIENCE_SECONDS = 290.0  # waiting for the turn on a box; longer than any one call to a worker

# One call to a worker.
CALL_SECONDS = 60.0  # about a box, a snapshot or a volume, where nothing below bounds it
COPY_SECONDS = 280.0  # that copies a disk
EXECUTION_SECONDS = 30.0  # about a command
METRICS_SECONDS = 30.0  # that measures a box
LIST_IMAGES_SECONDS = 5.0  # that lists the images: every worker is asked, and a silent one is left out
REMOVE_IMAGE_SECONDS = 60.0  # that removes an image

# A worker's silence in the middle of a stream.
IDLE_SECONDS = 60.0  # between two pieces of what it hands out
WORK_SECONDS = 280.0  # while it works on the whole: holds a disk, unpacks an archive

# From SIGTERM to SIGKILL, when a box is stopped.
DEFAULT_STOP_SECONDS = 30.0  # where the client gives no timeout
MAX_STOP_SECONDS = 240.0  # whatever timeout the client gives

REQUEST_SECONDS = 24 * 3600  # for how long an Idempotency-Key stands for its first request


@dataclass(frozen=True)
class Policy:
    """The operator's defaults for boxes whose request says nothing, in seconds (0: never), and the operator's
    limit (None: no limit)."""

    default_auto_stop: int = 0
    default_auto_delete: int = 0
    max_boxes_per_prefix: int | None = None
