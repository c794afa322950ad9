"""Errors on gRPC: what a worker says, and what others say where a worker should be."""

from __future__ import annotations

import grpc
import grpc.aio
import pytest

from boxlite_server import errors, rpc

NOTHING = grpc.aio.Metadata()


def failed(code: grpc.StatusCode, trailing: grpc.aio.Metadata = NOTHING) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, NOTHING, trailing, details="so it was")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.UnreachableError),
        (grpc.StatusCode.UNIMPLEMENTED, errors.UpstreamUnavailableError),
        (grpc.StatusCode.PERMISSION_DENIED, errors.UpstreamUnavailableError),
        (grpc.StatusCode.UNAUTHENTICATED, errors.UpstreamUnavailableError),
        (grpc.StatusCode.CANCELLED, errors.UpstreamUnavailableError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.TimedOutError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.ResourceExhaustedError),
        (grpc.StatusCode.UNKNOWN, errors.BoxliteError),
    ],
)
def test_what_is_no_answer_of_a_worker(code: grpc.StatusCode, expected: type[errors.BoxliteError]) -> None:
    error = rpc.from_rpc_error(failed(code), "frosty-meadow-42")
    assert type(error) is expected
    assert "frosty-meadow-42" in error.message


def test_a_worker_speaks_for_itself() -> None:
    told = failed(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata((rpc.CODE_KEY, "engine_unavailable")))
    error = rpc.from_rpc_error(told, "frosty-meadow-42")
    assert (type(error), error.message) == (errors.EngineError, "so it was")


def test_a_caller_that_has_gone_is_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    class Context:
        def set_trailing_metadata(self, pairs: tuple[tuple[str, str], ...]) -> None:
            assert dict(pairs) == {rpc.CODE_KEY: "upstream_unavailable"}

        def abort(self, code: grpc.StatusCode, details: str) -> None:
            assert code is grpc.StatusCode.UNAVAILABLE

    rpc.abort(Context(), grpc.RpcError())  # type: ignore[arg-type]
    assert not caplog.records
