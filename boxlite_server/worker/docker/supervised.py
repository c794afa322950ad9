"""How commands get into boxes: through the supervisor of the box, or else by the engine's exec.

A supervisor runs as the first process of its box, in place of the engine's init. Into a box whose own first process has
to stay that, an exec of the engine brings it at the first command.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import StrEnum
from typing import Any

from ...errors import BoxliteError, EngineError, InvalidStateError, NotFoundError
from ...metrics import worker as metrics
from ..commands import ExecSpec, Process
from ..holder import Holder
from ..kernel.cgroup import Cgroup
from ..runtime import BoxFiles
from ..supervisor.command import UnheardError
from ..supervisor.files import SupervisedFiles
from ..supervisor.link import Link
from ..supervisor.links import Links
from ..supervisor.process import BeyondSupervisorError, SupervisedProcess, Surroundings, start_main
from ..supervisor.service import MAX_LARGE, FileService, Programs
from .config import MIB, SUPERVISOR, has_directory, is_supervised, own_command
from .engine import Engine, engine_errors
from .files import DockerFiles
from .main_command import awaits_main, ending_with
from .system_files import SystemFiles

_PATIENCE = 2.0  # seconds for the supervisor to dial, after its start or the worker's
_BRING_AGAIN = 60.0  # seconds between two execs that bring a supervisor into a box
_DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

log = logging.getLogger(__name__)


class SupervisorState(StrEnum):
    """What new boxes get of a supervisor."""

    ENABLED = "enabled"
    DISABLED = "disabled"  # the worker was started without supervisors
    ENGINE_BLIND = "engine_blind"  # the container engine cannot use a directory of the worker


class Supervisors:
    """The supervisors of a worker's boxes. `links`: None: there are none, and the engine's exec runs all commands."""

    def __init__(self, engine: Engine, links: Links | None, holder: Holder | None) -> None:
        self._engine = engine
        self._links = links
        self._holder = holder
        self._lock = threading.Lock()
        self._runs: dict[str, _Run] = {}  # by the name of the container
        self._by_engine: Counter[str] = Counter()  # commands that the engine started instead, by the container's name
        self._why_none = ""  # why new boxes get no supervisor; empty: they do

    # ---- the life of a box ----

    def directory(self, name: str) -> str:
        """The directory to mount into a new box; empty: the box gets no supervisor."""
        if self._links is None or self._why_none:
            return ""
        try:
            return str(self._links.prepare(name))
        except OSError as exc:
            log.warning("box %s gets no supervisor: %s", name, exc)
            return ""

    def is_invisible(self, directory: str, refusal: str) -> bool:
        """Whether the engine refused to make a box because it cannot see the directory. No box gets a supervisor from
        then on."""
        if not directory or directory not in refusal:
            return False
        self._why_none = f"the container engine cannot use a directory of the worker: {refusal}"
        log.warning("boxes get no supervisor: %s", self._why_none)
        return True

    def starting(self, container: Mapping[str, Any]) -> None:
        """Listen for the supervisor of a box that is about to start."""
        name = _name(container)
        if self._links is not None and has_directory(container):
            self._forget_run(name)
            with suppress(OSError):
                self._links.prepare(name)
                self._links.link(name)

    def started(self, container: Mapping[str, Any]) -> None:
        """Listen for the supervisor of a box that runs. `container`: as the engine describes it now."""
        if self._links is not None and has_directory(container):
            self._run_of(container)

    def awaits_main(self, name: str) -> bool:
        """Whether the supervisor of a box is connected and awaits the main command."""
        run = self.live(name)
        return run is not None and run.link.awaits_main

    def await_waiting(self, container: Mapping[str, Any]) -> bool:
        """Wait until the supervisor of a box that was just started is connected. Returns whether it awaits the main
        command."""
        run = self._run_of(container) if self._links is not None else None
        return run is not None and run.link.wait_live(_PATIENCE) and run.link.awaits_main

    def start_main(self, container: Mapping[str, Any]) -> None:
        """Have the main command started in a box that runs, if its supervisor awaits it. `container`: the engine's
        description with the main command. Raises `ExecutionError`, and `EngineError` when nobody knows whether the
        command was started."""
        run = self._run_of(container) if self._links is not None else None
        if run is None or not run.link.wait_live(_PATIENCE):
            raise EngineError("the box's supervisor, which is to start the main command, does not dial")
        run.box = _surroundings(self._engine, container)  # the box may have been claimed since
        if run.link.awaits_main:
            is_first, tty = not is_supervised(container), bool(container["Config"]["Tty"])
            start_main(run.link, run.box, own_command(container), tty=tty, as_first=is_first)

    def resized(self, container: Mapping[str, Any]) -> None:
        """Note that a box has another size. `container`: as the engine describes it now."""
        run = self._runs.get(_name(container))
        if run is not None:
            run.box = _surroundings(self._engine, container)

    def forget(self, name: str) -> None:
        """Remove what is kept for a box that is gone."""
        self._forget_run(name)
        self._by_engine.pop(name, None)
        if self._links is not None:
            self._links.forget(name)

    def note_by_engine(self, container: Mapping[str, Any], run: _Run | None) -> None:
        """Note that the engine has started a command in a box, whose `run` was reached or not."""
        with self._lock:
            self._by_engine[_name(container)] += 1
        if self._links is not None and has_directory(container):
            metrics.BY_ENGINE["unsupported" if run else "not_connected"].inc()
        else:
            metrics.BY_ENGINE["box_without" if self.state is SupervisorState.ENABLED else self.state.value].inc()

    @property
    def state(self) -> SupervisorState:
        if self._links is None:
            return SupervisorState.DISABLED
        return SupervisorState.ENGINE_BLIND if self._why_none else SupervisorState.ENABLED

    @property
    def connected(self) -> int:
        """How many boxes have a supervisor that is connected."""
        with self._lock:
            return sum(run.link.is_live for run in self._runs.values())

    def by_engine(self, name: str) -> int:
        """How many commands of a box the engine has started."""
        return self._by_engine[name]

    def _forget_run(self, name: str) -> None:
        with self._lock:
            self._runs.pop(name, None)

    def names(self) -> list[str]:
        """The containers for which something is kept."""
        return self._links.names() if self._links is not None else []

    def running(self, name: str) -> int:
        """How many commands of clients run under the supervisor of a box."""
        link = self._links.known(name) if self._links is not None else None
        return link.running() if link is not None else 0

    def kind(self, container: Mapping[str, Any]) -> str:
        """What runs the commands of a running box; see `BoxState.supervisor`."""
        if self._links is None:
            return "none: the worker was started without supervisors"
        if not has_directory(container):
            return f"none: {self._why_none or 'the box was made without a supervisor'}"
        run = self._runs.get(_name(container))
        if (
            run is not None
            and not run.link.is_live
            and time.monotonic() > run.deadline
            and (run.link.pid or run.bring_at)
        ):
            return "none: the supervisor does not dial"
        return "init" if is_supervised(container) else "exec"

    def close(self) -> None:
        if self._links is not None:
            self._links.close()

    # ---- commands ----

    def live(self, name: str) -> _Run | None:
        """The run of a box whose supervisor is connected, and which is not paused."""
        run = self._runs.get(name)
        return run if run is not None and run.link.is_live and not run.box.cgroup.is_frozen() else None

    def reached(self, container: Mapping[str, Any]) -> _Run | None:
        """The run of a box whose supervisor takes commands, once it has dialled or was brought in."""
        state = container["State"]
        if self._links is None or not has_directory(container) or not state["Running"] or state["Paused"]:
            return None
        run = self._run_of(container)
        if run is not None and not run.link.pid:
            with run.bringing:
                self._bring(run, container)
        if run is None or not run.link.wait_live(run.deadline - time.monotonic()):
            return None
        return run

    def spawn(self, run: _Run, spec: ExecSpec, on_begun: Callable[[Process], object]) -> Process | None:
        """Start a command, as `BoxRuntime.spawn` does. None: the supervisor cannot, and has started nothing."""
        try:
            return SupervisedProcess.spawn(run.link, run.box, spec, self._holder, on_begun)
        except (UnheardError, BeyondSupervisorError) as exc:
            log.debug("left to the engine's exec: %s", exc)
            return None

    def files(self, run: _Run, system_files: SystemFiles) -> BoxFiles:
        """The files of a box, by its file service where that can be."""
        if run.files is None:
            run.files = DockerFiles(self._engine, run.container, system_files)
        return SupervisedFiles(FileService(run.programs), run.files, run.box.memory_mib * MIB // 2 or MAX_LARGE)

    def readopt(self, container: Mapping[str, Any], handle: str) -> Process:
        """The command that a former worker process started. Raises as `BoxRuntime.readopt` does."""
        if self._links is None or not has_directory(container):
            raise NotFoundError("the command is one of another box")
        if not container["State"]["Running"]:
            raise InvalidStateError("the box stopped while its worker was restarted")
        run = self.reached(container)
        if run is None:
            raise EngineError("the box's supervisor does not answer")
        return SupervisedProcess.readopt(run.link, run.box, handle, self._holder)

    def _run_of(self, container: Mapping[str, Any]) -> _Run | None:
        """The present run of a box that runs, whose supervisor is expected from now on."""
        assert self._links is not None
        name, pid = _name(container), int(container["State"]["Pid"])
        with self._lock:
            run = self._runs.get(name)
            if run is None or run.init != pid:
                try:
                    self._links.prepare(name)
                    link = self._links.link(name)
                    programs = Programs(link, SUPERVISOR, self._links.later)
                    run = _Run(link, programs, pid, container, _surroundings(self._engine, container))
                except OSError as exc:
                    log.warning("the supervisor of %s cannot be heard: %s", name, exc)
                    return None
                self._runs[name] = run
        if is_supervised(container) or awaits_main(container):
            run.link.expect(pid)
        return run

    def _bring(self, run: _Run, container: Mapping[str, Any]) -> None:
        """Have the engine start the supervisor in a box whose first process is its own, or find it there."""
        if run.link.pid or is_supervised(container):
            return
        now = time.monotonic()
        try:
            with engine_errors("the supervisor cannot be brought into the box"):
                api = self._engine.api
                pid = next(filter(None, map(self._pid_of, container["ExecIDs"] or ())), 0)
                if not pid and now >= run.bring_at:
                    run.bring_at = now + _BRING_AGAIN
                    exec_id = api.exec_create(container["Id"], [SUPERVISOR], stdout=False, stderr=False)["Id"]
                    api.exec_start(exec_id, detach=True)
                    pid = self._pid_of(exec_id)
        except BoxliteError as exc:
            log.warning("box %s has no supervisor: %s", _name(container), exc)
            return
        if pid:
            run.link.expect(pid)
            run.deadline = time.monotonic() + _PATIENCE

    def _pid_of(self, exec_id: str) -> int:
        """The pid of a supervisor that runs under the engine's id; 0 for anything else."""
        try:
            with engine_errors("cannot inspect a command"):
                found = self._engine.api.exec_inspect(exec_id)
        except NotFoundError:
            return 0
        is_supervisor = found["ProcessConfig"]["entrypoint"] == SUPERVISOR and not found["ProcessConfig"]["arguments"]
        return int(found["Pid"]) if found["Running"] and is_supervisor else 0


class _Run:
    """One run of a box. `init`: the pid of its first process. `container`: as the engine described it then. `deadline`:
    until when commands wait for the supervisor to dial. `bring_at`: when another supervisor may be brought in."""

    def __init__(
        self, link: Link, programs: Programs, init: int, container: Mapping[str, Any], box: Surroundings
    ) -> None:
        self.link = link
        self.programs = programs
        self.init = init
        self.container = container
        self.box = box
        self.deadline = time.monotonic() + _PATIENCE
        self.bring_at = 0.0
        self.bringing = threading.Lock()
        self.files: DockerFiles | None = None  # by the engine


def _surroundings(engine: Engine, container: Mapping[str, Any]) -> Surroundings:
    config = container["Config"]
    return Surroundings(
        container_id=container["Id"],
        env=(_DEFAULT_PATH, f"HOSTNAME={config['Hostname']}", *(config["Env"] or ())),
        working_dir=config["WorkingDir"] or "",
        cgroup=Cgroup.of(container["State"]["Pid"]),
        memory_mib=container["HostConfig"].get("Memory", 0) // MIB,
        why_ended=lambda: ending_with(engine, container),
    )


def _name(container: Mapping[str, Any]) -> str:
    return str(container["Name"]).lstrip("/")
