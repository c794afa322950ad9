"""Boxes as containers of Docker Engine."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import (
    EngineError,
    ExecutionError,
    ImageError,
    InvalidArgumentError,
    InvalidStateError,
    NotFoundError,
)
from ..commands import ExecSpec, LogReader, Process
from ..host_access import Policy
from ..runtime import BoxFiles, BoxRef, BoxSpec, BoxState, BoxStatus, Capacity, Owner, Usage
from .config import bindings, engine_mounts, host_paths, port_errors, published, volume_ids, writable_paths
from .disks import DockerDisks
from .engine import Engine, engine_errors, engine_life
from .exec import ExecProcess, readopt
from .files import DockerFiles
from .gate import Gate
from .holder import Holder
from .images import DockerImages
from .labels import BOX_LABEL, CLUSTER_LABEL, GENERATION_LABEL, WORKER_LABEL, container_name, owned_by
from .logs import DockerLog, unix_time
from .main_command import MainProcess
from .stats import Meter
from .volumes import DockerVolumes
from .watch import Watch

MIB = 1024 * 1024
MAX_STARTS = 8  # boxes that the engine makes or starts at once; more of them only hold each other up
MAX_WAITING_STARTS = 64
START_PATIENCE = 60.0  # seconds
_PIDS_LIMIT = 4096
_KEEP_ALIVE = ["tail", "-f", "/dev/null"]  # for an image that names no command of its own
_SPAWN_PATIENCE = 0.5  # seconds; the init process needs milliseconds
_INIT_NAMES = ("docker-init", "tini")


class DockerRuntime:
    """The `BoxRuntime` of Docker Engine.

    `owner` is asked at every call, since a worker learns its cluster only when it registers; it may raise.
    `policy`: what boxes may have of the host. `holder`: where connections to commands outlive this process.
    """

    def __init__(
        self,
        owner: Callable[[], Owner],
        url: str | None = None,
        policy: Policy | None = None,
        holder: Holder | None = None,
    ) -> None:
        self._holder = holder
        self._owner = owner
        self._policy = policy or Policy()
        self._engine = Engine(url)
        self.images = DockerImages(self._engine)
        self.volumes = DockerVolumes(self._engine, owner)
        self._watch = Watch(self._engine, owner)
        self._starts = Gate(MAX_STARTS, MAX_WAITING_STARTS, START_PATIENCE, "too many starts of boxes")
        self._starting_with_paths = threading.Lock()
        self._meter = Meter(self._engine)
        self.disks = DockerDisks(self, self._engine, owner)

    # ---- the engine ----

    def ping(self) -> None:
        with engine_errors("ping"):
            self._engine.api.ping()

    def capacity(self) -> Capacity:
        with engine_errors("cannot ask the engine for its capacity"):
            info = self._engine.api.info()
        return Capacity(cpus=info["NCPU"], memory_mib=info["MemTotal"] // MIB, engine_version=info["ServerVersion"])

    def life(self) -> str:
        return engine_life(self._engine)

    def close(self) -> None:
        self.images.close()
        self._engine.close()

    # ---- boxes ----

    def create(self, box: BoxRef, spec: BoxSpec) -> BoxState:
        older = []
        for found in self.generations(box.box_id):
            if found.generation > box.generation:
                raise _stale(box, found.generation)
            if found.generation == box.generation:
                return self.inspect(box)
            older.append(found)
        self._admitted(spec)  # before a pull
        began = time.monotonic()
        image = self.images.get(spec.image)
        if BOX_LABEL in ((image.get("Config") or {}).get("Labels") or {}):
            raise ImageError(f"image {spec.image!r} is the disk of a box; restore, clone or export that box")
        prepared = time.monotonic()
        # Only now, so that a pull that fails costs the box nothing.
        with self._starts.place():
            for found in older:
                self.delete(found, force=True)
            self._create_container(box, spec, image)
        self._meter.booted(box, image_prepare=prepared - began, box_config=time.monotonic() - prepared)
        return self.inspect(box)

    def _admitted(self, spec: BoxSpec) -> BoxSpec:
        """The spec with the host's paths resolved, if it may have of the host what it asks for."""
        self.volumes.check(mount.volume_id for mount in spec.mounts if mount.volume_id)
        return self._policy.admit(spec)

    def create_container(self, box: BoxRef, spec: BoxSpec, image: dict[str, Any]) -> None:
        with self._starts.place():
            self._create_container(box, spec, image)

    def _create_container(self, box: BoxRef, spec: BoxSpec, image: dict[str, Any]) -> None:
        spec = self._admitted(spec)
        api = self._engine.api
        defaults = image.get("Config") or {}
        owner = self._owner()
        command = list(spec.cmd)
        if not (spec.cmd or spec.entrypoint or defaults.get("Cmd") or defaults.get("Entrypoint")):
            command = _KEEP_ALIVE
        host = api.create_host_config(
            init=True,
            nano_cpus=spec.cpus * 1_000_000_000 or None,
            mem_limit=spec.memory_mib * MIB or None,
            memswap_limit=spec.memory_mib * MIB or None,
            pids_limit=_PIDS_LIMIT,
            network_mode="bridge" if spec.network_enabled else "none",
            log_config={"type": "json-file", "config": {"max-size": "10m", "max-file": "2"}},
        )
        host["Mounts"] = engine_mounts(spec.mounts)
        host["PortBindings"] = bindings(spec.ports)
        host["CapAdd"], host["CapDrop"] = list(spec.cap_add), list(spec.cap_drop)
        config = api.create_container_config(
            spec.image,
            command or None,
            entrypoint=list(spec.entrypoint) or None,
            environment=dict(spec.env),
            working_dir=spec.working_dir or None,
            user=spec.user or None,
            hostname=spec.hostname or None,
            tty=spec.tty,
            # Open input keeps a box whose command is a shell alive. The one who feeds it ends it: `once`
            # is what makes the engine pass on an end of input at all.
            stdin_open=True,
            host_config=host,
            labels={
                CLUSTER_LABEL: owner.cluster_id,
                WORKER_LABEL: owner.worker_id,
                BOX_LABEL: box.box_id,
                GENERATION_LABEL: str(box.generation),
            },
        )
        config["StdinOnce"] = True
        config["ExposedPorts"] = {key: {} for key in host["PortBindings"]}
        with _refusals(), engine_errors(f"box {box.box_id} cannot be created"):
            api.create_container_from_config(config, container_name(box))

    def start(self, box: BoxRef) -> BoxState:
        state = self.inspect(box)
        if state.status is BoxStatus.RUNNING:
            return state
        if state.status is BoxStatus.PAUSED:
            raise InvalidStateError(f"box {box.box_id} is paused; resume it first")
        container = self.container(box)
        self.volumes.check(volume_ids(container))
        what = f"box {box.box_id} cannot be started"
        with self._starts.place():
            began, called = int(time.time()), time.monotonic()
            self._watch.starting(container["Id"])
            with self._paths_kept(host_paths(container)), _refusals(), port_errors(box.box_id), engine_errors(what):
                self._engine.api.start(container_name(box))
            spawned = time.monotonic()
            state = self._settled(box)
        self._meter.booted(box, box_spawn=spawned - called, container_init=time.monotonic() - spawned)
        if state.exit_code in (126, 127):
            # Either the command said so itself, or the init process could not execute it.
            text = self._init_failure(box, began)
            if text:
                kind = "not found in the box: " if "No such file" in text else "cannot be executed: "
                raise ExecutionError(f"the main command of box {box.box_id} was {kind}{text}")
        return state

    @contextmanager
    def _paths_kept(self, paths: list[str]) -> Iterator[None]:
        """While the engine mounts these paths of the host, no box is started that could replace them."""
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
            state = self.inspect(box)
            if state.pid is None or _has_executed(state.pid) or time.monotonic() > deadline:
                return state
            time.sleep(0.01)

    def _init_failure(self, box: BoxRef, since: int) -> str:
        with engine_errors("cannot read the log"):
            said = self._engine.api.logs(container_name(box), tail=5, since=since)
        lines = [line for line in said.decode(errors="replace").splitlines() if line.startswith("[FATAL tini")]
        return lines[-1].partition("] ")[2].strip() if lines else ""

    def stop(self, box: BoxRef, timeout: float) -> BoxState:
        container = self.container(box)
        state = _state(box, container)
        if state.status in (BoxStatus.RUNNING, BoxStatus.PAUSED):
            self._watch.stopping(container["Id"])
            with engine_errors(f"box {box.box_id} cannot be stopped"):
                self._engine.api.stop(container_name(box), timeout=math.ceil(max(timeout, 0)))
            state = self.inspect(box)
        return state

    def remove(self, box: BoxRef, force: bool) -> None:
        generations = self.generations(box.box_id)
        for found in generations:
            if found.generation > box.generation:
                raise _stale(box, found.generation)
        for found in generations:
            self.delete(found, force)
        self._meter.forget(box)
        self.disks.forget(box.box_id)

    def inspect(self, box: BoxRef) -> BoxState:
        container = self.container(box)
        state = _state(box, container)
        if state.status is not BoxStatus.STOPPED:
            return state
        finished = unix_time(container["State"]["FinishedAt"])
        return replace(state, interrupted=self._watch.interrupted(container["Id"], finished))

    def measure(self, box: BoxRef) -> Usage:
        return self._meter.measure(box, self.container(box))

    def list_boxes(self) -> list[BoxState]:
        states = []
        for entry in self._ours():
            box = BoxRef(entry["Labels"][BOX_LABEL], int(entry["Labels"][GENERATION_LABEL]))
            state = self._watch.known(entry["Id"])
            if state is None:
                marker = self._watch.marker()
                try:
                    state = self.inspect(box)
                except (NotFoundError, InvalidStateError):
                    continue  # gone, or followed by a later generation, between the two questions
                self._watch.remember(entry["Id"], state, marker)
            states.append(state)
        return states

    def container(self, box: BoxRef) -> dict[str, Any]:
        """The engine's description of the box's container; refuses what is stale or not ours."""
        try:
            with engine_errors("cannot inspect the box"):
                container = dict(self._engine.api.inspect_container(container_name(box)))
        except NotFoundError:
            container = None
        if container is not None:
            owner, labels = self._owner(), container["Config"]["Labels"] or {}
            if (labels.get(CLUSTER_LABEL), labels.get(WORKER_LABEL)) == (owner.cluster_id, owner.worker_id):
                return container
        for found in self.generations(box.box_id):
            if found.generation > box.generation:
                raise _stale(box, found.generation)
        raise NotFoundError(f"box {box.box_id} (generation {box.generation}) is not on this worker")

    def generations(self, box_id: str) -> list[BoxRef]:
        return [BoxRef(box_id, int(entry["Labels"][GENERATION_LABEL])) for entry in self._ours(f"{BOX_LABEL}={box_id}")]

    def _ours(self, *labels: str) -> list[dict[str, Any]]:
        mine = [*owned_by(self._owner()), *labels]
        with engine_errors("cannot list the boxes"):
            return list(self._engine.api.containers(all=True, filters={"label": mine}))

    def delete(self, box: BoxRef, force: bool) -> None:
        try:
            with engine_errors(f"box {box.box_id} cannot be removed"):
                self._engine.api.remove_container(container_name(box), v=True, force=force)
        except NotFoundError:
            pass
        except InvalidStateError as exc:
            if "already in progress" not in exc.message:
                raise InvalidStateError(f"box {box.box_id} is running; stop it first, or use force") from exc
            self._await_absence(box)

    def _await_absence(self, box: BoxRef) -> None:
        for _ in range(100):
            if box not in self.generations(box.box_id):
                return
            time.sleep(0.1)
        raise EngineError(f"box {box.box_id} is still being removed; try again")

    # ---- commands ----

    def spawn(self, box: BoxRef, spec: ExecSpec) -> Process:
        container = self.container(box)
        return ExecProcess.spawn(self._engine, container["Id"], box.box_id, spec, self._holder)

    def readopt(self, box: BoxRef, handle: str) -> Process:
        return readopt(self._engine, self.container(box)["Id"], handle, self._watch, self._holder)

    def read_logs(self, box: BoxRef, tail: int | None, follow: bool) -> LogReader:
        return DockerLog(self._engine, self.container(box), tail, follow)

    def attach_main(self, box: BoxRef) -> Process:
        container = self.container(box)
        if container["State"]["Paused"]:
            raise InvalidStateError(f"box {box.box_id} is paused; resume it first")
        return MainProcess(self._engine, container, self._watch, self._holder)

    # ---- files ----

    def files(self, box: BoxRef) -> BoxFiles:
        return DockerFiles(self._engine, self.container(box))

    # ---- changes ----

    def watch(self, on_change: Callable[[], None], stopping: threading.Event) -> None:
        self._watch.run(on_change, stopping)


def _stale(box: BoxRef, newest: int) -> InvalidStateError:
    return InvalidStateError(
        f"box {box.box_id}: generation {box.generation} is over, the worker holds generation {newest}"
    )


def _state(box: BoxRef, container: dict[str, Any]) -> BoxState:
    state = container["State"]
    if state["Paused"]:
        return BoxState(box, BoxStatus.PAUSED, pid=state["Pid"] or None, ports=published(container))
    if state["Running"] or state["Restarting"]:
        commands, ports = len(container["ExecIDs"] or ()), published(container)
        return BoxState(box, BoxStatus.RUNNING, pid=state["Pid"] or None, ports=ports, commands=commands)
    if state["Status"] == "created":
        if state["Error"]:
            return BoxState(box, BoxStatus.FAILED, exit_code=state["ExitCode"])
        return BoxState(box, BoxStatus.CONFIGURED)
    if state["Dead"]:
        return BoxState(box, BoxStatus.FAILED, exit_code=state["ExitCode"])
    return BoxState(box, BoxStatus.STOPPED, exit_code=state["ExitCode"])


@contextmanager
def _refusals() -> Iterator[None]:
    """The engine reports a bad user or directory as a fault of its own; it is the user's."""
    try:
        yield
    except EngineError as exc:
        texts = ("unable to find user", "unable to find group", "is not a directory", "cannot mkdir")
        if any(text in exc.message.lower() for text in texts):
            raise InvalidArgumentError(exc.message) from exc
        raise


def _has_executed(init_pid: int) -> bool:
    """Whether the child of a container's init process runs the command, not init's own program any more."""
    try:
        children = Path(f"/proc/{init_pid}/task/{init_pid}/children").read_text().split()
        names = [Path(f"/proc/{child}/comm").read_text().strip() for child in children]
    except OSError:
        return False  # not readable here, or gone meanwhile: the next look at the state tells
    return bool(names) and names[0] not in _INIT_NAMES
