"""The containers of a worker's boxes: one for each generation of a box."""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ...errors import EngineError, InvalidArgumentError, InvalidStateError, NotFoundError, UnsupportedError
from ..host_access import Policy
from ..prepared import Prepared
from ..runtime import BoxRef, BoxSpec, BoxState, BoxStatus, Owner
from ..stop_reasons import StopReasons
from ..supervisor.links import MOUNT
from .config import MIB, as_told, container_config, published, size_config, spec_errors
from .engine import Engine, engine_errors
from .gate import Gate
from .isolation import Isolator
from .labels import BOX_LABEL, CPUS_LABEL, DISK_LIMIT_LABEL, GENERATION_LABEL, container_name, owned_by, owner_labels
from .logs import unix_time
from .network import BoxNetwork
from .storage.quota import Quota
from .storage.volumes import DockerVolumes
from .supervised import Supervisors
from .watch import Watch

MAX_STARTS = 8  # boxes that the engine makes or starts at once; more would only hold each other up
MAX_WAITING_STARTS = 512
START_PATIENCE = 50.0  # seconds; the coordinator waits for 60, and so it hears why a box was not started
_CREATED = {"Status": "created", "Pid": 0, "Error": "", **dict.fromkeys(("Running", "Paused", "Restarting"), False)}
_MADE = 1000  # containers that are remembered until their first start


class Containers:
    """Makes, finds and removes the containers of one owner's boxes.

    `starts` bounds how many boxes are made or started at once. A method that names a box raises `InvalidStateError`
    when the worker holds a later generation of it.
    """

    def __init__(
        self,
        engine: Engine,
        owner: Callable[[], Owner],
        policy: Policy,
        volumes: DockerVolumes,
        watch: Watch,
        quota: Quota,
        reasons: StopReasons,
        supervisors: Supervisors,
        prepared: Prepared,
        network: BoxNetwork,
    ) -> None:
        self._engine = engine
        self._owner = owner
        self._policy = policy
        self._isolator = Isolator(engine, policy)
        self._volumes = volumes
        self._watch = watch
        self._quota = quota
        self._reasons = reasons
        self._supervisors = supervisors
        self._prepared = prepared
        self._network = network
        self._pinning = threading.Lock()
        self._lock = threading.Lock()
        self._ids: set[str] = set()  # of boxes that may have containers
        self._was_asked = False  # whether these are all that the engine had at some time
        self._made: OrderedDict[BoxRef, dict[str, Any]] = OrderedDict()  # and neither started nor removed yet
        self.starts = Gate(MAX_STARTS, MAX_WAITING_STARTS, START_PATIENCE, "too many starts of boxes")

    # ---- making ----

    def admit(self, spec: BoxSpec) -> BoxSpec:
        """The spec with the host's paths resolved. Raises as `BoxRuntime.create` does where the box may not have of
        the host what the spec asks for, or a volume is missing."""
        for mount in spec.mounts:
            if f"{mount.guest_path.rstrip('/')}/".startswith(f"{MOUNT}/"):
                raise InvalidArgumentError(
                    f"{mount.guest_path!r} cannot be mounted: the supervisor of the box is there"
                )
        self._volumes.check(mount.volume_id for mount in spec.mounts if mount.volume_id)
        self._quota.admit(spec)
        spec = self._policy.admit(spec)
        self._isolator.admit(spec)
        if spec.network_enabled:
            self._network.admit()
        return spec

    def create(
        self,
        box: BoxRef,
        spec: BoxSpec,
        image: Mapping[str, Any],
        replacing: Iterable[BoxRef] = (),
        *,
        awaits_main: bool = False,
    ) -> BoxState:
        """Make the container, not started, after removing those of `replacing`.

        `image`: the engine's description of the base for `spec.image`. `awaits_main`: see `container_config`. Raises
        as `BoxRuntime.create` does, `ResourceExhaustedError` when too many boxes are being started, and
        `UnsupportedError` for a box that should await its main command, and can have no supervisor.
        """
        with self.starts.place():
            for former in replacing:
                self.delete(former, force=True)
            spec = self.admit(spec)
            directory = self._supervisors.directory(container_name(box))
            if awaits_main and not directory:
                raise UnsupportedError(f"box {box.box_id} cannot be prepared: it would have no supervisor")
            try:
                self._make(box, spec, image, directory, awaits_main=awaits_main)
            except (EngineError, InvalidArgumentError) as exc:
                if not self._supervisors.is_invisible(directory, exc.message) or awaits_main:
                    raise
                self._make(box, spec, image, "")
            except InvalidStateError:
                if box not in self.up_to(box):
                    raise
                return self.inspect(box)  # the engine made it just now, for a former process of the worker
        return BoxState(box, BoxStatus.CONFIGURED)

    def _make(
        self, box: BoxRef, spec: BoxSpec, image: Mapping[str, Any], directory: str, *, awaits_main: bool = False
    ) -> None:
        config = container_config(
            box, spec, image, self._owner(), directory, awaits_main=awaits_main, network=self._network.name
        )
        self._quota.apply(config, spec)
        self._isolator.apply(config)
        with self._lock:
            self._ids.add(box.box_id)
        with spec_errors(), engine_errors(f"box {box.box_id} cannot be created"), self._pinned(config, spec.cpus):
            made = self._engine.api.create_container_from_config(config, container_name(box))
        self._note_made(box, made["Id"], config)

    def _note_made(self, box: BoxRef, container_id: str, config: dict[str, Any]) -> None:
        container = {
            "Id": container_id,
            "Name": f"/{container_name(box)}",
            "Config": config,
            "HostConfig": config["HostConfig"],
            "Mounts": [],
            "State": _CREATED,
        }
        self.remember(box, container)

    @contextmanager
    def _pinned(self, config: dict[str, Any], cpus: int) -> Iterator[None]:
        """Pin the container that is made in the `with` block to so many cpus of those that the operator gives, the
        ones that fewest boxes are pinned to."""
        if not self._policy.cpus:
            yield
            return
        with self._pinning:  # so that the next box sees this one
            pinned = self._engine.api.containers(all=True, filters={"label": CPUS_LABEL})
            taken = Counter(cpu for entry in pinned for cpu in entry["Labels"][CPUS_LABEL].split(","))
            chosen = sorted(map(str, self._policy.cpus), key=lambda cpu: taken[cpu])[:cpus]
            config["HostConfig"]["CpusetCpus"] = config["Labels"][CPUS_LABEL] = ",".join(chosen)
            yield

    def resize(self, box: BoxRef, container: Mapping[str, Any], cpus: int, memory_mib: int, used: int) -> None:
        """Change the limits of the container; see `BoxRuntime.resize`. `used`: bytes of memory that it uses."""
        self._isolator.check_cpus(cpus)
        if used > memory_mib * MIB:
            raise InvalidStateError(
                f"box {box.box_id} uses {used // MIB} MiB of memory, and cannot have a limit of {memory_mib} MiB"
            )
        has, limits = container["HostConfig"], size_config(cpus, memory_mib)
        if self._policy.cpus and has.get("CpuQuota") != limits["CpuQuota"]:
            raise UnsupportedError("the cpus of a box cannot be changed at this worker, which pins each box to its own")
        with spec_errors(), engine_errors(f"box {box.box_id} cannot be changed"):
            self._engine.api.update_container(
                container["Id"],
                cpu_period=limits["CpuPeriod"],
                cpu_quota=limits["CpuQuota"],
                cpu_shares=limits["CpuShares"],
                mem_limit=limits["Memory"],
                memswap_limit=limits["MemorySwap"],
            )

    # ---- finding ----

    def get(self, box: BoxRef) -> dict[str, Any]:
        """The engine's description of the box's container; that of a prepared box is as if it was never started. Raises
        `NotFoundError` when the owner has none."""
        container = self.get_as_is(box)
        if container_name(box) in self._prepared:
            return {**container, "State": {**container["State"], **_CREATED}}
        return container

    def get_as_is(self, box: BoxRef) -> dict[str, Any]:
        """The engine's description of the box's container, prepared or not. Raises `NotFoundError` like `get`."""
        try:
            with engine_errors("cannot inspect the box"):
                container = dict(self._engine.api.inspect_container(container_name(box)))
        except NotFoundError:
            container = None
        if container is not None:
            labels = container["Config"]["Labels"] or {}
            if labels.items() >= owner_labels(self._owner()).items():
                return self.as_told(container)
        self.up_to(box)
        raise NotFoundError(f"box {box.box_id} (generation {box.generation}) is not on this worker")

    def as_told(self, container: Mapping[str, Any]) -> dict[str, Any]:
        """The engine's description of a box's container, with the main command where the engine knows nothing of it."""
        record = self._prepared.get(container["Name"].lstrip("/"))
        return as_told(container, record.main) if record is not None else dict(container)

    def remember(self, box: BoxRef, container: dict[str, Any]) -> None:
        """Remember the description of a container until its first start: of a container that was just made, or of a
        prepared box."""
        with self._lock:
            self._made[box] = container
            if len(self._made) > _MADE:
                self._made.popitem(last=False)

    def to_start(self, box: BoxRef) -> dict[str, Any]:
        """As much of the description of the box's container as a start needs. The engine is not asked for the first
        start of a container that this process has made. Raises like `get_as_is`."""
        with self._lock:
            made = self._made.pop(box, None)
        if made is None or (made["State"]["Running"] and not self._supervisors.awaits_main(container_name(box))):
            return self.get_as_is(box)
        return self.as_told(made)

    def inspect(self, box: BoxRef, *, counting: bool = False) -> BoxState:
        """The state of the box, from the engine; the number of its commands only if `counting`. Raises `NotFoundError`
        when the owner has no such container."""
        container = self.get(box)
        state = self.seen(box, container)
        if counting and state.status is BoxStatus.RUNNING:
            commands = self._supervisors.running(container_name(box))
            return replace(state, commands=commands + sum(map(self._is_command, container["ExecIDs"] or ())))
        if state.status is not BoxStatus.STOPPED:
            return state
        finished = unix_time(container["State"]["FinishedAt"])
        return replace(
            state,
            interrupted=self._watch.interrupted(container["Id"], finished),
            out_of_memory=bool(state.exit_code) and self._watch.ran_out_of_memory(container["Id"], finished),
            reason=self._reasons.get(box),
        )

    def seen(self, box: BoxRef, container: Mapping[str, Any]) -> BoxState:
        """The state in the engine's description of the box's container, with what runs its commands."""
        state = state_of(box, container)
        if state.status is not BoxStatus.RUNNING:
            return replace(state, unclaimed=self._prepared.unclaimed(container_name(box)) is not None)
        return replace(state, supervisor=self._supervisors.kind(container))

    def _is_command(self, exec_id: str) -> bool:
        """Whether a command of a client runs under the engine's id, and not a command that was never started, a
        health check or another command without an input."""
        try:
            with engine_errors("cannot inspect a command"):
                found = self._engine.api.exec_inspect(exec_id)
        except NotFoundError:
            return False  # the command has ended
        return bool(found["Running"] and found["OpenStdin"])

    def up_to(self, box: BoxRef) -> list[BoxRef]:
        """The generations of the box on this worker: `box` itself, if it is there, and older ones."""
        found = [_ref(entry) for entry in self._list(f"{BOX_LABEL}={box.box_id}")]
        newest = max((ref.generation for ref in found), default=0)
        if newest > box.generation:
            raise InvalidStateError(
                f"box {box.box_id}: generation {box.generation} is over, the worker holds generation {newest}"
            )
        return found

    def to_replace(self, box: BoxRef) -> list[BoxRef]:
        """`up_to` for a box that is to be made. The engine is not asked about a box of which it has heard nothing."""
        if not self._was_asked:
            found = {_ref(entry).box_id for entry in self._list()}
            with self._lock:
                self._ids |= found
                self._was_asked = True
        return self.up_to(box) if box.box_id in self._ids else []

    def forget(self, box_id: str) -> None:
        """Note that no container of the box is left."""
        with self._lock:
            self._ids.discard(box_id)

    def states(self) -> list[BoxState]:
        """The states of all boxes. Inspects only those that may have changed since the last time."""
        states = []
        for entry in self._list():
            state = self._watch.known(entry["Id"])
            if state is None:
                marker = self._watch.marker()
                try:
                    state = self.inspect(_ref(entry))
                except (NotFoundError, InvalidStateError):
                    continue  # between the two calls, the box was removed or a later generation was made
                self._watch.remember(entry["Id"], state, marker)
            states.append(state)
        return states

    def watched(self) -> dict[BoxRef, int]:
        """The running boxes whose disks the worker has to watch, and how many bytes each may write."""
        found = {}
        for entry in self._list(DISK_LIMIT_LABEL):
            limit = entry["Labels"][DISK_LIMIT_LABEL]
            if entry["State"] == "running" and limit.isdecimal():
                found[_ref(entry)] = int(limit)
        return found

    def _list(self, *labels: str) -> list[dict[str, Any]]:
        mine = [*owned_by(self._owner()), *labels]
        with engine_errors("cannot list the boxes"):
            return list(self._engine.api.containers(all=True, filters={"label": mine}))

    # ---- removing ----

    def delete(self, box: BoxRef, force: bool) -> None:
        """Remove the box's container, if there is one. Raises `InvalidStateError` when it runs, without `force`."""
        with self._lock:
            self._made.pop(box, None)
        name = container_name(box)
        force = force or name in self._prepared
        self._watch.removing(name)
        try:
            with engine_errors(f"box {box.box_id} cannot be removed"):
                self._engine.api.remove_container(name, v=True, force=force)
        except NotFoundError:
            self._watch.not_removed(name)
        except InvalidStateError as exc:
            if "already in progress" not in exc.message:
                self._watch.not_removed(name)
                raise InvalidStateError(f"box {box.box_id} is running; stop it first, or use force") from exc
            self._await_absence(box)
        except BaseException:
            self._watch.not_removed(name)
            raise
        self._supervisors.forget(name)
        self._prepared.forget(name)

    def _await_absence(self, box: BoxRef) -> None:
        for _ in range(100):
            if all(_ref(entry) != box for entry in self._list(f"{BOX_LABEL}={box.box_id}")):
                return
            time.sleep(0.1)
        raise EngineError(f"box {box.box_id} is still being removed; try again")


def state_of(box: BoxRef, container: Mapping[str, Any]) -> BoxState:
    """The state in the engine's description of the box's container, without `interrupted`, `out_of_memory` and
    `commands`."""
    state = container["State"]
    if state["Paused"]:
        return BoxState(box, BoxStatus.PAUSED, pid=state["Pid"] or None, ports=published(container))
    if state["Running"] or state["Restarting"]:
        return BoxState(box, BoxStatus.RUNNING, pid=state["Pid"] or None, ports=published(container))
    if state["Status"] == "created":
        if state["Error"]:
            return BoxState(box, BoxStatus.FAILED, exit_code=state["ExitCode"])
        return BoxState(box, BoxStatus.CONFIGURED)
    if state["Dead"]:
        return BoxState(box, BoxStatus.FAILED, exit_code=state["ExitCode"])
    return BoxState(box, BoxStatus.STOPPED, exit_code=state["ExitCode"])


def _ref(entry: Mapping[str, Any]) -> BoxRef:
    """The box of a container that the engine lists."""
    return BoxRef(entry["Labels"][BOX_LABEL], int(entry["Labels"][GENERATION_LABEL]))
