"""Boxes as containers of Docker Engine."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import (
    GO_ON,
    BoxliteError,
    EngineError,
    ExecutionError,
    ImageError,
    InvalidStateError,
    LocalImageError,
    NotFoundError,
    StoppedError,
)
from ...metrics import worker as metrics
from ..commands import DEFAULT_COLS, DEFAULT_ROWS
from ..holder import Holder
from ..host_access import Policy
from ..kernel import platforms
from ..kernel.limits import refuse_without_pids
from ..prepared import Prepared, Record, Stage
from ..runtime import (
    BoxFiles,
    BoxRef,
    BoxSpec,
    BoxState,
    BoxStatus,
    Capacity,
    DiskUse,
    ExecSpec,
    FileKind,
    LogReader,
    Owner,
    Process,
    Usage,
)
from ..stop_reasons import StopReasons
from ..supervisor.links import Links
from ..supervisor.process import HANDLE_PREFIX
from . import main_command
from .config import (
    MIB,
    command_errors,
    host_paths,
    image_of,
    made_of,
    main_of,
    not_executed,
    port_errors,
    spec_errors,
    volume_ids,
    was_told,
    with_settings,
    writable_paths,
)
from .containers import Containers, state_of
from .engine import Engine, act_on_all, engine_errors
from .exec import ExecProcess, readopt
from .files import DockerFiles
from .gate import Gate
from .labels import BOX_LABEL, DISK_LIMIT_LABEL, container_name, image_labels
from .logs import DockerLog
from .main_command import MainProcess
from .network import BoxNetwork, Reach
from .stats import Meter, layer_bytes, volume_bytes
from .storage.bases import MAX_LAYERS, Bases
from .storage.copies import Copies
from .storage.disks import DockerDisks
from .storage.images import DockerImages
from .storage.quota import GB, Quota
from .storage.registries import Registries
from .storage.tags import Tags
from .storage.volumes import DockerVolumes
from .supervised import Supervisors
from .system_files import SystemFiles
from .watch import Watch

log = logging.getLogger(__name__)

_SPAWN_PATIENCE = 0.5  # seconds; the first process needs milliseconds
_FIRST_LOOK, _LAST_LOOK = 0.001, 0.01  # seconds between two looks at the first process
_NOT_EXECUTED_CODES = (1, 126, 127, 255)  # exit codes of a first process that could not execute the main command


class DockerRuntime:
    """The `BoxRuntime` of Docker Engine.

    `owner` is called at every use, since a worker learns its cluster only when it registers; it may raise.
    `policy`: what boxes may have of the host. `holder`: keeps connections to commands beyond the end of this process.
    `stop_reasons`: the file in which reasons of stops outlive this process; None: they do not. `enforce_disk_limit`:
    refuse boxes whose disk limit the engine cannot enforce. `gb`: bytes in a GB of a disk limit.
    `max_layers`: that the disk of a new box may have; the layers of a disk with more are merged.
    `records`: the directory for what boxes have written to system files (see `system_files.py`); None: it is lost when
    they are started again. `prepared`: the directory in which prepared boxes outlive this process; None: they do not.
    `reach`: what boxes with a network may reach; None: all that the host reaches.
    `links`: to the supervisors in boxes, which run their commands; None: the engine's exec does.
    """

    def __init__(
        self,
        owner: Callable[[], Owner],
        url: str | None = None,
        policy: Policy | None = None,
        holder: Holder | None = None,
        *,
        stop_reasons: Path | None = None,
        records: Path | None = None,
        links: Links | None = None,
        prepared: Path | None = None,
        enforce_disk_limit: bool = False,
        reach: Reach | None = None,
        gb: int = GB,
        max_layers: int = MAX_LAYERS,
    ) -> None:
        self._holder = holder
        self._system_files = SystemFiles(records)
        self._policy = policy or Policy()
        self._engine = Engine(url)
        self._watch = Watch(self._engine, owner)
        self._meter = Meter(self._engine)
        self._starting_with_paths = threading.Lock()
        copies = Copies(self._engine)
        self._bases = Bases(self._engine, copies, owner, max_layers)
        tags = Tags(self._engine, self._watch.known_life)
        self.images = DockerImages(self._engine, self._bases, Registries(self._policy.registries), tags)
        self.volumes = DockerVolumes(self._engine, owner)
        self._quota = Quota(self._engine, enforce=enforce_disk_limit, gb=gb)
        self._reasons = StopReasons(stop_reasons)
        self._supervisors = Supervisors(self._engine, links, holder)
        self._prepared = Prepared(prepared)
        self.network = BoxNetwork(self._engine, owner, reach or Reach(filtered=False))
        self._containers = Containers(
            self._engine,
            owner,
            self._policy,
            self.volumes,
            self._watch,
            self._quota,
            self._reasons,
            self._supervisors,
            self._prepared,
            self.network,
        )
        self.disks = DockerDisks(self._containers, self._bases, copies, self._engine, owner)

    # ---- the engine ----

    def ping(self) -> None:
        with engine_errors("ping"):
            self._engine.api.ping()

    def capacity(self) -> Capacity:
        with engine_errors("cannot ask the engine for its capacity"):
            info = self._engine.api.info()
        return Capacity(
            cpus=len(self._policy.cpus) or info["NCPU"],
            memory_mib=info["MemTotal"] // MIB,
            engine_version=info["ServerVersion"],
            disk_limit=self._quota.kind,
        )

    @property
    def starts(self) -> Gate:
        """Where boxes wait to be made or started."""
        return self._containers.starts

    @property
    def supervisors(self) -> Supervisors:
        return self._supervisors

    def life(self) -> str:
        return self._engine.life()

    def tidy(self) -> None:
        """Finish what was left undone when a former process was killed. Called while no call is under way."""
        self.disks.tidy()
        for name in {*self._system_files.names(), *self._supervisors.names(), *self._prepared.names()}:
            try:
                with engine_errors("cannot inspect a box"):
                    container = self._containers.as_told(self._engine.api.inspect_container(name))
            except NotFoundError:
                self._system_files.forget(name)
                self._supervisors.forget(name)
                self._prepared.forget(name)
                continue
            if container["State"]["Running"]:
                self._supervisors.started(container)
                if self._system_files.is_pending(container):
                    self._system_files.after_start(container)
                if was_told(container) and name not in self._prepared:  # its start may have been cut off
                    with suppress(BoxliteError):  # the box is at rest then
                        self._start_main(container)

    def close(self) -> None:
        self._supervisors.close()
        self.images.close()
        self._engine.close()

    # ---- boxes ----

    def create(self, box: BoxRef, spec: BoxSpec, *, ask_first: bool = False) -> BoxState:
        record = self._prepared.unclaimed(container_name(box))
        if record is not None:
            if self._is_claimed(box, spec, record):
                return BoxState(box, BoxStatus.CONFIGURED)
            log.info("prepared box %s does not fit its claim, or its supervisor is lost: it is made anew", box.box_id)
            self._containers.delete(box, force=True)
        return self._create(box, spec, ask_first=ask_first)

    def _is_claimed(self, box: BoxRef, spec: BoxSpec, record: Record) -> bool:
        """Make a prepared box one of this spec. Returns False, and leaves the box as it is, where that cannot be."""
        name, main = container_name(box), main_of(spec, image_of(record.image))
        if made_of(spec) != record.made_of:
            return False
        if not self._supervisors.awaits_main(name):  # not yet, after a restart of the worker
            container = self._containers.get_as_is(box)
            if not container["State"]["Running"] or not self._supervisors.await_waiting(container):
                return False
        if main.working_dir != record.image.working_dir:  # the engine would make it if it were missing
            found = self.files(box).stat(main.working_dir)
            if found is None or found.kind is not FileKind.DIRECTORY:
                return False
        self._prepared.put(name, replace(record, stage=Stage.CLAIMED, main=main))
        return True

    def _create(self, box: BoxRef, spec: BoxSpec, *, is_asked_for: bool = True, ask_first: bool = False) -> BoxState:
        """See `create`. `is_asked_for`: the box is somebody's; any other awaits its main command."""
        held = self._containers.to_replace(box)
        if box in held:
            return self._containers.inspect(box)
        self._containers.admit(spec)  # also here, so that a refusal comes before the pull
        began = time.monotonic()
        image, was_pulled = self.images.get(spec.image, ask_first=ask_first)
        if BOX_LABEL in image_labels(image):
            raise ImageError(f"image {spec.image!r} is the disk of a box; restore, clone or export that box")
        if (foreign := self._foreign(image)) and platforms.has_no_emulator():
            raise LocalImageError(f"image {spec.image!r} cannot run here: {foreign}")
        base = self._bases.of_image(image)
        prepared = time.monotonic()
        if not is_asked_for:  # before the container, so that none is there that nobody can tell its main command
            image_main = main_of(BoxSpec(spec.image), base.get("Config") or {})
            main = main_of(spec, base.get("Config") or {})
            self._prepared.put(container_name(box), Record(Stage.PREPARED, made_of(spec), image_main, main))
        # The older generations go only now, so that a pull that fails costs the box nothing.
        state = self._containers.create(box, spec, base, replacing=held, awaits_main=not is_asked_for)
        self._meter.booted(box, image_prepare=prepared - began, box_config=time.monotonic() - prepared)
        is_private = was_pulled and self.images.is_private(spec.image)
        return replace(state, image_id=image["Id"], was_pulled=was_pulled, is_private=is_private)

    def prepare(self, box: BoxRef, spec: BoxSpec) -> BoxState:
        state = self._create(box, spec, is_asked_for=False)
        if self._prepared.unclaimed(container_name(box)) is None:
            return state
        life = self._start(box).engine_life
        container = self._containers.get_as_is(box)
        if not self._supervisors.await_waiting(container):
            raise EngineError(f"box {box.box_id} cannot be prepared: its supervisor does not dial")
        self._containers.remember(box, container)
        return replace(state, unclaimed=True, engine_life=life)

    def start(self, box: BoxRef) -> BoxState:
        self._prepared.start(container_name(box))
        try:
            return self._start(box)
        except (EngineError, ExecutionError) as exc:
            if "exec format error" not in exc.message.lower():
                raise
            with engine_errors("cannot inspect the box's image"):
                image = self._engine.api.inspect_image(self._containers.get(box)["Image"])
            raise ExecutionError("; ".join(filter(None, (exc.message, self._foreign(image))))) from exc

    def _foreign(self, image: Mapping[str, Any]) -> str:
        """That the image is built for another architecture than the engine's; empty if it is not."""
        built_for = image.get("Architecture") or ""
        if not platforms.is_foreign(built_for, self._engine.architecture):
            return ""
        return f"the image is built for {built_for}, and this worker's engine runs {self._engine.architecture}"

    def _start(self, box: BoxRef) -> BoxState:
        life = self._watch.life()
        container = self._containers.to_start(box)
        state = self._containers.seen(box, container)
        if state.status is BoxStatus.PAUSED:
            raise InvalidStateError(f"box {box.box_id} is paused; resume it first")
        began, called = int(time.time()), time.monotonic()
        if state.status is BoxStatus.RUNNING:
            if self._system_files.is_pending(container):
                self._system_files.after_start(container)
            self._watch.forget(container["Id"])  # the box may have been a prepared one until now
            if not was_told(container):
                return replace(state, engine_life=life)
            state = self._settled(box, container)
        else:
            self.volumes.check(volume_ids(container))
            with self._containers.starts.place():
                container = self._run(box, container)
                spawned = time.monotonic()
                state = self._settled(box, container)
            self._meter.booted(box, box_spawn=spawned - called, container_init=time.monotonic() - spawned)
        if state.exit_code in _NOT_EXECUTED_CODES:
            # Either the command ended with this code, or the first process could not execute it.
            with engine_errors("cannot read the log"):
                said = self._engine.api.logs(container_name(box), tail=5, since=began)
            if reason := main_command.not_executed(said.decode(errors="replace")):
                raise not_executed(box.box_id, reason)
        return replace(state, engine_life=life)

    def _run(self, box: BoxRef, container: dict[str, Any]) -> dict[str, Any]:
        """Have the engine start the box's container. Returns the engine's description of it afterwards."""
        refuse_without_pids()
        self.network.before_start(container)
        self._system_files.before_start(container)
        self._supervisors.starting(container)
        self._engine.refuse_when_ending()
        self._watch.starting(container["Id"])
        with (
            self._paths_kept(host_paths(container)),
            spec_errors(),
            port_errors(box.box_id),
            command_errors(box.box_id),
            engine_errors(f"box {box.box_id} cannot be started"),
        ):
            self._engine.api.start(container_name(box))
        self._engine.size_terminal(container, DEFAULT_COLS, DEFAULT_ROWS)
        self._reasons.drop(box)
        container = self._containers.get_as_is(box)
        self.network.after_start(container)
        self._system_files.after_start(container)
        self._supervisors.started(container)
        return container

    def _start_main(self, container: Mapping[str, Any]) -> None:
        """Have the supervisor of a box start the main command that it awaits. Where it cannot, the box is ended."""
        if main_command.has_executed(container):
            return
        try:
            self._supervisors.start_main(container)
        except BoxliteError:
            if main_command.ending_with(self._engine, container):
                return  # the command could not be executed, or has ended already
            with suppress(BoxliteError), engine_errors("cannot end a box"):
                self._engine.api.kill(container["Id"])
            raise

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

    def _settled(self, box: BoxRef, container: Mapping[str, Any]) -> BoxState:
        """The state once the first process has executed the main command, or could not. `container`: as the engine
        describes it after its start."""
        if was_told(container):
            if container_name(box) in self._prepared:
                return self._containers.seen(box, container)
            self._start_main(container)
        pause, deadline = _FIRST_LOOK, time.monotonic() + _SPAWN_PATIENCE
        while container["State"]["Running"]:
            if main_command.has_executed(container) or time.monotonic() > deadline:
                return self._containers.seen(box, container)
            time.sleep(pause)
            pause = min(2 * pause, _LAST_LOOK)
            if not main_command.is_visible(container) or time.monotonic() > deadline:
                container = self._containers.get_as_is(box)
        return self._containers.inspect(box)

    def stop(self, box: BoxRef, timeout: float, reason: str = "") -> BoxState:
        container = self._containers.get(box)
        state = state_of(box, container)
        if state.status in (BoxStatus.RUNNING, BoxStatus.PAUSED):
            self._watch.stopping(container["Id"])
            if reason:
                self._reasons.put(box, reason)
            with engine_errors(f"box {box.box_id} cannot be stopped"):
                if state.status is BoxStatus.RUNNING:
                    timeout = main_command.ask_to_stop(self._engine, container, timeout)
                self._engine.api.stop(container_name(box), timeout=math.ceil(max(timeout, 0)))
            state = self._containers.inspect(box)
        return state

    def resize(self, box: BoxRef, cpus: int, memory_mib: int) -> BoxState:
        container = self._containers.get(box)
        used = self._meter.measure(box, container).memory_bytes or 0
        self._containers.resize(box, container, cpus, memory_mib, used)
        self._supervisors.resized(self._containers.get_as_is(box))
        return self._containers.inspect(box)

    def remove(self, box: BoxRef, force: bool) -> None:
        def delete(found: BoxRef) -> None:
            self._containers.delete(found, force)
            self._system_files.forget(container_name(found))

        act_on_all(delete, self._containers.up_to(box))
        self._meter.forget(box)
        self._containers.forget(box.box_id)
        self._reasons.drop(box)
        self.disks.forget(box.box_id)

    def inspect(self, box: BoxRef) -> BoxState:
        return self._containers.inspect(box, counting=True)

    def list_boxes(self) -> list[BoxState]:
        return self._containers.states()

    def measure(self, box: BoxRef) -> Usage:
        used = self._meter.measure(box, self._containers.get(box))
        return replace(used, commands_by_engine=self._supervisors.by_engine(container_name(box)))

    def watched_boxes(self) -> list[BoxRef]:
        return list(self._containers.watched())

    def disk_use(self, box: BoxRef) -> DiskUse:
        container = self._containers.get(box)
        limit = container["Config"]["Labels"].get(DISK_LIMIT_LABEL, "")
        written = layer_bytes(self._engine, container)
        return DiskUse(written, int(limit) if limit.isdecimal() else None, volume_bytes(container))

    def disk_free(self) -> tuple[int, int]:
        return self._engine.disk_free()

    def files(self, box: BoxRef) -> BoxFiles:
        run = None if container_name(box) in self._prepared else self._supervisors.live(container_name(box))
        if run is None:
            container = self._containers.get(box)
            if (run := self._supervisors.reached(container)) is None:
                return DockerFiles(self._engine, container, self._system_files)
        return self._supervisors.files(run, self._system_files)

    def watch(self, on_change: Callable[[], None], stopping: threading.Event) -> None:
        self._watch.run(on_change, stopping)

    # ---- commands ----

    def spawn(
        self, box: BoxRef, spec: ExecSpec, on_begun: Callable[[Process], object] = lambda process: None
    ) -> Process:
        if container_name(box) in self._prepared:
            raise StoppedError(f"box {box.box_id} is not running: it was not started yet")
        began = time.perf_counter()
        run = self._supervisors.live(container_name(box))
        container = self._containers.get(box) if run is None else None
        try:
            if container is not None:
                run = self._supervisors.reached(container)
            if run is not None and (process := self._supervisors.spawn(run, spec, on_begun)) is not None:
                metrics.START_SECONDS["supervisor"].observe(time.perf_counter() - began)
                return process
            container = container or self._containers.get(box)
            spec = with_settings(spec, container)
            on_begun(by_engine := ExecProcess.spawn(self._engine, container, box.box_id, spec, self._holder))
            metrics.START_SECONDS["engine"].observe(time.perf_counter() - began)
            self._supervisors.note_by_engine(container, run)
            return by_engine
        except (StoppedError, ExecutionError, EngineError) as exc:
            # When the box ends meanwhile, the engine says so in many ways.
            container = self._containers.get(box)
            end = main_command.ending_with(self._engine, container)
            if not end or self._watch.was_stopped(container["Id"]):
                raise
            raise StoppedError(f"box {box.box_id} is not running: {end}; if it always does, {GO_ON}") from exc

    def readopt(self, box: BoxRef, handle: str) -> Process:
        if handle.startswith(HANDLE_PREFIX):
            return self._supervisors.readopt(self._containers.get(box), handle)
        return readopt(self._engine, self._containers.get(box), handle, self._watch, self._holder)

    def attach_main(self, box: BoxRef) -> Process:
        container = self._containers.get(box)
        if container["State"]["Paused"]:
            raise InvalidStateError(f"box {box.box_id} is paused; resume it first")
        return MainProcess(self._engine, container, self._watch, self._holder)

    def signal(self, box: BoxRef, number: int) -> None:
        main_command.send(self._engine, self._watch, self._containers.get(box), number)

    def read_logs(
        self, box: BoxRef, tail: int | None, follow: bool, *, since: float | None = None, timestamps: bool = False
    ) -> LogReader:
        return DockerLog(self._engine, self._containers.get(box), tail, follow, since=since, timestamps=timestamps)
