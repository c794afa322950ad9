"""Transfers files into and out of boxes, as tar archives or one by one, chunk by chunk, and lists directories."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing

from ... import errors, rpc
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

    async def stat(self, prefix: str, id_or_name: str, path: str, *, follow: bool = False) -> pb.FileEntry:
        """What is at `path`; with `follow`, what a link there leads to. Raises NotFoundError."""
        box = await self._turns.get(prefix, id_or_name)
        async with self._schedule.use(box):
            return await self._calls.stat_file(
                box.worker_id, pb.StatFileRequest(box=ref(box), path=path, follow=follow)
            )

    async def find_file(self, prefix: str, id_or_name: str, path: str) -> pb.FileEntry:
        """The file at `path`, or that a link there leads to. Raises NotFoundError, and InvalidArgumentError for a
        directory."""
        entry = await self.stat(prefix, id_or_name, path, follow=True)
        if entry.kind != pb.FILE_KIND_FILE:
            raise errors.InvalidArgumentError(f"{path!r} is a directory; list it, or copy it as an archive")
        return entry

    async def entries(
        self, prefix: str, id_or_name: str, path: str, *, after: bytes, count: int
    ) -> pb.ListDirectoryResponse:
        """At most `count` entries of a directory, of which the first comes behind the name `after`."""
        box = await self._turns.get(prefix, id_or_name)
        request = pb.ListDirectoryRequest(box=ref(box), path=path, after=after, count=count)
        async with self._schedule.use(box):
            return await self._calls.list_directory(box.worker_id, request)

    async def read(
        self, prefix: str, id_or_name: str, path: str, version: str, part: range
    ) -> AsyncGenerator[bytes, None] | None:
        """A part of a file, which has all of these bytes; None: the file has another version. Raises InvalidStateError
        before the first byte where it changes while it is read."""
        box = await self._turns.get(prefix, id_or_name)
        request = pb.ReadFileRequest(box=ref(box), path=path, version=version, offset=part.start, size=len(part))
        answers = self._calls.read_file(box.worker_id, request)
        async with self._schedule.use(box):
            first = await anext(answers)
            if first.file.version != version:
                await answers.aclose()
                return None

        async def chunks() -> AsyncGenerator[bytes, None]:
            async with self._schedule.use(box), aclosing(answers):
                yield first.data
                async for answer in answers:
                    yield answer.data

        return chunks()

    async def write(
        self,
        prefix: str,
        id_or_name: str,
        path: str,
        content: AsyncIterator[bytes],
        *,
        mode: int | None,
        versions: Sequence[str],
        absent: bool,
    ) -> pb.FileEntry | None:
        """Write a file whole, and return what it is then; None: it has none of the `versions`, or is not `absent`. When
        `content` raises, nothing is written. Raises what `upload` raises."""
        box = await self._turns.get(prefix, id_or_name)
        header = pb.WriteFileHeader(box=ref(box), path=path, mode=mode, versions=versions, absent=absent)

        async def requests() -> AsyncIterator[pb.WriteFileRequest]:
            async for data in content:
                for chunk in rpc.chunks(data):
                    yield pb.WriteFileRequest(data=chunk)
            yield pb.WriteFileRequest(end=True)

        async with self._schedule.use(box):
            answer = await self._calls.write_file(box.worker_id, pb.WriteFileRequest(header=header), requests())
            return answer.file if answer.HasField("file") else None
