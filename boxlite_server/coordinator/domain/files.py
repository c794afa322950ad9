"""Transfers files into and out of boxes, as tar archives that are handed on chunk by chunk."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from ... import rpc
from ..._gen import worker_pb2 as pb
from ..fleet.calls import Calls
from .deadlines import Schedule
from .turns import Turns, ref


class Files:
    """The files of all boxes. Nothing is stored here: a chunk is held only until the next hop has taken it."""

    def __init__(self, turns: Turns, calls: Calls, schedule: Schedule) -> None:
        self._turns = turns
        self._calls = calls
        self._schedule = schedule

    async def upload(
        self,
        prefix: str,
        id_or_name: str,
        path: str,
        archive: AsyncIterator[bytes],
        *,
        overwrite: bool,
        source_is_dir: bool | None,
        keep_owner: bool = False,
    ) -> str:
        """Unpack a tar archive in a box, running or not; see `uploadFiles` in openapi.yaml. Returns what of it was
        skipped, as the header X-Boxlite-Skipped has it.

        Raises InvalidArgumentError for a bad archive, AlreadyExistsError, InvalidStateError when something is in the
        way, ResourceExhaustedError when a disk is full. When `archive` raises, nothing is written.
        """
        box = await self._turns.get(prefix, id_or_name)
        header = pb.PutFilesHeader(
            box=ref(box), path=path, overwrite=overwrite, source_is_dir=source_is_dir, keep_owner=keep_owner
        )
        beginning = bytearray()

        async def requests() -> AsyncIterator[pb.PutFilesRequest]:
            for chunk in rpc.chunks(bytes(beginning)):
                yield pb.PutFilesRequest(data=chunk)
            async for data in archive:
                for chunk in rpc.chunks(data):
                    yield pb.PutFilesRequest(data=chunk)
            yield pb.PutFilesRequest(end=True)

        async with self._schedule.use(box):
            async for data in archive:
                beginning += data
                if len(beginning) > rpc.CHUNK_BYTES:
                    break
            else:
                small = pb.PutSmallFilesRequest(header=header, archive=bytes(beginning))
                return (await self._calls.put_small_files(box.worker_id, small)).skipped
            first = pb.PutFilesRequest(header=header)
            return (await self._calls.put_files(box.worker_id, first, requests())).skipped

    async def download(
        self, prefix: str, id_or_name: str, path: str, *, follow_symlinks: bool
    ) -> tuple[bool, bytes | AsyncGenerator[bytes, None]]:
        """Whether `path` is a directory, and a tar archive of it, whole if it is small. Raises NotFoundError for a
        missing path before the first byte."""
        box = await self._turns.get(prefix, id_or_name)
        request = pb.GetFilesRequest(box=ref(box), path=path, follow_symlinks=follow_symlinks)
        answers = self._calls.get_files(box.worker_id, request)
        async with self._schedule.use(box):
            first = await anext(answers)
            if first.is_all:
                await answers.aclose()
                return first.source_is_dir, first.data

        async def chunks() -> AsyncGenerator[bytes, None]:
            async with self._schedule.use(box), aclosing(answers):
                yield first.data
                async for answer in answers:
                    yield answer.data

        return first.source_is_dir, chunks()
