"""Calls to a worker over real gRPC, as a coordinator makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest

from boxlite_server import ids, rpc
from boxlite_server._gen import worker_pb2 as pb
from boxlite_server._gen import worker_pb2_grpc as pb_grpc
from boxlite_server.worker.executions.registry import Executions
from boxlite_server.worker.files.spool import Spool
from boxlite_server.worker.files.transfer import Files
from boxlite_server.worker.service.servicer import WorkerService
from support.sites import Site

SECRET = "a secret"
EPOCH = "an epoch"


class Client:
    """Makes the stub's calls, each with the secret, a deadline, and the tenant that is being served."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(
            address, options=[("grpc.max_receive_message_length", rpc.MAX_MESSAGE_BYTES)]
        )
        self.stub = pb_grpc.WorkerServiceStub(self.channel)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.stub, name)
        return lambda request: method(request, metadata=(*rpc.with_secret(SECRET), *rpc.with_tenant()), timeout=60)


def service_of(site: Site, spool: Path) -> WorkerService:
    """The service of a worker that keeps its data in `spool`."""
    return WorkerService(site.runtime, Executions(site.runtime, spool), Files(site.runtime, Spool(spool)))


def create_request(site: Site, box: pb.BoxRef, **fields: Any) -> pb.CreateBoxRequest:
    return pb.CreateBoxRequest(box=box, spec=pb.BoxSpec(image=site.image, cpus=1, memory_mib=64, **fields))


def execute(client: Client, box: pb.BoxRef, *command: str, **fields: Any) -> pb.ExecutionRef:
    ref = pb.ExecutionRef(box_id=box.box_id, execution_id=ids.execution_id())
    state = client.StartExecution(
        pb.StartExecutionRequest(box=box, execution_id=ref.execution_id, command=command[0], args=command[1:], **fields)
    )
    assert state.execution_id == ref.execution_id
    return ref


def refusal(call: Any, *args: Any) -> tuple[grpc.StatusCode, str, str]:
    """The gRPC status, the error's code and its text of a call that must fail."""
    with pytest.raises(grpc.RpcError) as caught:
        answer = call(*args)
        list(answer)
    error: Any = caught.value
    codes = [value for key, value in error.trailing_metadata() or () if key == rpc.CODE_KEY]
    return error.code(), codes[0] if codes else "", error.details()
