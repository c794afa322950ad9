"""What a worker has of slots and disk is shared: no tenant takes all of it, and each quota is kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from support.calls import SECRET, Client, execute, refusal, service_of
from support.cluster import wait_until
from support.sites import Site

from boxlite_server import errors, rpc
from boxlite_server._gen import worker_pb2 as pb
from boxlite_server.rpc import Tenant
from boxlite_server.worker.commands import ExecSpec
from boxlite_server.worker.executions import registry
from boxlite_server.worker.executions.journal import Journal, Record
from boxlite_server.worker.executions.output_log import Dropped, OutputLog
from boxlite_server.worker.files.spool import Spool
from boxlite_server.worker.runtime import BoxRef
from boxlite_server.worker.service import servicer
from boxlite_server.worker.shares import Room, Shares

MIB = 1024 * 1024


def taken(shares: Shares, tenant: Tenant) -> int:
    """How many the tenant gets now."""
    for count in range(10_000):
        try:
            shares.take(tenant)
        except errors.ResourceExhaustedError:
            return count
    raise AssertionError("there is no end to it")


def test_one_tenant_alone_leaves_a_quarter_to_others() -> None:
    shares = Shares(100, "has 100 slots")
    assert taken(shares, Tenant("acme")) == 75
    assert taken(shares, Tenant("other")) > 0
    assert taken(shares, Tenant("third")) > 0


def test_tenants_that_want_all_come_to_have_the_same() -> None:
    shares, tenants = Shares(100, "has 100 slots"), [Tenant("acme"), Tenant("other")]
    held = {tenant.prefix: taken(shares, tenant) for tenant in tenants}
    for _ in range(200):
        for tenant in tenants:
            shares.give_back(tenant.prefix)
            held[tenant.prefix] -= 1
        for tenant in reversed(tenants):
            held[tenant.prefix] += taken(shares, tenant)
    assert abs(held["acme"] - held["other"]) <= 4
    assert sum(held.values()) > 80


def test_a_call_of_nobody_is_bounded_by_the_total_alone() -> None:
    assert taken(Shares(100, "has 100 slots"), rpc.NOBODY) == 100


def test_a_quota_is_kept_and_named() -> None:
    shares = Shares(100, "has 100 transfers", "transfers")
    acme = Tenant("acme", transfers=2)
    assert taken(shares, acme) == 2
    with pytest.raises(errors.QuotaExceededError, match="the quota transfers of prefix 'acme' is 2"):
        shares.take(acme)
    shares.give_back("acme")
    shares.take(acme)


def test_a_tenant_leaves_room_in_the_spool_to_others(tmp_path: Path) -> None:
    spool = Spool(tmp_path, keep_free=0, budget=64 * MIB)
    with rpc.on_behalf_of(Tenant("acme")):
        mine = [spool.open(f"box{number}") for number in range(8)]
    with pytest.raises(errors.ResourceExhaustedError):
        for file in mine * 100:
            file.write(os.urandom(MIB))
    with rpc.on_behalf_of(Tenant("other")), spool.open("box") as file:
        file.write(os.urandom(4 * MIB))
    for file in mine:
        file.close()
    with rpc.on_behalf_of(Tenant("acme", spooled_bytes=8 * MIB)), spool.open("box") as file:
        file.write(os.urandom(8 * MIB))
        with pytest.raises(errors.QuotaExceededError, match="spooled_bytes"):
            file.write(b"x")


def test_output_over_the_budget_goes_oldest_first_and_no_command_fails(tmp_path: Path) -> None:
    shares = Shares(8 * MIB, "keeps as much output as its disk may take", "spooled_bytes")
    acme = Tenant("acme", spooled_bytes=2 * MIB)
    first, second = (OutputLog(tmp_path, room=Room(shares, acme), name=name) for name in "ab")
    for log in (first, second):
        for _ in range(32):
            log.append(1, os.urandom(256 * 1024))
        log.close()
    assert kept(first) > 1.5 * MIB
    assert kept(second) >= 256 * 1024  # each keeps two records, whatever the others keep
    disk = sum(path.stat().st_blocks * 512 for path in tmp_path.iterdir())
    assert disk < 6 * MIB  # with what is about to be freed of each
    other = OutputLog(tmp_path, room=Room(shares, Tenant("other")), name="c")
    other.append(1, bytes(4 * MIB))
    other.close()
    assert kept(other) > 3 * MIB
    for log in (first, second, other):
        log.discard()
    shares.take(Tenant("third"), 8 * MIB)  # all is given back
    assert sum(1 for _ in tmp_path.iterdir()) == 0


def kept(log: OutputLog) -> int:
    """The bytes that a reader gets who comes now."""
    size = 0
    with log.reader() as reader:
        while events := reader.read(0):
            size += sum(len(event.data) for event in events if not isinstance(event, Dropped))
    return size


def test_a_recovered_log_has_its_room_again(tmp_path: Path) -> None:
    OutputLog(tmp_path, name="a").append(1, bytes(3 * MIB))
    shares = Shares(4 * MIB, "keeps as much output as its disk may take")
    log = OutputLog.recovered(tmp_path, "a", has_ended=True, room=Room(shares, Tenant("acme")))
    assert log is not None
    with pytest.raises(errors.ResourceExhaustedError):
        shares.take(Tenant("acme"), MIB)
    log.discard()
    shares.take(Tenant("acme"), MIB)


@pytest.fixture
def narrow(fake_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A caller of a worker with eight slots of each kind."""
    for limit in ("MAX_READERS", "MAX_RUNS", "MAX_TRANSFERS"):
        monkeypatch.setattr(servicer, limit, 8)
    monkeypatch.setattr(registry, "MAX_EXECUTIONS", 8)
    server = servicer.make_server(service_of(fake_site, tmp_path), SECRET)
    client = Client(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    server.start()
    yield client
    client.channel.close()
    server.stop(0).wait()


@pytest.fixture
def box(fake_site: Site) -> pb.BoxRef:
    made = fake_site.running_box()
    return pb.BoxRef(box_id=made.box_id, generation=made.generation)


def started(client: Client, box: pb.BoxRef, tenant: Tenant) -> list[pb.ExecutionRef]:
    """As many commands as the tenant may start."""
    refs: list[pb.ExecutionRef] = []
    with rpc.on_behalf_of(tenant):
        while True:
            try:
                refs.append(execute(client, box, "sleep", "1000"))
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
                return refs


def test_one_tenant_does_not_take_all_executions_of_a_worker(narrow: Client, box: pb.BoxRef) -> None:
    mine = started(narrow, box, Tenant("acme"))
    assert len(mine) == 6
    theirs = started(narrow, box, Tenant("other"))
    assert theirs
    for ref in (*mine, *theirs):
        narrow.KillExecution(ref)


def test_executions_are_bounded_by_their_quota_until_they_end(narrow: Client, box: pb.BoxRef) -> None:
    tenant = Tenant("acme", executions=2)
    mine = started(narrow, box, tenant)
    assert len(mine) == 2
    with rpc.on_behalf_of(tenant):
        request = pb.StartExecutionRequest(box=box, execution_id="x", command="true")
        assert "the quota executions of prefix 'acme' is 2" in refusal(narrow.StartExecution, request)[2]
        assert "quota executions" in refusal(narrow.RunCommand, pb.RunCommandRequest(start=request))[2]
    narrow.KillExecution(mine[0])
    wait_until(lambda: narrow.GetExecution(mine[0]).status != pb.EXECUTION_STATUS_RUNNING, "the end of the command")
    again: list[pb.ExecutionRef] = []
    wait_until(lambda: bool(again.extend(started(narrow, box, tenant)) or again), "the free slot")
    for ref in (mine[1], *again):
        narrow.KillExecution(ref)


def test_a_command_that_cannot_be_started_takes_nothing(narrow: Client, box: pb.BoxRef) -> None:
    with rpc.on_behalf_of(Tenant("acme", executions=1)):
        for number in range(3):
            request = pb.StartExecutionRequest(box=box, execution_id=f"n{number}", command="nosuch")
            assert refusal(narrow.StartExecution, request)[1] == "execution_failed"
            run = pb.RunCommandRequest(
                start=pb.StartExecutionRequest(box=box, execution_id=f"r{number}", command="true")
            )
            assert narrow.RunCommand(run).ended.exit_code == 0


def test_one_tenant_does_not_take_all_readers_of_a_worker(narrow: Client, box: pb.BoxRef) -> None:
    ref = execute(narrow, box, "sh", "-c", "echo x; sleep 1000")

    def readers(tenant: Tenant) -> list[Iterator[pb.OutputEvents]]:
        streams: list[Iterator[pb.OutputEvents]] = []
        with rpc.on_behalf_of(tenant):
            while True:
                stream = narrow.ReadOutput(pb.ReadOutputRequest(execution=ref))
                try:
                    next(stream)
                except grpc.RpcError as error:
                    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
                    return streams
                streams.append(stream)

    mine, theirs = readers(Tenant("acme")), readers(Tenant("other"))
    assert (len(mine), len(theirs)) == (6, 2)
    narrow.KillExecution(ref)


def test_what_a_former_process_ran_counts_on(fake_site: Site, tmp_path: Path, box: pb.BoxRef) -> None:
    """Executions of a tenant that are taken over hold their slots, and those that have ended hold none."""
    journal = Journal(tmp_path)
    ran = Record.started("ran", BoxRef(box.box_id, 1), "gone", tenant="acme")
    journal.add(ran)
    again = registry.Executions(fake_site.runtime, tmp_path, journal=Journal(tmp_path))
    again.recover()
    with rpc.on_behalf_of(Tenant("acme", executions=1)):
        again.start("next", BoxRef(box.box_id, 1), ExecSpec(("true",)))
