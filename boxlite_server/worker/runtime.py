"""The seam between the worker and whatever runs its boxes.

`BoxRuntime` keeps boxes, `Process` is one command in a box. Both are blocking and safe to call from many
threads. Nothing here knows an engine: a second implementation needs this module and nothing else.

Every verb about a box names it by `BoxRef`. A generation lower than the one that the runtime holds is
refused with `InvalidStateError`; a box that the runtime does not hold is a `NotFoundError`. A runtime sees
and touches only the boxes of its own owner. An engine that does not answer is an `EngineError`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from .commands import ExecSpec, LogReader, Process


class BoxStatus(StrEnum):
    """What the engine says of a box; the values are those of the REST contract."""

    CONFIGURED = "configured"  # created, never started
    RUNNING = "running"
    STOPPED = "stopped"
    PAUSED = "paused"
    FAILED = "failed"  # the engine holds it and could not run it


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose boxes a runtime keeps: one worker of one cluster."""

    cluster_id: str
    worker_id: str


@dataclass(frozen=True, slots=True)
class BoxRef:
    """One life of a box's container. Generations count from 1."""

    box_id: str
    generation: int


@dataclass(frozen=True, slots=True)
class Mount:
    """Storage at `guest_path`: a volume or a path of the host, exactly one of the two."""

    guest_path: str
    volume_id: str = ""
    host_path: str = ""
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class PortMapping:
    """A port of the box at an address of the host. `host_port` 0: any free one, chosen at each start."""

    guest_port: int
    host_port: int = 0
    protocol: str = "tcp"
    host_ip: str = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class BoxSpec:
    """What a box is made of. Empty strings and tuples mean: as the image has it."""

    image: str
    cpus: int = 1
    memory_mib: int = 512
    env: Mapping[str, str] = field(default_factory=dict)
    working_dir: str = ""
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    user: str = ""
    network_enabled: bool = True
    tty: bool = False
    hostname: str = ""
    mounts: tuple[Mount, ...] = ()
    ports: tuple[PortMapping, ...] = ()
    cap_add: tuple[str, ...] = ()  # upper case, without CAP_; or ALL
    cap_drop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BoxState:
    """`pid`: on this host, of the main command, while it runs. `exit_code`: of its last run, once over.
    `ports`: as they are published while it runs, with the real host ports.
    `commands`: how many run besides the main one; only `inspect` has looked.
    `interrupted`: it stopped because the engine was told to kill it, and not by us: by somebody's hand, or by
    the engine's own end. Known only of ends that came while the runtime watched."""

    box: BoxRef
    status: BoxStatus
    pid: int | None = None
    exit_code: int | None = None
    ports: tuple[PortMapping, ...] = ()
    commands: int = 0
    interrupted: bool = False


@dataclass(frozen=True, slots=True)
class Capacity:
    cpus: int
    memory_mib: int
    engine_version: str


class FileKind(StrEnum):
    FILE = "file"
    DIRECTORY = "directory"
    LINK = "link"
    OTHER = "other"  # a device, a pipe, a socket


@dataclass(frozen=True, slots=True)
class FileState:
    """`target`: the path in the box that a link leads to in the end, whether there is something or not."""

    kind: FileKind
    target: str = ""


class ArchiveStream(Protocol):
    """A tar archive as the engine gives it, once. Cut off, it raises `EngineError`."""

    def __iter__(self) -> Iterator[bytes]: ...

    def close(self) -> None:
        """Let go of it, from any thread; repeating it is harmless."""


class BoxFiles(Protocol):
    """The files of one box, whether it runs or not. Paths are absolute, clean and never leave the box: links
    are followed inside it, except one that a path ends in. An engine may hold up everything else about a box
    while an archive is under way, so both ends have to be fast."""

    def owner(self) -> tuple[int, int] | None:
        """(uid, gid) of the box's user; None where the box's image does not tell."""

    def stat(self, path: str) -> FileState | None:
        """What there is at `path`; None: nothing. Raises `InvalidStateError` where links lead in a circle."""

    def put(self, directory: str, archive: Iterable[bytes]) -> None:
        """Unpack a tar archive of ours below an existing directory. Files are replaced, a link is not followed
        but replaced, directories are merged and take the archive's mode and owner.

        Raises `InvalidStateError` where a directory would replace something else, or the reverse, and
        `ResourceExhaustedError` when the box's disk is full; what came before it is then there.
        """

    def get(self, path: str) -> ArchiveStream:
        """The file, or the directory and all below it, under its last name. Under `/.` at the end of `path`:
        the directory's content, and itself as `.`. Raises `NotFoundError`."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image under one of its names. `reference`: in full; `digests`: by which registries know it."""

    reference: str
    image_id: str
    cached_at_ms: int  # Unix time
    size_bytes: int
    digests: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PullProgress:
    """Of all parts known so far; `total_bytes` grows while parts are being found."""

    current_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Volume:
    volume_id: str
    created_at_ms: int  # Unix time


class Images(Protocol):
    """The images that boxes can be made of at once. Shared by all who use the engine."""

    def list(self) -> list[Image]:
        """An entry for each name of each image; those that only our own snapshots are made of are left out."""

    def pull(self, reference: str) -> Iterator[PullProgress | Image]:
        """Fetch the image anew: progress at least every second, and the image last.

        Raises `ImageError` when it cannot be had, or is no reference at all.
        """

    def remove(self, reference: str) -> None:
        """Take this name off its image, and the image away with its last name; nothing when there is none.

        Raises `InvalidStateError` when a box uses it.
        """


class Volumes(Protocol):
    """Storage that outlives boxes, of this owner alone."""

    def create(self, volume_id: str) -> Volume:
        """Make an empty volume; of an existing one: what it is."""

    def remove(self, volume_id: str) -> None:
        """Remove the volume and its data; nothing when there is none.

        Raises `InvalidStateError` when a box uses it.
        """

    def list(self) -> list[Volume]:
        """All volumes of this owner."""


@dataclass(frozen=True, slots=True)
class SnapshotSize:
    """In bytes: what the box had written on the disk that it began with, and the whole disk."""

    container_disk_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Settings:
    """What a box's commands run with, its image's part included."""

    env: Mapping[str, str]
    working_dir: str
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    user: str


@dataclass(frozen=True, slots=True)
class Export:
    """A disk on its way out: `tar` may be read once, in pieces of any size."""

    settings: Settings
    tar: Iterator[bytes]


class Disks(Protocol):
    """Keeps the disks of boxes, copies them, and carries them away.

    A disk is the file system of a box without what is mounted into it. Taken from a running box it shows one
    moment: the box is paused as long as that takes, and runs on. What a verb leaves behind when it fails is
    nothing. All of a box's disks go when the box is removed.
    """

    def snapshot(self, box: BoxRef, snapshot_id: str) -> SnapshotSize:
        """Keep the disk under an id that no other snapshot has; of a kept one: its size."""

    def remove_snapshot(self, box: BoxRef, snapshot_id: str) -> None:
        """Let go of a snapshot, also of one that the box was restored from; nothing when there is none."""

    def list_snapshots(self) -> list[tuple[str, str]]:
        """The box id and the id of every snapshot of this owner."""

    def restore(self, box: BoxRef, snapshot_id: str, generation: int, spec: BoxSpec) -> BoxState:
        """Replace the box by that generation of it, made from the snapshot and not started.

        `box` is the generation that goes; repeated, the verb gives the state of the new one. `spec.image`
        does not matter. Raises `InvalidStateError` when the box runs, `NotFoundError` when there is no such
        snapshot; the box is then as it was.
        """

    def clone(self, source: BoxRef, box: BoxRef, spec: BoxSpec) -> BoxState:
        """Make another box, not started, with the disk of `source`. `spec.image` does not matter."""

    def export(self, box: BoxRef) -> AbstractContextManager[Export]:
        """The disk as a tar archive, of the moment of entry whatever the box does afterwards."""

    def load(self, box: BoxRef, spec: BoxSpec, tar: Iterable[bytes]) -> BoxState:
        """Make a box, not started, with the disk in the archive; `spec.image` does not matter.

        The box comes to be only once all of `tar` is read; what `tar` raises is passed on. Raises
        `InvalidArgumentError` when it is no tar archive.
        """

    def tidy(self) -> None:
        """Remove what a verb left behind when its process was killed. Called while no verb is under way."""


class BoxRuntime(Protocol):
    """Keeps boxes. Each verb is idempotent: repeated, it finds its work done."""

    @property
    def images(self) -> Images: ...

    @property
    def volumes(self) -> Volumes: ...

    @property
    def disks(self) -> Disks: ...

    def ping(self) -> None:
        """Returns when the engine answers; raises `EngineError` otherwise."""

    def capacity(self) -> Capacity:
        """What the engine's host has, whoever uses it."""

    def life(self) -> str:
        """Names the engine's present life: another one after each restart of the engine or of its host, and
        the same as long as it lives."""

    def create(self, box: BoxRef, spec: BoxSpec) -> BoxState:
        """Make the box, not started; of an existing one: its state. Older generations are removed first.

        The image is fetched when missing. Raises `ImageError` when it cannot be had,
        `InvalidArgumentError` when the engine refuses the spec or the operator the host path,
        `UnsupportedError` when the operator has not allowed a capability, `InvalidStateError` when a volume
        is not there. What is mounted outlives the box.
        """

    def start(self, box: BoxRef) -> BoxState:
        """Run the main command; of a running box: its state.

        Returns only once the command is spawned. Raises `ExecutionError` when it cannot be,
        `InvalidStateError` when a port is taken or a volume gone, `InvalidArgumentError` when a host path is
        not allowed any more; the box can then be started again or removed.
        """

    def stop(self, box: BoxRef, timeout: float) -> BoxState:
        """SIGTERM, SIGKILL after `timeout` seconds; returns once stopped. Of a box at rest: its state."""

    def remove(self, box: BoxRef, force: bool) -> None:
        """Remove the box, its older generations and their disks; nothing when there is none.

        Raises `InvalidStateError` when it runs and `force` is not given.
        """

    def inspect(self, box: BoxRef) -> BoxState:
        """The state of the box, from the engine."""

    def measure(self, box: BoxRef) -> Usage:
        """What the box uses now, and how long its start took; also of a box at rest. The answer may be a
        second old."""

    def list_boxes(self) -> list[BoxState]:
        """All boxes of this owner."""

    def watch(self, on_change: Callable[[], None], stopping: threading.Event) -> None:
        """Call `on_change` whenever a box's state may have changed; blocks until `stopping` or `close`.

        Survives an engine that goes away and comes back, and reports that as a change.
        """

    def spawn(self, box: BoxRef, spec: ExecSpec) -> Process:
        """Start a command in a running box. Returns only once it is spawned.

        Raises `ExecutionError` when it cannot be ("... not found ..." when that is the reason),
        `StoppedError` when the box does not run, `InvalidStateError` when it is paused.
        """

    def readopt(self, box: BoxRef, handle: str) -> Process:
        """A command that was spawned in the box by a former life of this process, ended or not.

        What it has said is lost as far as that life had read it. What it says from then on is not, and its input
        is open, where the runtime could keep its connection; where it could not, `read` only waits for its end
        and `write` is an `UnsupportedError`. Raises `NotFoundError` when the runtime knows it no more.
        """

    def read_logs(self, box: BoxRef, tail: int | None, follow: bool) -> LogReader:
        """What the main command has said in all its runs, from the last `tail` lines on (None: from the
        first). With `follow`, what it says until the box is at rest, too."""

    def attach_main(self, box: BoxRef) -> Process:
        """The box's main command; of a box at rest: its next run, which begins with `start`."""

    def files(self, box: BoxRef) -> BoxFiles:
        """The box's files."""

    def close(self) -> None:
        """Let go of the engine. Boxes stay as they are."""


@dataclass(frozen=True, slots=True)
class BootTiming:
    """Where the time went on the way to a running box, in milliseconds; None: not measured.

    `box_spawn_ms` and `container_init_ms` are those of the last start.
    """

    image_prepare_ms: int | None = None  # find the image, or pull it
    box_config_ms: int | None = None  # make the box
    box_spawn_ms: int | None = None  # start it
    container_init_ms: int | None = None  # until its main command runs

    @property
    def total_ms(self) -> int | None:
        parts = (self.image_prepare_ms, self.box_config_ms, self.box_spawn_ms, self.container_init_ms)
        known = [part for part in parts if part is not None]
        return sum(known) if known else None


@dataclass(frozen=True, slots=True)
class Usage:
    """What a box uses now; a box at rest uses nothing. None: cannot be measured.

    `cpu_percent` is of one cpu, since the measurement before, or since the box's start when there was none.
    The network's bytes are since the box's start, seen from the box.
    """

    cpu_percent: float | None = 0.0
    memory_bytes: int | None = 0
    network_bytes_sent: int | None = None
    network_bytes_received: int | None = None
    boot: BootTiming = BootTiming()
