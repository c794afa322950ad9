"""The data that the coordinator streams to the worker: uploads and imports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

import grpc

from ... import rpc
from ..._gen import worker_pb2 as pb
from ...errors import UpstreamUnavailableError

CHECK_MESSAGES = 16  # of an import, between two looks at the disk


class Upload:
    """The data of an upload. Iterating accepts the upload: the coordinator sends no data before that."""

    def __init__(
        self, requests: Iterator[pb.PutFilesRequest] | Iterator[pb.WriteFileRequest], context: grpc.ServicerContext
    ) -> None:
        self._requests = requests
        self._context = context
        self._is_accepted = False

    def __iter__(self) -> Iterator[bytes]:
        """Yield the data. Raises `UpstreamUnavailableError` when the upload breaks off, so that a part is not taken
        for the whole."""
        self._is_accepted = True
        self._context.send_initial_metadata((rpc.ACCEPTED,))
        try:
            for request in self._requests:
                if request.end:
                    return
                yield request.data
        except grpc.RpcError as exc:
            raise UpstreamUnavailableError("the upload broke off") from exc
        raise UpstreamUnavailableError("the upload broke off before its end")

    def drain(self) -> None:
        """`drain` an upload that was accepted."""
        if self._is_accepted:
            drain(self._requests)


def drain(requests: Iterator[object]) -> None:
    """Read what is sent to its end, and drop it: a sender that is interrupted does not receive the error."""
    with suppress(grpc.RpcError):
        for _ in requests:
            pass


def imported(requests: Iterator[pb.ImportBoxRequest], check_disk: Callable[[], None]) -> Iterator[bytes]:
    """Yield the data of an import. `check_disk` is called once in a while, and may raise. Raises
    `UpstreamUnavailableError` when the import breaks off, so that a part is not taken for the whole."""
    try:
        for number, request in enumerate(requests):
            if request.end:
                return
            if number % CHECK_MESSAGES == 0:
                check_disk()
            yield request.data
    except grpc.RpcError as exc:
        raise UpstreamUnavailableError("the import broke off") from exc
    raise UpstreamUnavailableError("the import broke off before its end")
