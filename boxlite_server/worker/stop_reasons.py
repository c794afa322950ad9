"""Why this worker stopped boxes unasked, kept in a file, so that a restart of the worker loses no reason."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path

from .runtime import BoxRef

log = logging.getLogger(__name__)


class StopReasons:
    """The reasons, at most one for each box, in the file at `path`; with None, nothing outlives the process.

    When the disk is full, a reason is lost with the process.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._reasons = _read(path)  # generation and reason, by box id

    def put(self, box: BoxRef, reason: str) -> None:
        with self._lock:
            self._reasons[box.box_id] = (box.generation, reason)
            self._write()

    def get(self, box: BoxRef) -> str:
        """The reason; empty if there is none for this generation of the box."""
        with self._lock:
            generation, reason = self._reasons.get(box.box_id, (0, ""))
        return reason if generation == box.generation else ""

    def drop(self, box: BoxRef) -> None:
        """Forget the reason of this generation of the box, or of one before it."""
        with self._lock:
            if self._reasons.get(box.box_id, (box.generation + 1, ""))[0] <= box.generation:
                del self._reasons[box.box_id]
                self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        temporary = self._path.with_suffix(".new")
        try:
            temporary.write_text(json.dumps(self._reasons))
            temporary.replace(self._path)
        except OSError as exc:
            log.warning("why boxes were stopped will not outlive this process: %s", exc)


def _read(path: Path | None) -> dict[str, tuple[int, str]]:
    try:
        known = json.loads(path.read_text()) if path else {}
        return {str(box_id): (int(generation), str(reason)) for box_id, (generation, reason) in known.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as exc:
        log.warning("why boxes were stopped cannot be read: %s: %s", path, exc)
        return {}
