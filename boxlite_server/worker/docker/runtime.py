"""Boxes as containers of Docker Engine."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import ExecutionError, ImageError, InvalidStateError, NotFoundError
from ..host_access import Policy
from ..runtime import (
    BoxFiles,
    BoxRef,
    BoxSpec,
    BoxState,
    BoxStatus,
    Capacity,
    ExecSpec,
    LogReader,
    Owner,
    Process,
    Usage,
)
from .config import MIB, host_paths, port_errors, spec_errors, volume_ids, writable_paths
from .containers import Containers, state_of
from .disks import DockerDisks
from .engine import Engine, act_on_all, engine_errors
from .exec import ExecProcess, readopt
from .files import DockerFiles
from .holder import Holder
from .images import DockerImages
from .labels import BOX_LABEL, container_name, image_labels
from .logs import DockerLog
from .main_command import MainProcess
from .stats import Meter
from .system_files import SystemFiles
from .volumes import DockerVolumes
from .watch import Watch

_SPAWN_PATIENCE = 0.5  # seconds; the init process needs milliseconds
_INIT_NAMES = ("docker-init", "tini")


class DockerRuntime:
    """The `BoxRuntime` of Docker Engine.

    `owner` is called at every use, since a worker learns its cluster only when it registers; it may raise.
    `policy`: what boxes may have of the host. `holder`: keeps connections to commands beyond the end of this process.
    `records`: the directory for what boxes have written to system files (see `system_files.py`); None: it is lost when
    they are started again.
    """

    def __init__(
        self,
        owner: Callable[[], Owner],
        url: str | None = None,
        policy: Policy | None = None,
        holder: Holder | None = None,
        records: Path | None = None,
    ) -> None:
        self._holder = holder
        self._system_files = SystemFiles(records)
        self._policy = policy or Policy()
        self._engine = Engine(url)
        self._watch = Watch(self._engine, owner)
        self._meter = Meter(self._engine)
        self._starting_with_paths = threading.Lock()
        self.images = DockerImages(self._engine)
        self.volumes = DockerVolumes(self._engine, owner)
        self._containers = Containers(self._engine, owner, self._policy, self.volumes, self._watch)
        self.disks = DockerDisks(self._containers, self._engine, owner)

    # ---- the engine ----

    def ping(self) -> None:
        with engine_errors("ping"):
            self._engine.api.ping()

    def capacity(self) -> Capacity:
        with engine_errors("cannot ask the engine for its capacity"):
            info = self._engine.api.info()
        return Capacity(cpus=info["NCPU"], memory_mib=info["MemTotal"] // MIB, engine_version=info["ServerVersion"])

    def life(self) -> str:
        return self._engine.life()

    def tidy(self) -> None:
        """Finish what was left undone when a former process was killed. Called while no call is under way."""
        self.disks.tidy()
        for name in self._system_files.names():
            try:
                with engine_errors("cannot inspect a box"):
                    container = self._engine.api.inspect_container(name)
            except NotFoundError:
                self._system_files.forget(name)
                continue
            if container["State"]["Running"] and self._system_files.is_pending(container):
                self._system_files.after_start(container)

    def close(self) -> None:
        self.images.close()
        self._engine.close()

    # ---- boxes ----

    def create(self, box: BoxRef, spec: BoxSpec) -> BoxState:
        held = self._containers.up_to(box)
        if box in held:
            return self._containers.inspect(box)
        self._containers.admit(spec)  # also here, so that a refusal comes before the pull
        began = time.monotonic()
        image = self.images.get(spec.image)
        if BOX_LABEL in image_labels(image):
            raise ImageError(f"image {spec.image!r} is the disk of a box; restore, clone or export that box")
        prepared = time.monotonic()
        # The older generations go only now, so that a pull that fails costs the box nothing.
        state = self._containers.create(box, spec, image, replacing=held)
        self._meter.booted(box, image_prepare=prepared - began, box_config=time.monotonic() - prepared)
        return state

    def start(self, box: BoxRef) -> BoxState:
        container = self._containers.get(box)
        state = state_of(box, container)
        if state.status is BoxStatus.RUNNING:
            if self._system_files.is_pending(container):
                self._system_files.after_start(container)
            return state
        if state.status is BoxStatus.PAUSED:
            raise InvalidStateError(f"box {box.box_id} is paused; resume it first")
        self.volumes.check(volume_ids(container))
        what = f"box {box.box_id} cannot be started"
        with self._containers.starts.place():
            self._system_files.before_start(container)
            began, called = int(time.time()), time.monotonic()
            self._watch.starting(container["Id"])
            with self._paths_kept(host_paths(container)), spec_errors(), port_errors(box.box_id), engine_errors(what):
                self._engine.api.start(container_name(box))
            spawned = time.monotonic()
            self._system_files.after_start(self._containers.get(box))
            state = self._settled(box)
        self._meter.booted(box, box_spawn=spawned - called, container_init=time.monotonic() - spawned)
        if state.exit_code in (126, 127):
            # Either the command ended with this code, or the init process could not execute it.
            text = self._init_failure(box, began)
            if text:
                kind = "not found in the box: " if "No such file" in text else "cannot be executed: "
                raise ExecutionError(f"the main command of box {box.box_id} was {kind}{text}")
        return state

    @contextmanager
    def _paths_kept(self, paths: list[str]) -> Iterator[None]:
        """Check these paths of the host and, in the `with` block, let the engine mount them.

        Meanwhile no other box with paths of the host is started, since it could replace these.
        """
        if not paths:
            yield
            return
        with self._starting_with_paths:
            with engine_errors("cannot list the containers"):
                running = self._engine.api.containers()
            self._policy.recheck(paths, writable_paths(running))
            yield

    def _settled(self, box: BoxRef) -> BoxState:
        """The state once the init process has executed the main command, or could not."""
        deadline = time.monotonic() + _SPAWN_PATIENCE
        while True:
            state = self._containers.inspect(box)
            if state.pid is None or _has_executed(state.pid) or time.monotonic() > deadline:
                return state
            time.sleep(0.01)

    def _init_failure(self, box: BoxRef, since: int) -> str:
        """What the init process said against the main command from the Unix time `since` on; empty: nothing."""
        with engine_errors("cannot read the log"):
            said = self._engine.api.logs(container_name(box), tail=5, since=since)
        lines = [line for line in said.decode(errors="replace").splitlines() if line.startswith("[FATAL tini")]
        return lines[-1].partition("] ")[2].strip() if lines else ""

    def stop(self, box: BoxRef, timeout: float) -> BoxState:
        container = self._containers.get(box)
        state = state_of(box, container)
        if state.status in (BoxStatus.RUNNING, BoxStatus.PAUSED):
            self._watch.stopping(container["Id"])
            with engine_errors(f"box {box.box_id} cannot be stopped"):
                self._engine.api.stop(container_name(box), timeout=math.ceil(max(timeout, 0)))
            state = self._containers.inspect(box)
        return state

    def remove(self, box: BoxRef, force: bool) -> None:
        def delete(found: BoxRef) -> None:
            self._containers.delete(found, force)
            self._system_files.forget(container_name(found))

        act_on_all(delete, self._containers.up_to(box))
        self._meter.forget(box)
        self.disks.forget(box.box_id)

    def inspect(self, box: BoxRef) -> BoxState:
        return self._containers.inspect(box)

    def list_boxes(self) -> list[BoxState]:
        return self._containers.states()

    def measure(self, box: BoxRef) -> Usage:
        return self._meter.measure(box, self._containers.get(box))

    def files(self, box: BoxRef) -> BoxFiles:
        return DockerFiles(self._engine, self._containers.get(box), self._system_files)

    def watch(self, on_change: Callable[[], None], stopping: threading.Event) -> None:
        self._watch.run(on_change, stopping)

    # ---- commands ----

    def spawn(self, box: BoxRef, spec: ExecSpec) -> Process:
        container = self._containers.get(box)
        return ExecProcess.spawn(self._engine, container["Id"], box.box_id, spec, self._holder)

    def readopt(self, box: BoxRef, handle: str) -> Process:
        return readopt(self._engine, self._containers.get(box)["Id"], handle, self._watch, self._holder)

    def attach_main(self, box: BoxRef) -> Process:
        container = self._containers.get(box)
        if container["State"]["Paused"]:
            raise InvalidStateError(f"box {box.box_id} is paused; resume it first")
        return MainProcess(self._engine, container, self._watch, self._holder)

    def read_logs(self, box: BoxRef, tail: int | None, follow: bool) -> LogReader:
        return DockerLog(self._engine, self._containers.get(box), tail, follow)


def _has_executed(init_pid: int) -> bool:
    """Whether the child of a container's init process runs the command, and no longer the program of init."""
    try:
        children = Path(f"/proc/{init_pid}/task/{init_pid}/children").read_text().split()
        names = [Path(f"/proc/{child}/comm").read_text().strip() for child in children]
    except OSError:
        return False  # the files cannot be read here, or the process has ended: the next look at the state tells
    return bool(names) and names[0] not in _INIT_NAMES
