"""The calls about files: archives, single files, and directories."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager

import grpc

from ... import rpc
from ..._gen import worker_pb2 as pb
from ..._gen import worker_pb2_grpc as pb_grpc
from ...errors import BoxliteError
from ..files.contents import Condition
from ..files.tar import ENCODING
from ..files.transfer import Files
from ..shares import Shares
from . import messages
from .calls import answers
from .incoming import Upload

MAX_LISTED = 1000  # entries of a directory in one answer


class FileCalls(pb_grpc.WorkerServiceServicer):
    """Serves the calls of worker.proto about files. Each of them holds one of the tenant's transfers."""

    def __init__(self, files: Files, transfers: Shares) -> None:
        self._files = files
        self._contents = files.contents
        self._transfers = transfers

    @answers
    def PutFiles(self, request: Iterator[pb.PutFilesRequest], context: grpc.ServicerContext) -> pb.PutFilesResponse:
        with self._transfer():
            header = next(request, pb.PutFilesRequest()).header
            upload = Upload(request, context)
            try:
                return self._put(header, upload)
            except BoxliteError:
                upload.drain()
                raise

    @answers
    def PutSmallFiles(self, request: pb.PutSmallFilesRequest, context: grpc.ServicerContext) -> pb.PutFilesResponse:
        with self._transfer():
            return self._put(request.header, [request.archive])

    def _put(self, header: pb.PutFilesHeader, archive: Iterable[bytes]) -> pb.PutFilesResponse:
        source_is_dir = header.source_is_dir if header.HasField("source_is_dir") else None
        skipped = self._files.put(
            messages.ref(header.box),
            header.path,
            archive,
            overwrite=header.overwrite,
            source_is_dir=source_is_dir,
            keep_owner=header.keep_owner,
        )
        return pb.PutFilesResponse(skipped=skipped)

    @answers
    def GetFiles(self, request: pb.GetFilesRequest, context: grpc.ServicerContext) -> Iterator[pb.FilesChunk]:
        with (
            self._transfer(),
            self._files.get(messages.ref(request.box), request.path, follow_links=request.follow_symlinks) as (
                is_dir,
                chunks,
            ),
        ):
            # The first message waits for the first data: the client takes it for success.
            first, second = next(chunks), next(chunks, None)
            yield pb.FilesChunk(source_is_dir=is_dir, data=first, is_all=second is None)
            if second is not None:
                for chunk in itertools.chain((second,), chunks):
                    yield pb.FilesChunk(data=chunk)

    def _transfer(self) -> AbstractContextManager[None]:
        return self._transfers.slot(rpc.TENANT.get())

    @answers
    def StatFile(self, request: pb.StatFileRequest, context: grpc.ServicerContext) -> pb.FileEntry:
        with self._transfer():
            entry = self._contents.stat(messages.ref(request.box), request.path, follow=request.follow)
            return messages.file_entry(entry)

    @answers
    def ListDirectory(
        self, request: pb.ListDirectoryRequest, context: grpc.ServicerContext
    ) -> pb.ListDirectoryResponse:
        after, count = request.after.decode(*ENCODING), min(request.count, MAX_LISTED)
        with self._transfer():
            found = self._contents.entries(messages.ref(request.box), request.path, after, count)
        return pb.ListDirectoryResponse(entries=map(messages.file_entry, found.entries), more=found.more)

    @answers
    def ReadFile(self, request: pb.ReadFileRequest, context: grpc.ServicerContext) -> Iterator[pb.FileChunk]:
        asked = (messages.ref(request.box), request.path, request.version, request.offset, request.size)
        with self._transfer(), self._contents.read(*asked) as (entry, pieces):
            # The first message waits for the first data: the client takes it for success.
            yield pb.FileChunk(file=messages.file_entry(entry), data=next(pieces, b""))
            for piece in pieces:
                yield pb.FileChunk(data=piece)

    @answers
    def WriteFile(self, request: Iterator[pb.WriteFileRequest], context: grpc.ServicerContext) -> pb.WriteFileResponse:
        with self._transfer():
            header = next(request, pb.WriteFileRequest()).header
            upload = Upload(request, context)
            try:
                entry = self._contents.write(
                    messages.ref(header.box),
                    header.path,
                    upload,
                    header.mode if header.HasField("mode") else None,
                    Condition(tuple(header.versions), header.absent),
                )
            except BoxliteError:
                upload.drain()
                raise
        return pb.WriteFileResponse(file=messages.file_entry(entry) if entry else None)
