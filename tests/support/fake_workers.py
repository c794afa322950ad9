"""Workers that the test holds in its hand: what they keep, what they answer, and what is lost on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from boxlite_server import errors
from boxlite_server._gen import worker_pb2 as pb
from boxlite_server.coordinator.store import Worker

STATUS = {
    "configured": pb.BOX_STATUS_CONFIGURED,
    "running": pb.BOX_STATUS_RUNNING,
    "stopped": pb.BOX_STATUS_STOPPED,
    "failed": pb.BOX_STATUS_FAILED,
}


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Container:
    generation: int
    status: str = "configured"
    interrupted: bool = False


@dataclass
class FakeWorker:
    """One worker and the way to it. A call may be lost before it arrives, or its answer after it, by method; one
    that hangs is neither until its task is cancelled."""

    id: str
    life: str = "life-1"
    boxes: dict[str, Container] = field(default_factory=dict)
    snapshots: set[str] = field(default_factory=set)
    volumes: set[str] = field(default_factory=set)
    calls: list[str] = field(default_factory=list)
    lost: set[str] = field(default_factory=set)
    unanswered: set[str] = field(default_factory=set)
    hanging: dict[str, asyncio.Event] = field(default_factory=dict)  # set as soon as one hangs
    brief: bool = False  # whether boxes end as soon as they are started
    dying: bool = False  # whether its engine kills at once what is started
    refused: dict[str, errors.BoxliteError] = field(default_factory=dict)
    starting: int = 0
    most_starting: int = 0

    def row(self, now: float) -> Worker:
        url = f"http://127.0.0.1:{9000 + int(self.id[-1])}"
        return Worker(
            self.id, self.id, url, "s", "active", "e", {}, 64, 65536, None, "", "", 0, now, engine_life=self.life
        )

    def restart_engine(self) -> None:
        """It kills all that runs."""
        self.life += "x"
        for container in self.boxes.values():
            if container.status == "running":
                container.status = "stopped"

    def inventory(self) -> list[dict[str, Any]]:
        return [
            {"box_id": k, "generation": c.generation, "status": c.status, "interrupted": c.interrupted}
            for k, c in self.boxes.items()
        ]

    async def unary(self, method: str, request: Any, *, timeout: float) -> Any:
        self.calls.append(method)
        if method in self.lost:
            raise errors.UnreachableError(f"worker {self.id} cannot be reached")
        if method in self.refused:
            raise self.refused[method]
        self.starting += method == "StartBox"
        self.most_starting = max(self.most_starting, self.starting)
        await asyncio.sleep(0)
        self.starting -= method == "StartBox"
        answer = getattr(self, f"_{method}")(request)
        if method in self.hanging:
            self.hanging[method].set()
            await asyncio.Event().wait()
        if method in self.unanswered:
            raise errors.UnreachableError(f"worker {self.id} was lost")
        return answer

    async def stream(self, method: str, request: Any) -> AsyncGenerator[Any, None]:
        raise NotImplementedError
        yield

    async def send(self, method: str, header: Any, requests: AsyncIterator[Any]) -> Any:
        """ImportBox."""
        async for _ in requests:
            pass
        return await self.unary("CreateBox", header.box, timeout=1)

    async def close(self) -> None:
        pass

    # ---- calls ----

    def _find(self, ref: pb.BoxRef) -> Container:
        found = self.boxes.get(ref.box_id)
        if found is None or found.generation < ref.generation:
            raise errors.NotFoundError(f"box {ref.box_id} is not on this worker")
        if found.generation > ref.generation:
            raise errors.InvalidStateError("a former generation")
        return found

    def _answer(self, ref: pb.BoxRef) -> pb.Box:
        found = self._find(ref)
        return pb.Box(
            box_id=ref.box_id,
            generation=ref.generation,
            status=STATUS[found.status],  # type: ignore[arg-type]
            pid=4242 if found.status == "running" else None,
            exit_code=0 if found.status == "stopped" else None,
            interrupted=found.interrupted,
            engine_life=self.life,
        )

    def _CreateBox(self, request: pb.CreateBoxRequest) -> pb.Box:
        self.boxes.setdefault(request.box.box_id, Container(request.box.generation))
        return self._answer(request.box)

    def _StartBox(self, ref: pb.BoxRef) -> pb.Box:
        found = self._find(ref)
        ends = self.brief or self.dying
        found.status, found.interrupted = "stopped" if ends else "running", self.dying
        return self._answer(ref)

    def _StopBox(self, request: pb.StopBoxRequest) -> pb.Box:
        found = self._find(request.box)
        found.status = "stopped" if found.status == "running" else found.status
        return self._answer(request.box)

    def _RemoveBox(self, request: pb.RemoveBoxRequest) -> pb.Empty:
        found = self.boxes.get(request.box.box_id)
        if found is not None and found.generation > request.box.generation:
            raise errors.InvalidStateError("a former generation")
        self.boxes.pop(request.box.box_id, None)
        return pb.Empty()

    def _GetBox(self, ref: pb.BoxRef) -> pb.Box:
        return self._answer(ref)

    def _ListBoxes(self, request: pb.Empty) -> pb.ListBoxesResponse:
        refs = [pb.BoxRef(box_id=k, generation=c.generation) for k, c in self.boxes.items()]
        return pb.ListBoxesResponse(boxes=[self._answer(ref) for ref in refs], engine_life=self.life)

    def _CreateSnapshot(self, request: pb.SnapshotRef) -> pb.Snapshot:
        self._find(request.box)
        self.snapshots.add(request.snapshot_id)
        return pb.Snapshot(snapshot_id=request.snapshot_id, size_bytes=1)

    def _RemoveSnapshot(self, request: pb.SnapshotRef) -> pb.Empty:
        self.snapshots.discard(request.snapshot_id)
        return pb.Empty()

    def _ListSnapshots(self, request: pb.Empty) -> pb.ListSnapshotsResponse:
        box_id = next(iter(self.boxes), "")  # all are the first box's
        refs = [pb.SnapshotRef(box=pb.BoxRef(box_id=box_id), snapshot_id=each) for each in sorted(self.snapshots)]
        return pb.ListSnapshotsResponse(snapshots=refs)

    def _RestoreSnapshot(self, request: pb.RestoreSnapshotRequest) -> pb.Box:
        ref = request.snapshot.box
        if request.snapshot.snapshot_id not in self.snapshots:
            raise errors.NotFoundError("no such snapshot")
        self.boxes[ref.box_id] = Container(request.new_generation)
        return self._answer(pb.BoxRef(box_id=ref.box_id, generation=request.new_generation))

    def _CloneBox(self, request: pb.CloneBoxRequest) -> pb.Box:
        self._find(request.source)
        self.boxes[request.box.box_id] = Container(request.box.generation)
        return self._answer(request.box)

    def _CreateVolume(self, request: pb.VolumeRef) -> pb.Volume:
        self.volumes.add(request.volume_id)
        return pb.Volume(volume_id=request.volume_id)

    def _RemoveVolume(self, request: pb.VolumeRef) -> pb.Empty:
        self.volumes.discard(request.volume_id)
        return pb.Empty()

    def _ListVolumes(self, request: pb.Empty) -> pb.ListVolumesResponse:
        return pb.ListVolumesResponse(volumes=[pb.Volume(volume_id=volume_id) for volume_id in sorted(self.volumes)])
