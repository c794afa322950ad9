"""The disks of the fake runtime's boxes: directories beside theirs."""

from __future__ import annotations

import contextlib
import io
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from boxlite_server.errors import InvalidArgumentError, InvalidStateError, NotFoundError
from boxlite_server.worker.runtime import BoxRef, BoxSpec, BoxState, BoxStatus, Export, Settings, SnapshotSize

if TYPE_CHECKING:
    from support.fake_runtime import FakeRuntime


class FakeDisks:
    """Fakes `Disks`: snapshots and clones are copies and share nothing."""

    def __init__(self, runtime: FakeRuntime) -> None:
        self._runtime = runtime
        self._kept: dict[tuple[str, str], Path] = {}

    def snapshot(self, box: BoxRef, snapshot_id: str) -> SnapshotSize:
        with self._runtime._lock:
            found = self._runtime._find(box)
            key = (box.box_id, snapshot_id)
            if key not in self._kept:
                self._kept[key] = self._copy(found.directory)
            size = sum(path.stat().st_size for path in self._kept[key].rglob("*"))
            return SnapshotSize(size, size)

    def remove_snapshot(self, box: BoxRef, snapshot_id: str) -> None:
        with self._runtime._lock:
            kept = self._kept.pop((box.box_id, snapshot_id), None)
        if kept is not None:
            shutil.rmtree(kept)

    def list_snapshots(self) -> list[tuple[str, str]]:
        with self._runtime._lock:
            return list(self._kept)

    def restore(self, box: BoxRef, snapshot_id: str, generation: int, spec: BoxSpec) -> BoxState:
        new = BoxRef(box.box_id, generation)
        with self._runtime._lock:
            found = self._runtime._boxes.get(box.box_id)
            if found is not None:
                self._runtime._refuse_stale(new, found)
                if found.ref == new:
                    return found.state
            kept = self._kept.get((box.box_id, snapshot_id))
            if kept is None:
                raise NotFoundError(f"snapshot {snapshot_id} of box {box.box_id} is not on this worker")
            if found is not None and found.status is BoxStatus.RUNNING:
                raise InvalidStateError(f"box {box.box_id} is running; stop it first")
        if found is not None:
            self._runtime._delete(found)
        with self._runtime._lock:
            return self._runtime._make(new, spec, self._copy(kept))

    def clone(self, source: BoxRef, box: BoxRef, spec: BoxSpec) -> BoxState:
        with self._runtime._lock:
            made = self._runtime._boxes.get(box.box_id)
            return (
                made.state
                if made
                else self._runtime._make(box, spec, self._copy(self._runtime._find(source).directory))
            )

    @contextlib.contextmanager
    def export(self, box: BoxRef) -> Iterator[Export]:
        with self._runtime._lock:
            found = self._runtime._find(box)
            spec, archive = found.spec, io.BytesIO()
            with tarfile.open(fileobj=archive, mode="w") as tar:
                tar.add(found.directory, arcname=".")
        settings = Settings(dict(spec.env), spec.working_dir, spec.entrypoint, found.cmd, spec.user)
        data = archive.getvalue()
        yield Export(settings, iter([data[:1000], data[1000:]]))

    def load(self, box: BoxRef, spec: BoxSpec, tar: Iterable[bytes]) -> BoxState:
        with self._runtime._lock:
            made = self._runtime._boxes.get(box.box_id)
            if made is not None:
                return made.state
        archive = io.BytesIO(b"".join(tar))
        directory = self._runtime._new_directory()
        try:
            with tarfile.open(fileobj=archive) as opened:
                opened.extractall(directory, filter="data")
        except (tarfile.TarError, EOFError) as exc:
            shutil.rmtree(directory)
            raise InvalidArgumentError(f"the archive's file system cannot be unpacked: {exc}") from exc
        with self._runtime._lock:
            return self._runtime._make(box, spec, directory)

    def tidy(self) -> None:
        pass

    def forget(self, box_id: str) -> None:
        for key in [key for key in self._kept if key[0] == box_id]:
            shutil.rmtree(self._kept.pop(key))

    def _copy(self, directory: Path) -> Path:
        copy = self._runtime._new_directory()
        return shutil.copytree(directory, copy, dirs_exist_ok=True)
