"""/etc/hosts, /etc/hostname and /etc/resolv.conf of boxes.

The engine mounts a file of its own at each of these paths, and writes the files anew whenever a container starts. So
nothing can be unpacked there, and what a box writes there would be lost at its next start. A worker that may write the
engine's files, which takes root, replaces their content in place: for an upload, and after a start. What to write after
a start is kept in a record of the container from before the start on, so that a crash does not lose it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HOSTS = "/etc/hosts"
_KEYS = {HOSTS: "HostsPath", "/etc/hostname": "HostnamePath", "/etc/resolv.conf": "ResolvConfPath"}
_MAX_BYTES = 1024 * 1024  # of a file; what a box makes larger than that is not kept

log = logging.getLogger(__name__)


@dataclass
class _Record:
    """`engine`: what the engine wrote at the last start. `kept`: what is to be written after the next start. Both by
    the paths in the box."""

    engine: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)


class SystemFiles:
    """The system files of a worker's containers. `directory`: of the records; None: nothing is replaced or kept."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        if directory is not None:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def managed(self, container: Mapping[str, Any]) -> frozenset[str]:
        """The paths in the box whose content `replace` replaces."""
        if self._directory is None or os.geteuid() != 0:
            return frozenset()
        if container["State"]["Status"] == "created":
            return frozenset(_KEYS)
        return frozenset(self._places(container))

    def replace(self, container: Mapping[str, Any], path: str, content: bytes) -> bool:
        """Replace the content of a managed file, for good. False: the engine has no such file before the first start,
        so it will be written then."""
        if place := self._places(container).get(path):
            _write(place, content)
            return True
        record = self._load(_name(container))
        record.kept[path] = content.decode("latin-1")
        self._save(_name(container), record)
        return False

    def before_start(self, container: Mapping[str, Any]) -> None:
        """Keep what the box or an upload has written since the last start of a container at rest."""
        record = self._load(_name(container))
        found = {path: content for path, place in self._places(container).items() if (content := _read(place))}
        changed = {path: content for path, content in found.items() if record.engine.get(path, content) != content}
        if changed:
            record.kept = changed | record.kept
            self._save(_name(container), record)

    def after_start(self, container: Mapping[str, Any]) -> None:
        """Write what was kept into the files that the engine has just written."""
        places = self._places(container)
        if not places:
            return
        record = self._load(_name(container))
        engine = {path: content for path, place in places.items() if (content := _read(place)) is not None}
        for path, content in record.kept.items():
            if path in places:
                if path == HOSTS:
                    content = _with_address(content, record.engine.get(path, engine[path]), engine[path])
                _write(places[path], content.encode("latin-1"))
        self._save(_name(container), _Record(engine=engine))

    def is_pending(self, container: Mapping[str, Any]) -> bool:
        """Whether a start was cut off before `after_start`."""
        return bool(self._load(_name(container)).kept)

    def names(self) -> list[str]:
        """The names of the containers that have records."""
        if self._directory is None:
            return []
        return [path.name for path in self._directory.iterdir() if path.suffix != ".new"]

    def forget(self, container_name: str) -> None:
        if self._directory is not None:
            (self._directory / container_name).unlink(missing_ok=True)

    def _places(self, container: Mapping[str, Any]) -> dict[str, Path]:
        """The engine's files that this process may write, by their paths in the box."""
        if self._directory is None:
            return {}
        mounted = {mount["Destination"] for mount in container["Mounts"]}
        places = {
            path: Path(container[key]) for path, key in _KEYS.items() if container.get(key) and path not in mounted
        }
        return {
            path: place for path, place in places.items() if os.access(place, os.R_OK | os.W_OK) and place.is_file()
        }

    # ---- records ----

    def _load(self, name: str) -> _Record:
        if self._directory is None:
            return _Record()
        try:
            return _Record(**json.loads((self._directory / name).read_bytes()))
        except FileNotFoundError:
            return _Record()
        except (OSError, ValueError, TypeError) as exc:
            log.warning("the record of the system files of %s is damaged, dropping it: %s", name, exc)
            return _Record()

    def _save(self, name: str, record: _Record) -> None:
        assert self._directory is not None
        new = self._directory / f"{name}.new"
        with new.open("w") as file:
            json.dump({"engine": record.engine, "kept": record.kept}, file)
            file.flush()
            if record.kept:
                os.fsync(file.fileno())
        new.replace(self._directory / name)


def _name(container: Mapping[str, Any]) -> str:
    return str(container["Name"]).lstrip("/")


def _read(place: Path) -> str | None:
    with contextlib.suppress(OSError):
        if place.stat().st_size <= _MAX_BYTES:
            return place.read_bytes().decode("latin-1")
    return None


def _write(place: Path, content: bytes) -> None:
    """Replace the content in place: the file is mounted, so it has to stay the same file."""
    with place.open("r+b") as file:
        file.write(content)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def _with_address(content: str, before: str, now: str) -> str:
    """The hosts of a box whose network address may have changed: the lines that the engine no longer writes are
    replaced by its new ones."""
    old, new = before.splitlines(), now.splitlines()
    lines = [line for line in content.splitlines() if line not in old or line in new]
    lines += [line for line in new if line not in old]
    return "".join(f"{line}\n" for line in lines) if new != old else content
