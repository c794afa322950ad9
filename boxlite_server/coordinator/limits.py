"""Bounds how long things may take, and holds what the operator of a coordinator decides for all boxes."""

from __future__ import annotations

from dataclasses import dataclass

# A whole request. Released clients give up after 300 s, so these are shorter.
CREATE_SECONDS = 280.0  # createBox, on all workers that are tried; an image pull is part of it
LAST_TRY_SECONDS = 5.0  # for each worker that is tried, at least, when CREATE_SECONDS are used up
PULL_SECONDS = 280.0  # pullImage, when the client wants the answer in one piece
PATIENCE_SECONDS = 290.0  # waiting for a lease, for example for the turn on a box; longer than any call to a worker

# A unary call to a worker.
CALL_SECONDS = 60.0  # calls about boxes, snapshots and volumes, unless a constant below is for them
COPY_SECONDS = 280.0  # calls that copy a disk; released clients give up after 300
EXECUTION_SECONDS = 30.0  # calls about executions
METRICS_SECONDS = 30.0  # measuring a box
LIST_IMAGES_SECONDS = 5.0  # listing a worker's images; a worker that does not answer in time is left out
REMOVE_IMAGE_SECONDS = 60.0  # removing an image from a worker

# A worker's silence in a stream.
IDLE_SECONDS = 60.0  # between two pieces that the worker hands out
WORK_SECONDS = 280.0  # while the worker holds a disk or unpacks an archive; released clients give up after 300

# From SIGTERM to SIGKILL, when a box is stopped.
DEFAULT_STOP_SECONDS = 30.0  # when the client gives no timeout
MAX_STOP_SECONDS = 240.0  # at most, whatever the client gives

KEEPALIVE_SECONDS = 15.0  # between signs of life on a WebSocket or an event stream with nothing to send
# Output of a command that one request runs and waits for, in bytes of each stream.
RUN_OUTPUT_BYTES = 1024 * 1024  # in the answer, when the client gives no limit
MAX_RUN_OUTPUT_BYTES = 4 * 1024 * 1024  # in the answer, whatever the client gives

REQUEST_SECONDS = 24 * 3600  # for how long an Idempotency-Key stands for its first request


@dataclass(frozen=True)
class Policy:
    """The operator's defaults for boxes whose request says nothing, in seconds (0: never), the operator's limit
    (None: no limit), and for how many seconds lines of the audit are kept."""

    default_auto_stop: int = 0
    default_auto_delete: int = 0
    max_boxes_per_prefix: int | None = None
    audit_keep: float = 90 * 24 * 3600.0
