"""A `BoxRuntime` without an engine: a box is a directory, its commands are processes of this host."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from boxlite_server.errors import (
    EngineError,
    ExecutionError,
    InvalidArgumentError,
    InvalidStateError,
    NotFoundError,
    StoppedError,
)
from boxlite_server.formats import timestamp
from boxlite_server.worker.commands import ExecSpec, Process
from boxlite_server.worker.host_access import Policy
from boxlite_server.worker.runtime import (
    BootTiming,
    BoxRef,
    BoxSpec,
    BoxState,
    BoxStatus,
    Capacity,
    DiskLimit,
    DiskUse,
    PortMapping,
    Usage,
)
from support.fake_disks import FakeDisks
from support.fake_files import FakeFiles
from support.fake_process import FakeAdopted, FakeProcess
from support.fake_storage import FakeImages, FakePorts, FakeVolumes

IMAGE = "fake:latest"
BARE_IMAGE = "fake-bare:latest"
PULLABLE_IMAGE = "fake-registry:5000/extra:latest"
_KEEP_ALIVE = ("tail", "-f", "/dev/null")
_GB = 1024**3


@dataclass
class FakeBox:
    ref: BoxRef
    spec: BoxSpec
    directory: Path
    status: BoxStatus = BoxStatus.CONFIGURED
    main: FakeProcess | None = None
    exit_code: int | None = None
    interrupted: bool = False
    reason: str = ""  # of the last stop
    unclaimed: bool = False  # it was prepared, and is nobody's
    said: list[tuple[int, bytes]] = field(default_factory=list)
    logged: list[tuple[float, int, bytes]] = field(default_factory=list)  # time, stream and line, of all runs
    attached: list[FakeMain] = field(default_factory=list)
    at_rest: threading.Event = field(default_factory=threading.Event)  # of a main command that has run
    ports: FakePorts = field(default_factory=FakePorts)
    published: tuple[PortMapping, ...] = ()

    @property
    def cmd(self) -> tuple[str, ...]:
        if self.spec.cmd or self.spec.entrypoint:
            return self.spec.cmd
        return ("sh",) if self.spec.image == IMAGE else _KEEP_ALIVE

    @property
    def state(self) -> BoxState:
        if self.status is BoxStatus.RUNNING and self.main is not None:
            return BoxState(self.ref, self.status, pid=self.main.pid, ports=self.published)
        return BoxState(
            self.ref,
            self.status,
            exit_code=self.exit_code,
            interrupted=self.interrupted,
            reason=self.reason,
            unclaimed=self.unclaimed,
        )


class FakeMain:
    """The main command of a box, in its present or next run."""

    memory_limit_hit = 0

    def __init__(self, box: FakeBox) -> None:
        self.box = box
        self.process = box.main
        self.pieces: queue.Queue[tuple[int, bytes] | None] = queue.Queue()
        self.code: int | None = None
        self.handle = self.lost = ""
        self.tty = box.spec.tty
        self._early = b""
        self._early_close = False

    def begin(self, process: FakeProcess) -> None:
        self.process = process
        if self._early:
            process.write(self._early, 5)
        if self._early_close:
            process.close_input(5)

    def read(self) -> tuple[int, bytes] | None:
        return self.pieces.get()

    def write(self, data: bytes, timeout: float) -> int:
        if self.process is None:
            self._early += data
            return len(data)
        return self.process.write(data, timeout)

    def close_input(self, timeout: float) -> bool:
        if self.process is None:
            self._early_close = True
            return True
        return self.process.close_input(timeout)

    def signal(self, number: int) -> None:
        self._running().signal(number)

    def kill(self) -> None:
        if self.process is None or self.code is not None:
            self.close()
        else:
            self.process.kill()

    def resize(self, cols: int, rows: int) -> None:
        self._running().resize(cols, rows)

    def wait(self) -> int:
        return 137 if self.code is None else self.code

    def close(self) -> None:
        self.pieces.put(None)

    def _running(self) -> FakeProcess:
        if self.process is None:
            raise InvalidStateError("the main command does not run")
        return self.process


class FakeLog:
    """What a box has said, line by line."""

    def __init__(self, box: FakeBox, tail: int | None, follow: bool, since: float | None, timestamps: bool) -> None:
        self._box, self._follow, self._timestamps, self._closed = box, follow, timestamps, False
        self._next = 0 if tail is None else max(len(box.logged) - tail, 0)
        while since is not None and self._next < len(box.logged) and box.logged[self._next][0] < since:
            self._next += 1

    def read(self) -> tuple[int, bytes] | None:
        while not self._closed:
            at_rest = self._box.status is not BoxStatus.RUNNING
            if self._next < len(self._box.logged):
                self._next += 1
                at, stream, line = self._box.logged[self._next - 1]
                return stream, f"{timestamp(at)} ".encode() + line if self._timestamps else line
            if at_rest or not self._follow:
                return None
            time.sleep(0.005)
        return None

    def close(self) -> None:
        self._closed = True


class FakeRuntime:
    """Refuses whatever an engine refuses. While `down` is set, every verb fails as if the engine did not answer."""

    def __init__(self, directory: Path | None = None, policy: Policy | None = None, *, gb: int = _GB) -> None:
        self._gb = gb  # bytes in a GB of a disk limit
        self.disk_bytes = 1 << 50  # of the disk that boxes write to
        self._policy = policy or Policy()
        self.images = FakeImages((IMAGE, BARE_IMAGE), (PULLABLE_IMAGE,), self._specs)
        self.volumes = FakeVolumes(self._specs)
        self._directory = Path(directory or tempfile.mkdtemp(prefix="fake-boxes-"))
        self._boxes: dict[str, FakeBox] = {}
        self._commands: dict[str, list[FakeProcess]] = {}
        self._lock = threading.RLock()
        self._changes: queue.Queue[None] = queue.Queue()
        self.down = False
        self.lives = 1
        self.cpus = os.cpu_count() or 1
        self.disks = FakeDisks(self)

    def ping(self) -> None:
        if self.down:
            raise EngineError("ping: the container engine does not answer")

    def capacity(self) -> Capacity:
        self.ping()
        return Capacity(cpus=self.cpus, memory_mib=4096, engine_version="fake", disk_limit=DiskLimit.WATCHED)

    def life(self) -> str:
        self.ping()
        return f"life-{self.lives}"

    def spec_of(self, box_id: str) -> BoxSpec:
        """What a box was made of."""
        return self._boxes[box_id].spec

    def restart(self) -> None:
        """Restart the engine, which kills all boxes that run."""
        with self._lock:
            running = [box for box in self._boxes.values() if box.main is not None]
        for box in running:
            self.interrupt(box.ref)
        with self._lock:
            self.lives += 1
            self._commands = {box_id: [] for box_id in self._commands}
        self._changes.put(None)

    def interrupt(self, box: BoxRef) -> None:
        """Kill the box as if somebody else had told the engine to."""
        with self._lock:
            found = self._find(box)
            main = found.main
            found.interrupted = main is not None
        if main is not None:
            main.kill()
            found.at_rest.wait()

    def create(self, box: BoxRef, spec: BoxSpec, *, ask_first: bool = False) -> BoxState:
        self.ping()
        with self._lock:
            found = self._boxes.get(box.box_id)
            if found is not None:
                self._refuse_stale(box, found)
                if found.ref == box and not found.unclaimed:
                    return found.state
            spec = self._policy.admit(spec)
            self.volumes.check(spec)
            was_pulled = self.images.need(spec.image)
            if spec.cpus > self.cpus:
                raise InvalidArgumentError(f"{spec.cpus} cpus: there are only {self.cpus}")
        # The lock is not held here: another thread records the box's end.
        if found is not None:
            self._delete(found)
        with self._lock:
            made = self._make(box, spec, self._new_directory())
            return replace(made, image_id=self.images.id_of(spec.image), was_pulled=was_pulled)

    def _new_directory(self) -> Path:
        directory = Path(tempfile.mkdtemp(dir=self._directory))
        directory.chmod(0o777)
        return directory

    def _make(self, box: BoxRef, spec: BoxSpec, directory: Path) -> BoxState:
        self._boxes[box.box_id] = FakeBox(box, spec, directory)
        self._commands[box.box_id] = []
        self._changes.put(None)
        return self._boxes[box.box_id].state

    def prepare(self, box: BoxRef, spec: BoxSpec) -> BoxState:
        """Only make the box: a start takes no time here anyway."""
        if (found := self._boxes.get(box.box_id)) is None:
            self.create(box, spec)
            found = self._boxes[box.box_id]
            found.unclaimed = True
        state = replace(found.state, image_id=self.images.id_of(spec.image))
        return replace(state, engine_life=self.life()) if found.unclaimed else found.state

    def resize(self, box: BoxRef, cpus: int, memory_mib: int) -> BoxState:
        with self._lock:
            found = self._find(box)
            if cpus > self.cpus:
                raise InvalidArgumentError(f"{cpus} cpus: there are only {self.cpus}")
            found.spec = replace(found.spec, cpus=cpus, memory_mib=memory_mib)
            return found.state

    def start(self, box: BoxRef) -> BoxState:
        life = self.life()
        return replace(self._start(box), engine_life=life)

    def _start(self, box: BoxRef) -> BoxState:
        with self._lock:
            found = self._find(box)
            if found.status is BoxStatus.RUNNING:
                return found.state
            found.unclaimed = False
            spec = found.spec
            running = [other.spec for other in self._boxes.values() if other.status is BoxStatus.RUNNING]
            writable = {m.host_path for other in running for m in other.mounts if m.host_path and not m.read_only}
            self._policy.recheck([mount.host_path for mount in spec.mounts if mount.host_path], writable)
            self.volumes.check(spec)
            published = found.ports.open(spec.ports)
            found.said = []
            exec_spec = ExecSpec((*spec.entrypoint, *found.cmd), spec.env, spec.working_dir, spec.user, spec.tty)
            try:
                process = self._spawn(exec_spec, found.directory, {})
            except ExecutionError as exc:
                found.ports.close()
                found.status, found.exit_code = BoxStatus.FAILED, 127
                for main in found.attached:
                    main.code = 127
                    main.close()
                found.attached = []
                raise ExecutionError(f"the main command of box {box.box_id}: {exc.message}") from exc
            found.at_rest.clear()
            found.main, found.status, found.exit_code = process, BoxStatus.RUNNING, None
            found.interrupted, found.reason = False, ""
            found.published = published
            for main in found.attached:
                main.begin(process)
            self._follow(found, process)
            self._changes.put(None)
            return found.state

    def _spawn(self, spec: ExecSpec, directory: Path, env: dict[str, str]) -> FakeProcess:
        return FakeProcess(spec, directory, env)

    def _follow(self, box: FakeBox, process: FakeProcess) -> None:
        """Run `_run` in a thread of its own."""
        threading.Thread(target=self._run, args=(box, process), daemon=True).start()

    def _run(self, box: FakeBox, process: FakeProcess) -> None:
        while (piece := process.read()) is not None:
            with self._lock:
                box.said.append(piece)
                box.logged += [(time.time(), piece[0], line) for line in piece[1].splitlines(keepends=True)]
                for main in box.attached:
                    main.pieces.put(piece)
        self._ended(box, process.wait())

    def _ended(self, box: FakeBox, code: int) -> None:
        with self._lock:
            for command in self._commands[box.ref.box_id]:
                command.kill()
            box.status, box.exit_code = BoxStatus.STOPPED, code
            box.ports.close()
            for main in box.attached:
                main.code = code
                main.close()
            box.attached, box.main = [], None
            box.at_rest.set()
        self._changes.put(None)

    def stop(self, box: BoxRef, timeout: float, reason: str = "") -> BoxState:
        with self._lock:
            found = self._find(box)
            main = found.main
            if main is not None:
                found.reason = reason
        if main is not None:
            with contextlib.suppress(InvalidStateError):
                main.signal(signal.SIGTERM)
            if not main.ends_within(timeout):
                main.kill()
            found.at_rest.wait()
        return found.state

    def remove(self, box: BoxRef, force: bool) -> None:
        with self._lock:
            found = self._boxes.get(box.box_id)
            if found is not None:
                self._refuse_stale(box, found)
                if found.status is BoxStatus.RUNNING and not force:
                    raise InvalidStateError(f"box {box.box_id} is running; stop it first, or use force")
        if found is not None:
            self._delete(found)
        self.disks.forget(box.box_id)

    def _delete(self, box: FakeBox) -> None:
        if box.main is not None:
            box.main.kill()
            box.at_rest.wait()
        with self._lock:
            for main in box.attached:
                main.close()
            del self._boxes[box.ref.box_id]
        shutil.rmtree(box.directory)
        self._changes.put(None)

    def inspect(self, box: BoxRef) -> BoxState:
        with self._lock:
            state = self._find(box).state
            return replace(state, commands=sum(one.exit_code is None for one in self._commands[box.box_id]))

    def measure(self, box: BoxRef) -> Usage:
        if self.inspect(box).status is not BoxStatus.RUNNING:
            return Usage(boot=BootTiming(image_prepare_ms=0, box_config_ms=1))
        return Usage(1.5, 1 << 20, boot=BootTiming(0, 1, 2, 3))

    def list_boxes(self) -> list[BoxState]:
        self.ping()
        with self._lock:
            return [box.state for box in self._boxes.values()]

    def watched_boxes(self) -> list[BoxRef]:
        self.ping()
        with self._lock:
            boxes = list(self._boxes.values())
        return [box.ref for box in boxes if box.spec.disk_size_gb and box.status is BoxStatus.RUNNING]

    def disk_use(self, box: BoxRef) -> DiskUse:
        with self._lock:
            found = self._find(box)
        written = sum(path.lstat().st_blocks * 512 for path in found.directory.rglob("*"))
        return DiskUse(written, found.spec.disk_size_gb * self._gb or None)

    def disk_free(self) -> tuple[int, int]:
        with self._lock:
            boxes = list(self._boxes.values())
        return self.disk_bytes - sum(self.disk_use(box.ref).written for box in boxes), self.disk_bytes

    def watch(self, on_change: Callable[[], None], stopping: threading.Event) -> None:
        while not stopping.is_set():
            with contextlib.suppress(queue.Empty):
                self._changes.get(timeout=0.05)
                on_change()

    def spawn(
        self, box: BoxRef, spec: ExecSpec, on_begun: Callable[[Process], object] = lambda process: None
    ) -> Process:
        with self._lock:
            found = self._find(box)
            if found.status is not BoxStatus.RUNNING:
                command = " ".join((*found.spec.entrypoint, *found.cmd))
                end = f"its main command ({command}) ended with exit code {found.exit_code}"
                raise StoppedError(f"box {box.box_id} is not running: {end}")
            own = found.spec
            full = replace(spec, working_dir=spec.working_dir or own.working_dir, user=spec.user or own.user)
            process = self._spawn(full, found.directory, dict(own.env))
            self._commands[box.box_id].append(process)
        on_begun(process)
        return process

    def readopt(self, box: BoxRef, handle: str) -> Process:
        with self._lock:
            self._find(box)
            for process in self._commands[box.box_id]:
                if process.handle == handle:
                    return FakeAdopted(process)
        raise NotFoundError(f"command {handle} is not known")

    def read_logs(
        self, box: BoxRef, tail: int | None, follow: bool, *, since: float | None = None, timestamps: bool = False
    ) -> FakeLog:
        with self._lock:
            return FakeLog(self._find(box), tail, follow, since, timestamps)

    def attach_main(self, box: BoxRef) -> Process:
        with self._lock:
            found = self._find(box)
            main = FakeMain(found)
            if found.status is BoxStatus.RUNNING:
                for piece in found.said:
                    main.pieces.put(piece)
            found.attached.append(main)
            return main

    def signal(self, box: BoxRef, number: int) -> None:
        with self._lock:
            found = self._find(box)
        if found.main is None or found.status is not BoxStatus.RUNNING:
            raise InvalidStateError("the main command does not run")
        found.main.signal(number)

    def files(self, box: BoxRef) -> FakeFiles:
        with self._lock:
            found = self._find(box)
            return FakeFiles(found.directory, found.spec.user)

    def close(self) -> None:
        for box in list(self._boxes.values()):
            self._delete(box)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _specs(self) -> list[BoxSpec]:
        return [box.spec for box in self._boxes.values()]

    def _find(self, box: BoxRef) -> FakeBox:
        self.ping()
        found = self._boxes.get(box.box_id)
        if found is None or found.ref.generation < box.generation:
            raise NotFoundError(f"box {box.box_id} (generation {box.generation}) is not on this worker")
        self._refuse_stale(box, found)
        return found

    @staticmethod
    def _refuse_stale(box: BoxRef, found: FakeBox) -> None:
        if box.generation < found.ref.generation:
            raise InvalidStateError(f"box {box.box_id}: generation {box.generation} is over")
