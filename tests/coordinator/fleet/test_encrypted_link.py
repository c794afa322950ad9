"""The way to a worker over mutual TLS: whom the coordinator takes for the worker, and what a renewal does to calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from support import certs
from support.rows import WORKER

from boxlite_server import errors
from boxlite_server._gen import worker_pb2 as pb
from boxlite_server._gen import worker_pb2_grpc
from boxlite_server.coordinator.fleet.certificates import Certificates
from boxlite_server.coordinator.fleet.link import GrpcLink
from boxlite_server.tls import certificates, files
from boxlite_server.tls.certificates import Issued

BOX = pb.BoxRef(box_id="AbCdEf123456", generation=1)
CA, OTHER_CA = certificates.new_ca("one"), certificates.new_ca("one")
SECONDS = 10.0


class Service(worker_pb2_grpc.WorkerServiceServicer):
    """Remembers the certificate of each caller; a stream goes on until `let` is set."""

    def __init__(self) -> None:
        self.callers: list[bytes] = []
        self.let = asyncio.Event()

    async def GetBox(self, request: pb.BoxRef, context: Any) -> pb.Box:
        self.callers += context.auth_context()["x509_pem_cert"]
        return pb.Box(box_id=request.box_id)

    async def ReadLogs(self, request: Any, context: Any) -> AsyncIterator[pb.OutputChunk]:
        yield pb.OutputChunk(data=b"first")
        await self.let.wait()
        yield pb.OutputChunk(data=b"last")


@dataclass
class Site:
    directory: Path
    service: Service
    link: GrpcLink
    clock: list[float]

    def renew(self, ca: Issued = CA) -> Issued:
        """Give the coordinator another certificate, of `ca`."""
        mine = certs.coordinator(ca)
        certs.written(self.directory, "c", mine, CA)
        self.clock[0] += files.LOOK_SECONDS
        return mine


def with_worker(
    directory: Path, story: Callable[[Site], Awaitable[None]], shown: Issued, client_ca: Issued = CA
) -> None:
    """Run a story with a worker that shows this certificate, and takes those that `client_ca` has issued."""

    async def run() -> None:
        service, server = Service(), grpc.aio.server()
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
        pairs = [(shown.key, shown.certificate)]
        credentials = grpc.ssl_server_credentials(pairs, client_ca.certificate, require_client_auth=True)
        port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        clock = [0.0]
        found = certs.written(directory, "c", certs.coordinator(CA), CA)
        watched = files.Watched(found, monotonic=lambda: clock[0])
        link = Certificates(watched).connect(WORKER._replace(url=f"https://127.0.0.1:{port}"))
        try:
            await story(Site(directory, service, link, clock))
        finally:
            await link.close()
            await server.stop(None)

    asyncio.run(asyncio.wait_for(run(), 60))


async def ask(site: Site) -> None:
    assert (await site.link.unary("GetBox", BOX, timeout=SECONDS)).box_id == BOX.box_id


def test_the_worker_is_known_by_its_id_wherever_it_is(tmp_path: Path) -> None:
    with_worker(tmp_path, ask, certs.worker(CA, WORKER.id))


@pytest.mark.parametrize(
    "shown",
    [
        certs.worker(CA, "w2"),
        certs.worker(OTHER_CA, WORKER.id),
        certs.coordinator(CA),
        certs.worker(CA, WORKER.id, certs.MINUTE_AGO),
    ],
    ids=["of another worker", "of another authority", "of a coordinator", "expired"],
)
def test_who_shows_another_certificate_is_told_nothing(tmp_path: Path, shown: Issued) -> None:
    async def story(site: Site) -> None:
        with pytest.raises(errors.UnreachableError):
            await ask(site)
        assert not site.service.callers

    with_worker(tmp_path, story, shown)


def test_calls_take_the_renewed_certificate_and_those_under_way_go_on(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        logs = site.link.stream("ReadLogs", pb.ReadLogsRequest())
        assert (await anext(logs)).data == b"first"
        for _ in range(3):
            mine = site.renew()
            await ask(site)
            assert site.service.callers[-1] == mine.certificate
        await asyncio.sleep(0)
        site.service.let.set()
        assert (await anext(logs)).data == b"last"
        assert await anext(logs, None) is None

    with_worker(tmp_path, story, certs.worker(CA, WORKER.id))


def test_closing_the_link_ends_calls_of_before_a_renewal(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        logs = site.link.stream("ReadLogs", pb.ReadLogsRequest())
        assert (await anext(logs)).data == b"first"
        site.renew()
        await ask(site)
        waiting = asyncio.ensure_future(anext(logs))
        await asyncio.sleep(0)
        await site.link.close()
        with pytest.raises(errors.UnreachableError):
            await waiting

    with_worker(tmp_path, story, certs.worker(CA, WORKER.id))


@pytest.mark.parametrize(("url", "encrypts"), [("http://h:1", True), ("h:1", True), ("https://h:1", False)])
def test_encrypted_and_plain_sides_do_not_meet(tmp_path: Path, url: str, encrypts: bool) -> None:
    found = certs.written(tmp_path, "c", certs.coordinator(CA), CA)
    mine = Certificates(files.Watched(found) if encrypts else None)
    with pytest.raises(errors.UpstreamUnavailableError, match="--tls-ca"):
        mine.connect(WORKER._replace(url=url))
