"""What every runtime promises about the disks of its boxes. Paths are relative: the fake's boxes have no root."""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Iterator

import pytest
from support.sites import Site, collect

from boxlite_server import ids
from boxlite_server.errors import InvalidArgumentError, InvalidStateError, NotFoundError, StoppedError
from boxlite_server.worker.commands import ExecSpec
from boxlite_server.worker.runtime import BoxRef, BoxSpec, BoxStatus


def sh(site: Site, box: BoxRef, script: str) -> bytes:
    """Run a shell script in the box; a stopped box is started for that and stopped again."""
    rests = site.runtime.inspect(box).status is not BoxStatus.RUNNING
    if rests:
        site.runtime.start(box)
    output = collect(site.runtime.spawn(box, ExecSpec(("sh", "-c", script))))[0]
    if rests:
        site.runtime.stop(box, 1)
    return output


def new_ref() -> BoxRef:
    return BoxRef(ids.new_id(), 1)


@pytest.fixture
def made(site: Site) -> Iterator[list[BoxRef]]:
    """Ids of boxes that are removed at the end, in whatever generation."""
    refs: list[BoxRef] = []
    yield refs
    for ref in refs:
        site.runtime.remove(BoxRef(ref.box_id, 100), force=True)


@pytest.fixture
def stopped(site: Site, made: list[BoxRef]) -> BoxRef:
    """A box at rest with a file."""
    box = site.running_box()
    made.append(box)
    sh(site, box, "echo one > file")
    site.runtime.stop(box, 1)
    return box


def test_a_snapshot_holds_what_was_written_before_it(site: Site, stopped: BoxRef) -> None:
    kept = ids.new_id()
    size = site.runtime.disks.snapshot(stopped, kept)
    assert 0 < size.container_disk_bytes <= size.size_bytes
    assert sh(site, stopped, "echo two >> file; cat file") == b"one\ntwo\n"
    state = site.runtime.disks.restore(stopped, kept, 2, site.spec())
    assert (state.box, state.status) == (BoxRef(stopped.box_id, 2), BoxStatus.CONFIGURED)
    assert [s.box for s in site.runtime.list_boxes() if s.box.box_id == stopped.box_id] == [state.box]
    assert sh(site, state.box, "cat file") == b"one\n"
    with pytest.raises(InvalidStateError, match="over"):
        site.runtime.start(stopped)
    with pytest.raises(InvalidStateError, match="over"):
        site.runtime.disks.snapshot(stopped, ids.new_id())


def test_a_running_box_runs_on_when_it_is_kept(site: Site, made: list[BoxRef]) -> None:
    box = site.running_box()
    made.append(box)
    before = site.runtime.inspect(box)
    sh(site, box, "echo one > file")
    kept = ids.new_id()
    site.runtime.disks.snapshot(box, kept)
    assert site.runtime.inspect(box) == before
    with pytest.raises(InvalidStateError, match="running"):
        site.runtime.disks.restore(box, kept, 2, site.spec())
    assert site.runtime.inspect(box) == before
    sh(site, box, "rm file")
    site.runtime.stop(box, 1)
    state = site.runtime.disks.restore(box, kept, 2, site.spec())
    assert sh(site, state.box, "cat file") == b"one\n"


def test_every_verb_may_be_repeated(site: Site, stopped: BoxRef, made: list[BoxRef]) -> None:
    disks, kept, copy = site.runtime.disks, ids.new_id(), new_ref()
    made.append(copy)
    size = disks.snapshot(stopped, kept)
    sh(site, stopped, "echo more than before > file")
    assert disks.snapshot(stopped, kept) == size
    assert (stopped.box_id, kept) in disks.list_snapshots()
    state = disks.restore(stopped, kept, 2, site.spec())
    assert disks.restore(stopped, kept, 2, site.spec()) == state
    assert disks.clone(state.box, copy, site.spec()) == disks.clone(state.box, copy, site.spec())
    disks.remove_snapshot(state.box, kept)
    disks.remove_snapshot(state.box, kept)
    assert kept not in [snapshot_id for _, snapshot_id in disks.list_snapshots()]
    assert sh(site, state.box, "cat file") == b"one\n"


def test_a_chain_of_restores(site: Site, stopped: BoxRef) -> None:
    """Each snapshot stays good whatever becomes of those before it."""
    disks, box = site.runtime.disks, stopped
    first, second = ids.new_id(), ids.new_id()
    disks.snapshot(box, first)
    box = disks.restore(box, first, 2, site.spec()).box
    sh(site, box, "echo two >> file")
    disks.snapshot(box, second)
    disks.remove_snapshot(box, first)
    assert sh(site, box, "cat file") == b"one\ntwo\n"
    with pytest.raises(NotFoundError, match=first):
        disks.restore(box, first, 3, site.spec())
    assert sh(site, box, "rm file; echo still here") == b"still here\n"
    box = disks.restore(box, second, 3, site.spec()).box
    disks.remove_snapshot(box, second)
    assert sh(site, box, "cat file") == b"one\ntwo\n"
    third = ids.new_id()
    disks.snapshot(box, third)
    assert sh(site, disks.restore(box, third, 4, site.spec()).box, "cat file") == b"one\ntwo\n"


def test_what_is_not_there(site: Site, stopped: BoxRef) -> None:
    disks, nowhere = site.runtime.disks, new_ref()
    with pytest.raises(NotFoundError):
        disks.snapshot(nowhere, ids.new_id())
    with pytest.raises(NotFoundError):
        disks.clone(nowhere, new_ref(), site.spec())
    with pytest.raises(NotFoundError), disks.export(nowhere):
        pass
    with pytest.raises(NotFoundError):
        disks.restore(stopped, ids.new_id(), 2, site.spec())
    assert site.runtime.inspect(stopped).status is BoxStatus.STOPPED
    disks.remove_snapshot(nowhere, ids.new_id())


def test_a_snapshot_belongs_to_its_box(site: Site, stopped: BoxRef, made: list[BoxRef]) -> None:
    other, kept = site.new_box(), ids.new_id()
    made.append(other)
    site.runtime.disks.snapshot(stopped, kept)
    site.runtime.disks.remove_snapshot(other, kept)
    with pytest.raises(NotFoundError):
        site.runtime.disks.restore(other, kept, 2, site.spec())
    site.runtime.disks.restore(stopped, kept, 2, site.spec())


def test_a_box_that_lost_its_container_comes_back_from_a_snapshot(site: Site, stopped: BoxRef) -> None:
    kept = ids.new_id()
    site.runtime.disks.snapshot(stopped, kept)
    state = site.runtime.disks.restore(stopped, kept, 7, site.spec())
    assert sh(site, state.box, "cat file") == b"one\n"


@pytest.mark.parametrize("running", [False, True])
def test_a_clone_goes_its_own_way(site: Site, stopped: BoxRef, made: list[BoxRef], running: bool) -> None:
    if running:
        site.runtime.start(stopped)
    before, copy = site.runtime.inspect(stopped), new_ref()
    made.append(copy)
    state = site.runtime.disks.clone(stopped, copy, site.spec(env={"A": "b"}))
    assert (state.box, state.status) == (copy, BoxStatus.CONFIGURED)
    assert site.runtime.inspect(stopped) == before
    assert sh(site, copy, 'cat file; echo $A; echo "of the copy" > file') == b"one\nb\n"
    assert sh(site, stopped, "cat file") == b"one\n"
    site.runtime.remove(stopped, force=True)
    assert sh(site, copy, "cat file") == b"of the copy\n"


@pytest.mark.parametrize("running", [False, True])
def test_an_export_makes_a_box_elsewhere(site: Site, stopped: BoxRef, made: list[BoxRef], running: bool) -> None:
    if running:
        site.runtime.start(stopped)
    before, box = site.runtime.inspect(stopped), new_ref()
    made.append(box)
    with site.runtime.disks.export(stopped) as export:
        pieces = [*export.tar]
    assert site.runtime.inspect(stopped) == before
    own = export.settings
    spec = BoxSpec(
        image=site.image, memory_mib=64, network_enabled=False, env={**own.env, "X": "y"}, entrypoint=own.entrypoint,
        cmd=own.cmd, working_dir=own.working_dir, user=own.user,
    )  # fmt: skip
    state = site.runtime.disks.load(box, spec, iter(pieces))
    assert (state.box, state.status) == (box, BoxStatus.CONFIGURED)
    assert site.runtime.disks.load(box, spec, iter([])) == state
    assert sh(site, box, "cat file; echo $X") == b"one\ny\n"
    kept = ids.new_id()
    site.runtime.disks.snapshot(box, kept)
    restored = site.runtime.disks.restore(box, kept, 2, spec).box
    assert sh(site, restored, "cat file; echo $X") == b"one\ny\n"


def test_an_export_is_of_the_moment_it_was_asked_for(site: Site, stopped: BoxRef) -> None:
    site.runtime.start(stopped)
    with site.runtime.disks.export(stopped) as export:
        sh(site, stopped, "echo two > file")
        site.runtime.remove(stopped, force=True)
        data = b"".join(export.tar)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        names = {name.removeprefix("./"): name for name in tar.getnames()}
        found = tar.extractfile(names["file"])
        assert found is not None and found.read() == b"one\n"


def test_the_settings_of_an_export(site: Site, made: list[BoxRef]) -> None:
    box = site.new_box(env={"A": "a=b\nc"}, cmd=("-c", "exit 3"), entrypoint=("sh",), working_dir="/tmp", user="root")
    made.append(box)
    with site.runtime.disks.export(box) as export:
        own = export.settings
    assert own.env["A"] == "a=b\nc"
    assert (own.entrypoint, own.cmd, own.working_dir, own.user) == (("sh",), ("-c", "exit 3"), "/tmp", "root")


@pytest.mark.parametrize("data", [b"x" * 5000, b"\xff" * 100, b"\x1f\x8b" + b"\0" * 600], ids=["text", "short", "gzip"])
def test_what_is_no_archive_makes_no_box(site: Site, data: bytes) -> None:
    box = new_ref()
    with pytest.raises(InvalidArgumentError):
        site.runtime.disks.load(box, site.spec(cmd=("sh",)), iter([data]))
    with pytest.raises(NotFoundError):
        site.runtime.inspect(box)


@pytest.mark.parametrize("part", [0.5, 1.0])
def test_an_archive_that_breaks_off_makes_no_box(site: Site, stopped: BoxRef, part: float) -> None:
    with site.runtime.disks.export(stopped) as export:
        data = b"".join(export.tar)

    def broken() -> Iterator[bytes]:
        yield data[: int(len(data) * part)]
        raise InvalidArgumentError("it broke off")

    box = new_ref()
    with pytest.raises(InvalidArgumentError, match="it broke off"):
        site.runtime.disks.load(box, site.spec(cmd=("sh",)), broken())
    with pytest.raises(NotFoundError):
        site.runtime.inspect(box)


def test_all_disks_go_with_their_box(site: Site, stopped: BoxRef, made: list[BoxRef]) -> None:
    disks, copy, kept = site.runtime.disks, new_ref(), ids.new_id()
    made.append(copy)
    disks.snapshot(stopped, kept)
    disks.clone(stopped, copy, site.spec())
    box = disks.restore(stopped, kept, 2, site.spec()).box
    site.runtime.remove(box, force=True)
    disks.tidy()
    with pytest.raises(NotFoundError):
        disks.restore(box, kept, 3, site.spec())
    assert sh(site, copy, "cat file") == b"one\n"


def test_an_export_that_nobody_reads_to_its_end(site: Site, stopped: BoxRef) -> None:
    with contextlib.suppress(StoppedError), site.runtime.disks.export(stopped) as export:
        next(export.tar)
        raise StoppedError("enough")
    assert site.runtime.inspect(stopped).status is BoxStatus.STOPPED
