"""A fake worker behind the coordinator's `Link` seam: it keeps what calls make, and fails as a test says."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from boxlite_server import errors
from boxlite_server._gen import worker_pb2 as pb
from boxlite_server.coordinator.store import Worker

Hook = Callable[[], Awaitable[None]]

URL = "http://127.0.0.1:1"
SECRET = "s" * 16

EVERY = ""  # method: a hook for all calls that have none of their own

_STATUS = {
    "configured": pb.BOX_STATUS_CONFIGURED,
    "running": pb.BOX_STATUS_RUNNING,
    "stopped": pb.BOX_STATUS_STOPPED,
    "failed": pb.BOX_STATUS_FAILED,
}


@dataclass
class Container:
    generation: int
    status: str = "configured"
    interrupted: bool = False
    reason: str = ""  # why the worker stopped it unasked
    unclaimed: bool = False  # it was prepared


class FakeWorker:
    """One worker with its engine, through all lives of its process.

    `before` and `after` hold a hook for each method: it runs before the call is carried out, or between that and
    the answer. A hook may raise, and may take its time; `refuse`, `lose` and `hold` set the usual ones.
    """

    def __init__(self, name: str, *, cpus: int = 8, memory_mib: int = 8192) -> None:
        self.id = id_of(name)
        self.name = name
        self.cpus = cpus
        self.memory_mib = memory_mib
        self.engine_life = "life-1"
        # What it holds.
        self.boxes: dict[str, Container] = {}  # by box id: the latest generation
        self.snapshots: set[str] = set()  # ids
        self.kept_of: dict[str, str] = {}  # box ids by snapshot id; other snapshots are listed as of the first box
        self.volumes: set[str] = set()  # ids
        self.images: list[pb.Image] = []
        self.image_id = "sha256:1"  # of whatever image a box is made of
        self.private: set[str] = set()  # images whose registry gets credentials of the host
        self.pulls = False  # whether each create has to pull its image, with credentials of the host
        self.specs: dict[str, pb.BoxSpec] = {}  # by box id: what it was last told to make
        self.used: dict[str, int] = {}  # by box id: MiB of memory that it uses
        self.sizes: dict[str, tuple[int, int]] = {}  # by box id: cpus and MiB that it was given last
        self.prepares = True  # whether it can; an older version makes boxes that run the image's command
        self.streams: dict[str, AsyncIterator[Any]] = {}  # by method: the answers of a streaming call
        # What it reports of the commands in each box.
        self.live_executions = 0
        self.idle_seconds: float | None = None
        # How its engine fares with boxes.
        self.brief = False  # whether boxes end as soon as they are started
        self.dying = False  # whether the engine kills at once what is started
        # What was asked of it.
        self.calls: list[str] = []  # methods
        self.made = 0  # containers
        self.most_at_once: Counter[str] = Counter()  # by method: calls under way at the same time
        self.before: dict[str, Hook] = {}
        self.after: dict[str, Hook] = {}
        self._under_way: Counter[str] = Counter()

    # ---- what happens to calls ----

    def refuse(self, method: str, error: Exception) -> None:
        """Answer calls of this method with the error."""
        self.before[method] = _raising(error)

    def refuse_once(self, method: str, error: Exception) -> None:
        """Answer the next call of this method with the error."""

        async def hook() -> None:
            del self.before[method]
            raise error

        self.before[method] = hook

    def lose(self, method: str, *, after: bool = False) -> None:
        """Lose calls of this method on their way to the worker or, with `after`, their answers."""
        if after:
            self.after[method] = _raising(errors.UnreachableError(f"worker {self.name} was lost"))
        else:
            self.before[method] = _raising(errors.UnreachableError(f"worker {self.name} cannot be reached"))

    def hold(self, method: str, *, after: bool = False) -> tuple[asyncio.Event, asyncio.Event]:
        """The next call of this method sets the first event and waits for the second one, before it is carried out
        or, with `after`, before it is answered."""
        hooks, begun, go = self.after if after else self.before, asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            del hooks[method]
            begun.set()
            await go.wait()

        hooks[method] = wait
        return begun, go

    def recover(self) -> None:
        """Drop all hooks."""
        self.before.clear()
        self.after.clear()

    async def call(self, method: str, request: Any) -> Any:
        self.calls.append(method)
        self._under_way[method] += 1
        self.most_at_once[method] = max(self.most_at_once[method], self._under_way[method])
        try:
            await self.meet(self.before, method)
            await asyncio.sleep(0)
            answer = getattr(self, f"_{method}")(request)
            await self.meet(self.after, method)
        finally:
            self._under_way[method] -= 1
        return answer

    async def meet(self, hooks: dict[str, Hook], method: str) -> None:
        if hook := hooks.get(method) or hooks.get(EVERY):
            await hook()

    # ---- what it tells the coordinator ----

    def row(self, now: float) -> Worker:
        """Its row, as if it had been heard at `now`."""
        return Worker(
            id=self.id,
            name=self.name,
            url=URL,
            secret=SECRET,
            status="active",
            epoch=epoch(1),
            labels={},
            cpus=self.cpus,
            memory_mib=self.memory_mib,
            max_boxes=None,
            version="",
            engine_version="",
            registered_at=0,
            last_heartbeat=now,
            engine_life=self.engine_life,
        )

    def introduction(self, life: int, started_at: float) -> dict[str, Any]:
        """Its registration, by this life of its process."""
        return {
            "id": self.id,
            "name": self.name,
            "url": URL,
            "secret": SECRET,
            "epoch": epoch(life),
            "started_at": started_at,
            "capacity": {"cpus": self.cpus, "memory_mib": self.memory_mib},
            "engine_life": self.engine_life,
            "boxes": self.inventory(),
        }

    def inventory(self) -> list[dict[str, Any]]:
        """Its report of its boxes."""
        return [
            {"box_id": box_id, "generation": c.generation, "status": c.status, "interrupted": c.interrupted}
            for box_id, c in self.boxes.items()
        ]

    def restart_engine(self) -> None:
        """The engine kills all boxes that run."""
        self.engine_life += "x"
        for container in self.boxes.values():
            if container.status == "running":
                container.status = "stopped"

    # ---- calls ----

    def _find(self, ref: pb.BoxRef) -> Container:
        found = self.boxes.get(ref.box_id)
        if found is None or found.generation < ref.generation:
            raise errors.NotFoundError(f"box {ref.box_id} is not on this worker")
        if found.generation > ref.generation:
            raise errors.InvalidStateError("a former generation")
        return found

    def _make(self, ref: pb.BoxRef) -> pb.Box:
        found = self.boxes.get(ref.box_id)
        if found is None or found.generation < ref.generation:
            self.boxes[ref.box_id] = Container(ref.generation)
            self.made += 1
        return self._answer(ref)

    def _answer(self, ref: pb.BoxRef) -> pb.Box:
        found = self._find(ref)
        return pb.Box(
            box_id=ref.box_id,
            generation=ref.generation,
            status=_STATUS[found.status],
            pid=4242 if found.status == "running" else None,
            exit_code=0 if found.status == "stopped" else None,
            interrupted=found.interrupted,
            reason=found.reason,
            unclaimed=found.unclaimed,
            engine_life=self.engine_life,
        )

    def _CreateBox(self, request: pb.CreateBoxRequest) -> pb.Box:
        if not any(image.reference == request.spec.image for image in self.images):
            self._check_asked(request.ask_first, request.spec.image)
        self._make(request.box)
        self.boxes[request.box.box_id].unclaimed = request.prepare and self.prepares
        self.specs[request.box.box_id] = request.spec
        made = self._answer(request.box)
        made.image_id = self.image_id
        answer = self._StartBox(request.box) if request.start else made
        answer.pulled = answer.private_image = self.pulls
        return answer

    def _StartBox(self, ref: pb.BoxRef) -> pb.Box:
        found = self._find(ref)
        ends = self.brief or self.dying
        found.status, found.interrupted, found.reason = "stopped" if ends else "running", self.dying, ""
        return self._answer(ref)

    def _StopBox(self, request: pb.StopBoxRequest) -> pb.Box:
        found = self._find(request.box)
        found.status = "stopped" if found.status == "running" else found.status
        return self._answer(request.box)

    def _UpdateBox(self, request: pb.UpdateBoxRequest) -> pb.Box:
        self._find(request.box)
        if request.memory_mib < self.used.get(request.box.box_id, 0):
            raise errors.InvalidStateError("it uses more")
        self.sizes[request.box.box_id] = (request.cpus, request.memory_mib)
        return self._answer(request.box)

    def _RemoveBox(self, request: pb.RemoveBoxRequest) -> pb.Empty:
        found = self.boxes.get(request.box.box_id)
        if found is not None and found.generation > request.box.generation:
            raise errors.InvalidStateError("a former generation")
        self.boxes.pop(request.box.box_id, None)
        self.snapshots -= {kept for kept, box_id in self.kept_of.items() if box_id == request.box.box_id}
        return pb.Empty()

    def _GetBox(self, ref: pb.BoxRef) -> pb.Box:
        box = self._answer(ref)
        box.live_executions = self.live_executions
        if self.idle_seconds is not None:
            box.idle_seconds = self.idle_seconds
        return box

    def _ListBoxes(self, request: pb.Empty) -> pb.ListBoxesResponse:
        refs = [pb.BoxRef(box_id=box_id, generation=c.generation) for box_id, c in self.boxes.items()]
        return pb.ListBoxesResponse(boxes=[self._answer(ref) for ref in refs], engine_life=self.engine_life)

    def _StartExecution(self, request: pb.StartExecutionRequest) -> pb.Execution:
        self._find(request.box)
        ended = pb.Execution(execution_id=request.execution_id, status=pb.EXECUTION_STATUS_COMPLETED, exit_code=0)
        events = [pb.OutputEvent(ended=ended)] if request.wants_events else []
        return pb.Execution(execution_id=request.execution_id, events=events)

    def _RunCommand(self, request: pb.RunCommandRequest) -> pb.RunResult:
        return self._run(request)

    def _run(self, request: pb.RunCommandRequest) -> pb.RunResult:
        """A command that says its input and its environment's `ERR`, and ends with its number of arguments."""
        self._find(request.start.box)
        ended = pb.Execution(
            execution_id=request.start.execution_id,
            status=pb.EXECUTION_STATUS_COMPLETED,
            exit_code=len(request.start.args),
            duration_ms=1,
        )
        return pb.RunResult(ended=ended, stdout=request.input, stderr=request.start.env["ERR"].encode())

    def _StreamCommand(self, request: pb.RunCommandRequest) -> list[pb.OutputEvent]:
        result = self._run(request)
        said = ((pb.OUTPUT_STREAM_STDOUT, result.stdout), (pb.OUTPUT_STREAM_STDERR, result.stderr))
        chunks = [pb.OutputChunk(stream=stream, data=data) for stream, data in said if data]
        return [
            pb.OutputEvent(),
            *(pb.OutputEvent(chunk=chunk) for chunk in chunks),
            pb.OutputEvent(ended=result.ended),
        ]

    def _CreateSnapshot(self, request: pb.SnapshotRef) -> pb.Snapshot:
        self._find(request.box)
        self.snapshots.add(request.snapshot_id)
        return pb.Snapshot(snapshot_id=request.snapshot_id, size_bytes=1)

    def _RemoveSnapshot(self, request: pb.SnapshotRef) -> pb.Empty:
        self.snapshots.discard(request.snapshot_id)
        return pb.Empty()

    def _ListSnapshots(self, request: pb.Empty) -> pb.ListSnapshotsResponse:
        first = next(iter(self.boxes), "")
        refs = [
            pb.SnapshotRef(box=pb.BoxRef(box_id=self.kept_of.get(kept, first)), snapshot_id=kept)
            for kept in sorted(self.snapshots)
        ]
        return pb.ListSnapshotsResponse(snapshots=refs)

    def _RestoreSnapshot(self, request: pb.RestoreSnapshotRequest) -> pb.Box:
        if request.snapshot.snapshot_id not in self.snapshots:
            raise errors.NotFoundError("no such snapshot")
        return self._make(pb.BoxRef(box_id=request.snapshot.box.box_id, generation=request.new_generation))

    def _CloneBox(self, request: pb.CloneBoxRequest) -> pb.Box:
        self._find(request.source)
        return self._make(request.box)

    def _CreateVolume(self, request: pb.VolumeRef) -> pb.Volume:
        self.volumes.add(request.volume_id)
        return pb.Volume(volume_id=request.volume_id)

    def _RemoveVolume(self, request: pb.VolumeRef) -> pb.Empty:
        self.volumes.discard(request.volume_id)
        return pb.Empty()

    def _ListVolumes(self, request: pb.Empty) -> pb.ListVolumesResponse:
        return pb.ListVolumesResponse(volumes=[pb.Volume(volume_id=volume_id) for volume_id in sorted(self.volumes)])

    def _ListImages(self, request: pb.Empty) -> pb.ListImagesResponse:
        return pb.ListImagesResponse(images=self.images)

    def _PullImage(self, request: pb.PullImageRequest) -> list[pb.PullImageEvent]:
        self._check_asked(request.ask_first, request.reference)
        missing = not any(image.reference == request.reference for image in self.images)
        image = pb.Image(reference=request.reference, image_id=self.image_id, cached_at_ms=1, pulled=missing)
        image.private = request.reference in self.private
        self.images += [image] if missing else []
        return [pb.PullImageEvent(image=image)]

    def _check_asked(self, ask_first: bool, reference: str) -> None:
        if ask_first and reference in self.private:
            raise errors.PrivateImageError(f"image {reference} takes credentials")

    def _RemoveImage(self, request: pb.RemoveImageRequest) -> pb.Empty:
        self.images = [image for image in self.images if image.reference != request.reference]
        return pb.Empty()


class FakeLink:
    """A coordinator's link to one life of the worker, which `row` names."""

    def __init__(self, worker: FakeWorker, row: Worker) -> None:
        self.worker = worker
        self.row = row
        self.closed = False

    async def unary(self, method: str, request: Any, *, timeout: float | None) -> Any:
        try:
            async with asyncio.timeout(timeout):
                return await self.worker.call(method, request)
        except TimeoutError:
            raise errors.TimedOutError(f"worker {self.row.name} did not answer in time; try again") from None

    async def stream(self, method: str, request: Any) -> AsyncGenerator[Any, None]:
        if method not in self.worker.streams:
            for answer in await self.worker.call(method, request):
                yield answer
            return
        self.worker.calls.append(method)
        answers = self.worker.streams[method]
        try:
            async for answer in answers:
                yield answer
        finally:
            if isinstance(answers, AsyncGenerator):
                await answers.aclose()

    async def send(self, method: str, header: Any, requests: AsyncIterator[Any]) -> Any:
        """All that was sent; the method's hook runs before each request is taken."""
        self.worker.calls.append(method)
        taken = [header]
        async for request in requests:
            await self.worker.meet(self.worker.before, method)
            taken.append(request)
        return taken

    async def close(self) -> None:
        self.closed = True


def id_of(name: str) -> str:
    """The id of the worker with this name."""
    return name.ljust(12, "0")


def epoch(life: int) -> str:
    """The epoch of a worker's first, second, ... process."""
    return f"Ep0ch{life:07}"


def _raising(error: Exception) -> Hook:
    async def fail() -> None:
        raise error

    return fail
