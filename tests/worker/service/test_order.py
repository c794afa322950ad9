"""Calls that are delivered twice, or behind what was sent after them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from support.calls import SECRET, Client, create_request, refusal
from support.sites import Site

from boxlite_server import ids, rpc
from boxlite_server._gen import worker_pb2 as pb
from boxlite_server.worker.runtime import BoxRef


@pytest.fixture
def box(served_box: pb.BoxRef) -> pb.BoxRef:
    """A running box of the served worker."""
    return served_box


@pytest.fixture
def removed(fake_site: Site, client: Client) -> pb.BoxRef:
    ref = pb.BoxRef(box_id=ids.new_id(), generation=2)
    client.CreateBox(create_request(fake_site, ref))
    client.RemoveBox(pb.RemoveBoxRequest(box=ref, force=True))
    return ref


def test_nothing_revives_a_removed_box(fake_site: Site, client: Client, box: pb.BoxRef, removed: pb.BoxRef) -> None:
    create = create_request(fake_site, removed)
    kept = pb.SnapshotRef(box=removed, snapshot_id=ids.new_id())
    calls = [
        (client.CreateBox, create),
        (client.CloneBox, pb.CloneBoxRequest(source=box, box=removed, spec=create.spec)),
        (client.RestoreSnapshot, pb.RestoreSnapshotRequest(snapshot=kept, new_generation=3, spec=create.spec)),
    ]
    for call, request in calls:
        status, code, text = refusal(call, request)
        assert (status, code) == (grpc.StatusCode.FAILED_PRECONDITION, "invalid_state")
        assert "has been removed" in text
    assert refusal(client.ImportBox, iter([pb.ImportBoxRequest(box=create)]))[1] == "invalid_state"
    assert refusal(client.StartBox, removed)[1] == "not_found"
    assert refusal(client.StopBox, pb.StopBoxRequest(box=removed))[1] == "not_found"
    assert refusal(client.CreateSnapshot, kept)[1] == "not_found"
    client.RemoveBox(pb.RemoveBoxRequest(box=removed))
    assert removed.box_id not in [found.box_id for found in client.ListBoxes(pb.Empty()).boxes]


def test_a_removal_that_comes_before_its_create(fake_site: Site, client: Client) -> None:
    ref = pb.BoxRef(box_id=ids.new_id(), generation=1)
    client.RemoveBox(pb.RemoveBoxRequest(box=ref, force=True))
    assert refusal(client.CreateBox, create_request(fake_site, ref))[1] == "invalid_state"


def test_a_later_generation_of_a_removed_box_is_another_matter(
    fake_site: Site, client: Client, removed: pb.BoxRef
) -> None:
    later = pb.BoxRef(box_id=removed.box_id, generation=3)
    client.CreateBox(create_request(fake_site, later))
    client.RemoveBox(pb.RemoveBoxRequest(box=later))


def test_a_refused_removal_leaves_no_tombstone(fake_site: Site, client: Client, box: pb.BoxRef) -> None:
    assert refusal(client.RemoveBox, pb.RemoveBoxRequest(box=box))[1] == "invalid_state"
    assert client.CreateBox(create_request(fake_site, box)).status == pb.BOX_STATUS_RUNNING


def test_a_removed_snapshot_is_not_made_again(client: Client, box: pb.BoxRef) -> None:
    ref = pb.SnapshotRef(box=box, snapshot_id=ids.new_id())
    made = client.CreateSnapshot(ref)
    assert client.CreateSnapshot(ref) == made
    client.RemoveSnapshot(ref)
    client.RemoveSnapshot(ref)
    assert refusal(client.CreateSnapshot, ref)[1] == "invalid_state"


def test_a_removed_volume_is_not_made_again(client: Client) -> None:
    volume = pb.VolumeRef(volume_id=ids.new_id())
    assert client.CreateVolume(volume) == client.CreateVolume(volume)
    client.RemoveVolume(volume)
    client.RemoveVolume(volume)
    assert refusal(client.CreateVolume, volume)[1] == "invalid_state"


def test_copies_are_made_once(fake_site: Site, client: Client, box: pb.BoxRef) -> None:
    copy, imported = (pb.BoxRef(box_id=ids.new_id(), generation=1) for _ in range(2))
    request = pb.CloneBoxRequest(source=box, box=copy, spec=create_request(fake_site, copy, cmd=["sh"]).spec)
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(client.CloneBox, [request] * 3))
    assert answers[0] == answers[1] == answers[2]
    data = b"".join(chunk.data for chunk in client.ExportBox(box))
    create = create_request(fake_site, imported, cmd=["sh"])

    def requests(_: int) -> Iterator[pb.ImportBoxRequest]:
        yield pb.ImportBoxRequest(box=create)
        yield from (pb.ImportBoxRequest(data=piece) for piece in rpc.chunks(data))
        yield pb.ImportBoxRequest(end=True)

    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(client.ImportBox, map(requests, range(3))))
    assert answers[0] == answers[1] == answers[2]
    found = [one.box_id for one in client.ListBoxes(pb.Empty()).boxes]
    assert (found.count(copy.box_id), found.count(imported.box_id)) == (1, 1)
    for ref in (copy, imported):
        client.RemoveBox(pb.RemoveBoxRequest(box=ref, force=True))


def test_what_nobody_waits_for_any_more_is_not_done(
    fake_site: Site, client: Client, box: pb.BoxRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, release, stops = threading.Event(), threading.Event(), []
    start, stop = fake_site.runtime.start, fake_site.runtime.stop

    def slow(ref: BoxRef) -> Any:
        began.set()
        assert release.wait(60)
        return start(ref)

    def noted(ref: BoxRef, timeout: float) -> Any:
        stops.append(ref)
        return stop(ref, timeout)

    monkeypatch.setattr(fake_site.runtime, "start", slow)
    monkeypatch.setattr(fake_site.runtime, "stop", noted)
    metadata = rpc.with_secret(SECRET)
    under_way = client.stub.StartBox.future(box, metadata=metadata, timeout=60)
    assert began.wait(60)
    late = client.stub.StopBox.future(pb.StopBoxRequest(box=box), metadata=metadata, timeout=0.2)
    with pytest.raises(grpc.RpcError):
        late.result()
    client.ListBoxes(pb.Empty())  # the server reads this after the end of the late call
    release.set()
    assert under_way.result().status == pb.BOX_STATUS_RUNNING
    monkeypatch.setattr(fake_site.runtime, "start", start)
    assert client.StartBox(box).status == pb.BOX_STATUS_RUNNING  # queued behind the first call
    assert stops == []


def test_a_snapshot_of_a_former_generation_can_be_removed(fake_site: Site, client: Client, box: pb.BoxRef) -> None:
    kept = ids.new_id()
    snapshot = pb.SnapshotRef(box=box, snapshot_id=kept)
    client.CreateSnapshot(snapshot)
    client.StopBox(pb.StopBoxRequest(box=box))
    spec = create_request(fake_site, box).spec
    client.RestoreSnapshot(pb.RestoreSnapshotRequest(snapshot=snapshot, new_generation=3, spec=spec))
    later = pb.BoxRef(box_id=box.box_id, generation=3)
    client.StartBox(later)
    assert refusal(client.StartBox, box)[1] == "invalid_state"
    client.RemoveSnapshot(snapshot)
    assert (box.box_id, kept) not in fake_site.runtime.disks.list_snapshots()
    client.RemoveBox(pb.RemoveBoxRequest(box=later, force=True))
    box.generation = 3
