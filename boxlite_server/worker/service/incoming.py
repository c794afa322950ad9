"""What the coordinator streams to the worker: the data of uploads and of imports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import grpc

from ... import rpc
from ..._gen import worker_pb2 as pb
from ...errors import UpstreamUnavailableError


class Upload:
    """The data of an upload. To read it is to accept it: the coordinator sends nothing before."""

    def __init__(self, requests: Iterator[pb.PutFilesRequest], context: grpc.ServicerContext) -> None:
        self._requests = requests
        self._context = context
        self._is_accepted = False

    def __iter__(self) -> Iterator[bytes]:
        """Raises when it breaks off: nothing may be made of a part."""
        self._is_accepted = True
        self._context.send_initial_metadata((rpc.ACCEPTED,))
        try:
            for request in self._requests:
                yield request.data
        except grpc.RpcError as exc:
            raise UpstreamUnavailableError("the upload broke off") from exc
        if not self._context.is_active():
            raise UpstreamUnavailableError("the upload broke off")

    def drain(self) -> None:
        """Read to the end what was accepted: a sender that is interrupted does not hear the reason."""
        if self._is_accepted:
            with suppress(grpc.RpcError):
                for _ in self._requests:
                    pass


def imported(requests: Iterator[pb.ImportBoxRequest]) -> Iterator[bytes]:
    """The data of an import. Raises when it breaks off: nothing may be made of a part."""
    try:
        for request in requests:
            if request.end:
                return
            yield request.data
    except grpc.RpcError as exc:
        raise UpstreamUnavailableError("the import broke off") from exc
    raise UpstreamUnavailableError("the import broke off before its end")
