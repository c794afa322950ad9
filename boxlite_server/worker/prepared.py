"""Which boxes are prepared: their containers run, and for everybody else they are not started yet. Kept in a file, so
that a restart of the worker forgets none."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path

from ..errors import ResourceExhaustedError
from .runtime import BoxRef

log = logging.getLogger(__name__)


class Prepared:
    """The prepared boxes, in the file at `path`; with None, nothing outlives the process."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._generations = _read(path)  # by box id

    def __contains__(self, box: BoxRef) -> bool:
        return self._generations.get(box.box_id) == box.generation

    def add(self, box: BoxRef) -> None:
        """Note that the box is prepared. Raises `ResourceExhaustedError` when that cannot be written."""
        with self._lock:
            self._generations[box.box_id] = box.generation
            try:
                self._write()
            except OSError as exc:
                del self._generations[box.box_id]
                raise ResourceExhaustedError(f"box {box.box_id} cannot be prepared: {exc}") from exc

    def discard(self, box: BoxRef) -> None:
        """Note that the box is started or removed. Where that cannot be written, a restart of the worker makes the box
        count as prepared again; then its coordinator starts it again, which changes nothing about a box that runs."""
        with self._lock:
            if box not in self:
                return
            del self._generations[box.box_id]
            try:
                self._write()
            except OSError as exc:
                log.warning("box %s will count as prepared after a restart of this worker: %s", box.box_id, exc)

    def _write(self) -> None:
        if self._path is None:
            return
        temporary = self._path.with_suffix(".new")
        temporary.write_text(json.dumps(self._generations))
        temporary.replace(self._path)


def _read(path: Path | None) -> dict[str, int]:
    try:
        known = json.loads(path.read_text()) if path else {}
        return {str(box_id): int(generation) for box_id, generation in known.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as exc:
        log.warning("which boxes are prepared cannot be read: %s: %s", path, exc)
        return {}
