"""Which workers failed to pull which image lately.

Such a worker is tried last. It is still the least loaded one, so without this memory every box of that image would
wait for its registry to time out again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

FORGET_SECONDS = 60.0
_REMEMBERED = 1000  # failures; the oldest are forgotten first


class FailedPulls:
    """The failures that this coordinator has seen; `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failed: OrderedDict[tuple[str, str], float] = OrderedDict()  # when, by image and worker id

    def note(self, image: str, worker_id: str) -> None:
        """Remember that the worker cannot pull the image now."""
        self._failed[image, worker_id] = self._clock()
        self._failed.move_to_end((image, worker_id))
        while len(self._failed) > _REMEMBERED:
            self._failed.popitem(last=False)

    def of(self, image: str) -> frozenset[str]:
        """Ids of the workers that could not pull the image within the last `FORGET_SECONDS`."""
        since = self._clock() - FORGET_SECONDS
        return frozenset(worker for (name, worker), at in self._failed.items() if name == image and at > since)
