"""Creates and removes volumes, and finds them for boxes.

A volume's data is on one worker, chosen when the volume is made; boxes that mount it are placed there. As with boxes
the row comes first, and every call to a worker is idempotent by the volume's id. An operation on a volume holds its
lease; other operations on it do not wait but fail.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ... import errors, ids
from ..._gen import worker_pb2 as pb
from ..fleet.calls import TRY_ELSEWHERE, Calls
from ..fleet.placement import NOTHING, choose
from ..fleet.registry import Fleet
from ..host_access import Mount
from ..leases import Leases
from ..limits import REQUEST_SECONDS
from ..states import VolumeState
from ..store import Store, Tables, Use, Volume, Worker
from ..tenants.quotas import QuotaRows

log = logging.getLogger(__name__)


class Volumes:
    """All volumes of all prefixes, over the store and the fleet; `clock` gives Unix seconds."""

    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        calls: Calls,
        leases: Leases,
        quotas: QuotaRows,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._calls = calls
        self._leases = leases
        self._quotas = quotas
        self._clock = clock

    async def get(self, prefix: str, id_or_name: str) -> Volume:
        volume = await self._store.find_volume(prefix, id_or_name)
        if volume is None:
            raise errors.NotFoundError(f"volume not found: {id_or_name}")
        return volume

    async def list(self, prefix: str, **page: Any) -> list[Volume]:
        """See `Store.list_volumes`."""
        return await self._store.list_volumes(prefix, **page)

    async def create(self, prefix: str, name: str | None, *, request_key: str | None = None) -> Volume:
        """Make a volume on the least loaded worker; when it cannot make it, the next worker is tried.

        A volume that was left half made is finished by a request for the same name, or with the same `request_key`
        (owner and Idempotency-Key; the caller holds that key's lease). The key also finds a volume that was made.
        Raises AlreadyExistsError, ResourceExhaustedError, UpstreamUnavailableError.
        """
        volume_id = ids.of_request(request_key) if request_key else ids.new_id()
        made = await self._store.find_volume_of_stem(prefix, ids.stem(request_key)) if request_key else None
        if made and made.created_at + REQUEST_SECONDS <= self._clock():
            volume_id, made = ids.new_id(), None  # the key is another request's by now
        if made and made.name != (name or made.id):
            raise errors.KeyReusedError("this Idempotency-Key was used for a request with another body")
        if made and made.state == VolumeState.READY:
            return made
        if made and made.state == VolumeState.DELETING:
            raise errors.UpstreamUnavailableError(f"volume {made.id}, left half made, is being removed; try again")
        left = made or (await self._store.find_volume(prefix, name) if name else None)
        if left and left.name == (name or left.id) and left.state == VolumeState.CREATING:
            async with self._leases.try_hold(_lease(left.id)) as lease:
                if lease and await self._store.get_volume(left.id) == left:
                    return await self._make(left.id, left.worker_id)
        async with self._leases.hold(_lease(volume_id), f"volume {volume_id}"):
            return await self._make_somewhere(volume_id, prefix, name)

    async def _make_somewhere(self, volume_id: str, prefix: str, name: str | None) -> Volume:
        tried: dict[str, errors.BoxliteError] = {}
        while True:
            worker = await self._reserve(volume_id, prefix, name, tried)
            try:
                return await self._make(volume_id, worker.id)
            except TRY_ELSEWHERE as exc:
                log.warning("volume %s cannot be created on %s: %s", volume_id, worker.name, exc)
                tried[worker.name] = exc
                await self._forget(volume_id)
            except errors.TimedOutError:
                raise  # the volume may have been made: its row stays, to be finished or removed
            except errors.BoxliteError:
                await self._forget(volume_id)
                raise

    async def _make(self, volume_id: str, worker_id: str) -> Volume:
        await self._calls.create_volume(worker_id, pb.VolumeRef(volume_id=volume_id))
        return await self._change(volume_id, VolumeState.READY)

    async def remove(self, prefix: str, id_or_name: str, *, force: bool) -> None:
        """Remove a volume and its data; with `force` a missing volume is no error.

        Raises InvalidStateError while a box mounts it. Raises UpstreamUnavailableError when its worker does not
        answer; no box can mount the volume from then on, and the removal can be repeated.
        """
        found = await self._store.find_volume(prefix, id_or_name)
        if found is None:
            if force:
                return
            raise errors.NotFoundError(f"volume not found: {id_or_name}")
        async with self._leases.try_hold(_lease(found.id)) as lease:
            if lease is None:
                raise errors.InvalidStateError(f"volume '{found.name}' is being created or removed; try again")
            await self._remove(found.id, force=force)

    async def _remove(self, volume_id: str, *, force: bool) -> None:
        async with self._leases.writing(_lease(volume_id)) as tx:
            volume = await tx.get_volume(volume_id)
            if volume is None:
                if force:
                    return
                raise errors.NotFoundError(f"volume not found: {volume_id}")
            if users := await tx.boxes_with_volume(volume.id):
                raise errors.InvalidStateError(
                    f"volume '{volume.name}' is in use by box {', '.join(users)}; remove that first"
                )
            await tx.update_volume(volume.id, state=VolumeState.DELETING, updated_at=self._clock())
        await self._discard(volume)

    async def _discard(self, volume: Volume) -> None:
        """Have the worker remove the volume, then delete the row. `volume`: the row before the removal, whose state
        is restored when the engine finds the volume in use."""
        try:
            await self._calls.remove_volume(volume.worker_id, pb.VolumeRef(volume_id=volume.id))
            await self._forget(volume.id)
        except errors.InvalidStateError:
            await self._change(volume.id, volume.state)
            raise

    async def is_busy(self, volume_id: str) -> bool:
        """Whether the volume is being created or removed, through whatever coordinator."""
        return await self._leases.is_held(_lease(volume_id))

    async def finish(self, volume_id: str) -> None:
        """Finish an operation that was broken off. A volume that was never ready holds no data, and is removed."""
        async with self._leases.try_hold(_lease(volume_id)) as lease:
            volume = await self._store.get_volume(volume_id) if lease else None
            if volume is None or volume.state == VolumeState.READY:
                return
            log.info("volume %s was left %s", volume.id, volume.state)
            await self._discard(await self._change(volume.id, VolumeState.DELETING))

    # ---- for boxes ------------------------------------------------------------------------------------

    async def resolve(self, prefix: str, mounts: Iterable[Mount]) -> tuple[tuple[Mount, ...], str | None]:
        """The mounts with the `volume_id` of each volume, and the id of the one worker that holds all volumes (None
        when there are none).

        Raises NotFoundError for an unknown volume, InvalidArgumentError when no one worker holds them all.
        """
        resolved, homes = [], {}
        for mount in mounts:
            if mount.volume:
                volume = await self.get(prefix, mount.volume_id or mount.volume)
                homes[volume.worker_id] = volume.name
                resolved.append(mount._replace(volume_id=volume.id))
            else:
                resolved.append(mount)
        if len(homes) > 1:
            names = " and ".join(f"'{name}'" for name in homes.values())
            raise errors.InvalidArgumentError(f"volumes: {names} are on different workers; a box is on one")
        return tuple(resolved), next(iter(homes), None)

    @staticmethod
    async def check_ready(tx: Tables, mounts: Iterable[Mount]) -> None:
        """Check in the transaction that makes a box. Raises InvalidStateError when a volume cannot be mounted now."""
        for mount in mounts:
            if mount.volume_id:
                volume = await tx.get_volume(mount.volume_id)
                if volume is None or volume.state != VolumeState.READY:
                    state = volume.state if volume else "gone"
                    raise errors.InvalidStateError(f"volume '{mount.volume}' cannot be mounted: it is {state}")

    # ---- rows -----------------------------------------------------------------------------------------

    async def _reserve(
        self, volume_id: str, prefix: str, name: str | None, tried: Mapping[str, errors.BoxliteError]
    ) -> Worker:
        """Choose a worker that was not tried yet and write the row, in one step."""
        async with self._leases.writing(_lease(volume_id)) as tx:
            untried = [c for c in await self._fleet.candidates(tx) if c.worker.name not in tried]
            worker, now = choose("volume", NOTHING, untried, tried), self._clock()
            await self._quotas.check(tx, prefix, Use(volumes=1))
            await tx.insert_volume(
                Volume(volume_id, prefix, name or volume_id, worker.id, VolumeState.CREATING, now, now)
            )
            return worker

    async def _change(self, volume_id: str, state: VolumeState) -> Volume:
        async with self._leases.writing(_lease(volume_id)) as tx:
            await tx.update_volume(volume_id, state=state, updated_at=self._clock())
            volume = await tx.get_volume(volume_id)
        if volume is None:  # a row is deleted only by the operation that holds the lease, or with its worker
            raise errors.UpstreamUnavailableError(f"volume {volume_id} was forgotten, together with its worker")
        return volume

    async def _forget(self, volume_id: str) -> None:
        async with self._leases.writing(_lease(volume_id)) as tx:
            await tx.delete_volume(volume_id)


def _lease(volume_id: str) -> str:
    return f"volume/{volume_id}"
