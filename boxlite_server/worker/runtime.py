"""The seam between the worker and the engine that runs its boxes.

`BoxRuntime` keeps boxes, `Process` is one command in a box (`commands.py`), and `BoxFiles` are the files of a box
(`box_files.py`); both are named here again. All block and may be called from many threads. Nothing here knows an
engine: this module is all that a second implementation needs.

Every method about a box names it by `BoxRef`. The runtime refuses a generation lower than the one that it holds with
`InvalidStateError`; a box that it does not hold is a `NotFoundError`. It sees and touches only the boxes of its own
owner. It raises `EngineError` when the engine does not answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from .box_files import ArchiveStream as ArchiveStream
from .box_files import BoxFiles as BoxFiles
from .box_files import FileEntry as FileEntry
from .box_files import FileKind as FileKind
from .box_files import FilePart as FilePart
from .box_files import FileState as FileState
from .box_files import Listing as Listing
from .box_files import WholeArchive as WholeArchive
from .commands import GONE_EXIT_CODE as GONE_EXIT_CODE
from .commands import STDERR as STDERR
from .commands import STDOUT as STDOUT
from .commands import ExecSpec as ExecSpec
from .commands import LogReader as LogReader
from .commands import Process as Process

# ---- boxes ----


@dataclass(frozen=True, slots=True)
class Owner:
    """The worker, of one cluster, whose boxes a runtime keeps."""

    cluster_id: str
    worker_id: str


@dataclass(frozen=True, slots=True)
class BoxRef:
    """One life of a box's container. Generations count from 1."""

    box_id: str
    generation: int


@dataclass(frozen=True, slots=True)
class Mount:
    """Storage at `guest_path`: either a volume or a path of the host."""

    guest_path: str
    volume_id: str = ""
    host_path: str = ""
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class PortMapping:
    """A port of the box, published at an address of the host. With `host_port` 0, each start takes any free port."""

    guest_port: int
    host_port: int = 0
    protocol: str = "tcp"
    host_ip: str = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class BoxSpec:
    """What a box is made of. An empty string or tuple leaves the value to the image."""

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
    disk_size_gb: int = 0  # 0: no limit
    image_entrypoint: bool = False  # `entrypoint` is that of an image, which stayed behind when the box was exported
    stop_signal: str = ""
    security: str = ""  # a preset of isolation; empty: that of the worker


class BoxStatus(StrEnum):
    """What the engine says of a box. The values are those of the REST contract."""

    CONFIGURED = "configured"  # created, never started
    RUNNING = "running"
    STOPPED = "stopped"
    PAUSED = "paused"
    FAILED = "failed"  # the engine holds the box and could not run it


@dataclass(frozen=True, slots=True)
class BoxState:
    """A box as the engine sees it at one moment.

    `interrupted`: the box stopped because somebody other than this worker had the engine kill it, or because the
    engine itself ended. `out_of_memory`: the last run ended because the kernel killed a process of the box at the
    memory limit. The runtime knows both only of a stop that happened while it watched the engine.
    `reason`: why `stop` was called for a box that is stopped since, as `stop` was told.
    `supervisor`: what runs the commands of a running box, for people: `init`, a supervisor as the box's first process;
    `exec`, a supervisor that is brought in; or `none: REASON`. Empty: the runtime has no such thing, or was not asked.
    `unclaimed`: the box was prepared, and no `create` has claimed it.
    `image_id`: of the image that the box is made of, and `was_pulled`: whether that was missing; only `create` and
    `prepare` tell these, and of an image that was missing whether it `is_private`. `engine_life`: the engine's life at
    the start, or the one before if it ended meanwhile; only `start` and `prepare` tell it.
    """

    box: BoxRef
    status: BoxStatus
    pid: int | None = None  # of the main command on this host, while it runs
    exit_code: int | None = None  # of the main command's last run, once that has ended
    ports: tuple[PortMapping, ...] = ()  # published while the box runs, with the real host ports
    supervisor: str = ""
    commands: int = 0  # running besides the main one; only `inspect` counts them
    interrupted: bool = False
    out_of_memory: bool = False
    reason: str = ""
    unclaimed: bool = False
    image_id: str = ""
    was_pulled: bool = False
    is_private: bool = False
    engine_life: str = ""


@dataclass(frozen=True, slots=True)
class BootTiming:
    """How long each stage on the way to a running box took, in milliseconds; None: not measured.

    `box_spawn_ms` and `container_init_ms` are those of the last start.
    """

    image_prepare_ms: int | None = None  # find the image, or pull it
    box_config_ms: int | None = None  # make the box
    box_spawn_ms: int | None = None  # start the box
    container_init_ms: int | None = None  # from then until the main command runs

    @property
    def total_ms(self) -> int | None:
        """The sum of the stages that were measured; None when none was."""
        parts = (self.image_prepare_ms, self.box_config_ms, self.box_spawn_ms, self.container_init_ms)
        known = [part for part in parts if part is not None]
        return sum(known) if known else None


@dataclass(frozen=True, slots=True)
class Usage:
    """What a box uses now; a box at rest uses nothing. None: cannot be measured.

    `cpu_percent` is in percent of one cpu, since the former measurement or, without one, since the box's start.
    The network's bytes count from the box's start and are seen from the box. `memory_limit_kills`: how many processes
    the kernel has killed since the box's start because the box reached its memory limit. `commands_by_engine`: how many
    commands, since the worker's start, the box's supervisor could not start, so that the engine did.
    """

    cpu_percent: float | None = 0.0
    memory_bytes: int | None = 0
    network_bytes_sent: int | None = None
    network_bytes_received: int | None = None
    memory_limit_kills: int | None = None
    commands_by_engine: int | None = None
    boot: BootTiming = BootTiming()


@dataclass(frozen=True, slots=True)
class DiskUse:
    """In bytes: what a box has written to the disk that it began with, how much it may write (None: there is no limit),
    and what is in its volumes."""

    written: int
    limit: int | None
    volumes: int = 0


class DiskLimit(StrEnum):
    """What a worker makes of the `disk_size_gb` of a box. The values are those of the REST contract."""

    ENFORCED = "enforced"  # the engine's storage refuses what goes beyond
    WATCHED = "watched"  # the worker looks now and then, and stops a box that went beyond
    UNSUPPORTED = "unsupported"  # the worker refuses the box


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the engine's host has for boxes, and what this worker makes of disk limits."""

    cpus: int
    memory_mib: int
    engine_version: str
    disk_limit: DiskLimit = DiskLimit.UNSUPPORTED


# ---- images and volumes ----


@dataclass(frozen=True, slots=True)
class Image:
    """An image under one of its names."""

    reference: str  # the name in full
    image_id: str
    cached_at_ms: int  # Unix time
    size_bytes: int
    digests: tuple[str, ...] = ()  # by which registries know the image
    is_private: bool = False  # its registry gets credentials of the host
    was_pulled: bool = False  # `pull` has brought something that was missing


@dataclass(frozen=True, slots=True)
class PullProgress:
    """Bytes of all layers known so far; `total_bytes` grows while the engine finds more layers."""

    current_bytes: int
    total_bytes: int


class Images(Protocol):
    """The images that the engine has at hand. All who use the engine share them."""

    def list(self) -> list[Image]:
        """An entry for each name of each image, without the images that hold disks of boxes."""

    def pull(self, reference: str, *, ask_first: bool = False) -> Iterator[PullProgress | Image]:
        """Fetch the image anew. Yields the progress at least every second, and the image last.

        Raises `ImageError` when the image cannot be had, or `reference` is malformed; with `ask_first`
        `PrivateImageError`, and nothing else is done, when that takes credentials of the host.
        """

    def remove(self, reference: str) -> None:
        """Take this name off its image, and remove the image with its last name. A name that is not there is ignored.

        Raises `InvalidStateError` when a box uses the image.
        """


@dataclass(frozen=True, slots=True)
class Volume:
    """Storage that outlives boxes."""

    volume_id: str
    created_at_ms: int  # Unix time


class Volumes(Protocol):
    """The volumes of this owner."""

    def create(self, volume_id: str) -> Volume:
        """Make an empty volume, or return the existing one."""

    def remove(self, volume_id: str) -> None:
        """Remove the volume and its data. A volume that is not there is ignored.

        Raises `InvalidStateError` when a box uses the volume.
        """

    def list(self) -> list[Volume]:
        """All volumes of this owner."""


# ---- disks ----


@dataclass(frozen=True, slots=True)
class SnapshotSize:
    """In bytes: what the box had written to the disk that it began with, and the whole disk."""

    container_disk_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Settings:
    """What a box's commands run with, including what its image sets."""

    env: Mapping[str, str]
    working_dir: str
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    user: str
    stop_signal: str = ""  # empty: SIGTERM


@dataclass(frozen=True, slots=True)
class Export:
    """A disk to carry away. `tar` can be read once, in pieces of any size."""

    settings: Settings
    tar: Iterator[bytes]


class Disks(Protocol):
    """Snapshots, copies and exports of the disks of boxes.

    A disk is the file system of a box without what is mounted into it. A disk taken from a running box shows one
    moment: the box is paused meanwhile, and runs on. A method that fails leaves nothing behind. All disks of a box
    are removed with the box.
    """

    def snapshot(self, box: BoxRef, snapshot_id: str) -> SnapshotSize:
        """Keep the disk under an id that no other snapshot has. Repeated, it only returns the size."""

    def remove_snapshot(self, box: BoxRef, snapshot_id: str) -> None:
        """Remove a snapshot, even if the box was restored from it. A snapshot that is not there is ignored."""

    def list_snapshots(self) -> list[tuple[str, str]]:
        """(box id, snapshot id) of every snapshot of this owner."""

    def restore(self, box: BoxRef, snapshot_id: str, generation: int, spec: BoxSpec) -> BoxState:
        """Replace `box` by a box of the given generation, made from the snapshot and not started.

        Repeated, it returns the state of the new generation. `spec.image` is ignored. Raises `InvalidStateError`
        when the box runs, `NotFoundError` when there is no such snapshot; the box is unchanged then.
        """

    def clone(self, source: BoxRef, box: BoxRef, spec: BoxSpec) -> BoxState:
        """Make another box, not started, with a copy of the disk of `source`. `spec.image` is ignored."""

    def export(self, box: BoxRef) -> AbstractContextManager[Export]:
        """The disk as a tar archive. It shows the moment of entry, whatever the box does afterwards."""

    def load(self, box: BoxRef, spec: BoxSpec, tar: Iterable[bytes]) -> BoxState:
        """Make a box, not started, with the disk in the archive. `spec.image` is ignored.

        The box exists only once all of `tar` is read. An exception that `tar` raises is passed on. Raises
        `InvalidArgumentError` when `tar` is not a tar archive.
        """

    def tidy(self) -> None:
        """Remove what a method left behind when its process was killed. Called while no method is under way."""


# ---- the runtime ----


class BoxRuntime(Protocol):
    """Keeps boxes. Each method is idempotent: repeated, it finds its work done."""

    @property
    def images(self) -> Images: ...

    @property
    def volumes(self) -> Volumes: ...

    @property
    def disks(self) -> Disks: ...

    def ping(self) -> None:
        """Return when the engine answers; raise `EngineError` otherwise."""

    def capacity(self) -> Capacity:
        """What the engine's host has for boxes, whoever uses it."""

    def life(self) -> str:
        """An identifier of the engine's present life. It changes with each restart of the engine or of its host, and
        at no other time."""

    def create(self, box: BoxRef, spec: BoxSpec, *, ask_first: bool = False) -> BoxState:
        """Make the box, not started, or return the state of the existing one. Removes older generations first. A box
        that was prepared, and that nobody has claimed, becomes a box of this spec.

        Fetches the image when it is missing. Raises `ImageError` when the image cannot be had (with `ask_first`
        `PrivateImageError` when that takes credentials of the host, see `pull`),
        `InvalidArgumentError` when the engine refuses the spec or the operator the host path, `UnsupportedError`
        when the operator has not allowed a capability or the disk cannot be limited, `InvalidStateError` when a volume
        is missing. What is mounted outlives the box.
        """

    def prepare(self, box: BoxRef, spec: BoxSpec) -> BoxState:
        """Make the box like `create`, and do already what takes long of its start. The box counts as not started, and
        its main command is not: `start` runs that, in no time. Until then `create` can claim the box for another spec,
        in no time if the image, the size and all that cannot be changed are the same. Repeated, it prepares the box
        anew where the engine has ended it. Raises what `create` and `start` raise, and `UnsupportedError` where boxes
        have no supervisors.
        """

    def start(self, box: BoxRef) -> BoxState:
        """Run the main command, or return the state of a box that runs.

        Returns only once the command is spawned. Raises `ExecutionError` when the command cannot be spawned,
        `InvalidStateError` when a port is taken or a volume gone, `InvalidArgumentError` when a host path is
        not allowed any more; the box can then be started again or removed.
        """

    def stop(self, box: BoxRef, timeout: float, reason: str = "") -> BoxState:
        """Send the image's stop signal, usually SIGTERM, and SIGKILL after `timeout` seconds, or as soon as the signal
        can have no effect any more. Returns the state once the box has stopped.

        A `reason` stands in the state until the box is started again, also after a restart of the worker.
        """

    def resize(self, box: BoxRef, cpus: int, memory_mib: int) -> BoxState:
        """Give the box, running or at rest, another number of cpus and another limit of its memory. What was made to
        measure when the box was, such as `/dev/shm`, stays as it is.

        Raises `InvalidStateError` when the box uses more memory than it is to have, `InvalidArgumentError` for more
        cpus than there are, and `UnsupportedError` for another number of cpus where boxes are pinned to theirs.
        """

    def remove(self, box: BoxRef, force: bool) -> None:
        """Remove the box, its older generations and their disks. A box that is not there is ignored.

        Raises `InvalidStateError` when the box runs and `force` is not given.
        """

    def inspect(self, box: BoxRef) -> BoxState:
        """The state of the box, from the engine."""

    def measure(self, box: BoxRef) -> Usage:
        """What the box, running or at rest, uses now, and how long its start took. The answer may be a second old."""

    def watched_boxes(self) -> list[BoxRef]:
        """The running boxes of this owner whose disk limit is not enforced by the engine."""

    def disk_use(self, box: BoxRef) -> DiskUse:
        """What a box has written. Reads the whole of it, which may take minutes."""

    def disk_free(self) -> tuple[int, int]:
        """Bytes that are free on the disk that boxes write to, and the size of that disk."""

    def list_boxes(self) -> list[BoxState]:
        """All boxes of this owner."""

    def watch(self, on_change: Callable[[], None], stopping: threading.Event) -> None:
        """Call `on_change` whenever a box's state may have changed. Blocks until `stopping` or `close`.

        Survives an engine that goes away and comes back, and reports that as a change.
        """

    def spawn(
        self, box: BoxRef, spec: ExecSpec, on_begun: Callable[[Process], object] = lambda process: None
    ) -> Process:
        """Start a command in a running box. Returns only once the command is spawned. `on_begun` is called with the
        process once its start has begun, and again if another process takes its place.

        Raises `ExecutionError` when the command cannot be spawned (with "not found" in its text when that is the
        reason), `StoppedError` when the box does not run, with the end of its main command in the text unless it was
        stopped, `InvalidStateError` when the box is paused.
        """

    def readopt(self, box: BoxRef, handle: str) -> Process:
        """The command, ended or not, that a former worker process spawned in the box.

        Output that the former process had read is lost. If the runtime could keep the command's connection, all
        later output can be read and the command's input is open. If not, `read` only waits for the command's end
        and `write` raises `UnsupportedError`. Raises `NotFoundError` when the runtime does not know the command any
        more.
        """

    def read_logs(
        self, box: BoxRef, tail: int | None, follow: bool, *, since: float | None = None, timestamps: bool = False
    ) -> LogReader:
        """The main command's output of all runs, from the last `tail` lines on (None: from the first line). With
        `follow`, the reader goes on with new output until the box is at rest. `since`: only what was written at this
        Unix time or later. With `timestamps`, each line begins with its time in RFC 3339 and a blank."""

    def attach_main(self, box: BoxRef) -> Process:
        """The box's main command. Of a box at rest: its next run, which begins with `start`."""

    def signal(self, box: BoxRef, number: int) -> None:
        """Send a signal to the box's main command. Raises InvalidStateError when the box does not run."""

    def files(self, box: BoxRef) -> BoxFiles:
        """The box's files; the caller closes them."""

    def close(self) -> None:
        """Disconnect from the engine. Boxes stay as they are."""
