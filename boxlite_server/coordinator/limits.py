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
