"""Files of running boxes: by the file service in the box where that can be, and nobody sees where it was not."""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from support.cluster import wait_until
from support.sites import Site, collect, docker_site, in_thread

from boxlite_server.errors import BoxliteError, InvalidStateError, NotFoundError
from boxlite_server.worker.docker.files import DockerFiles
from boxlite_server.worker.files.spool import Spool
from boxlite_server.worker.files.transfer import Files
from boxlite_server.worker.runtime import BoxRef, ExecSpec, FilePart, Mount
from boxlite_server.worker.supervisor import service
from boxlite_server.worker.supervisor.command import UnheardError
from boxlite_server.worker.supervisor.files import SupervisedFiles
from boxlite_server.worker.supervisor.service import MAX_BYTES, Programs

TIME = 1_700_000_000
PATTERN = bytes(range(256)) * 4096  # 1 MiB
KINDS = ["root", "of a user", "an init of its own", "no shell"]
SERVICE = "/dev/boxlite/init --files "
FOR_EACH_SERVICE = (
    "for p in /proc/[0-9]*; do "
    f"""case "$(tr '\\0' ' ' 2>/dev/null < $p/cmdline)" in "{SERVICE}"*) """
    "kill -$0 ${p#/proc/}; echo found; esac; done"
)


def tar(data: bytes, name: str = "any", **fields: Any) -> bytes:
    """An archive of one file."""
    out, info = io.BytesIO(), tarfile.TarInfo(name)
    info.size, info.mtime = len(data), TIME
    for key, value in fields.items():
        setattr(info, key, value)
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def pieces(data: bytes) -> list[bytes | FilePart]:
    """The same of a file `f`, as a worker hands it on. What is large lies in a file."""
    archive = tar(data, "f")
    if len(data) <= MAX_BYTES:
        return [archive]
    file, begin = tempfile.TemporaryFile(), archive.index(data)  # noqa: SIM115
    file.write(data)
    file.flush()
    return [archive[:begin], FilePart(file, 0, len(data)), archive[begin + len(data) :]]


class Box:
    """A running box as a client sees its files."""

    def __init__(self, site: Site, spool: Path, ref: BoxRef) -> None:
        self.runtime = site.runtime
        self.ref = ref
        self._transfers = Files(site.runtime, Spool(spool))

    def put(self, path: str, data: bytes, **fields: Any) -> None:
        self._transfers.put(self.ref, path, [tar(data, **fields)], overwrite=True, source_is_dir=False)

    def unpack(self, path: str, archive: bytes) -> None:
        self._transfers.put(self.ref, path, [archive], overwrite=True, source_is_dir=True)

    def entries(self, path: str) -> list[tuple[tarfile.TarInfo, bytes]]:
        with self._transfers.get(self.ref, path, follow_links=False) as (_, chunks):
            data = io.BytesIO(b"".join(chunks))
        with tarfile.open(fileobj=data) as opened:
            files = [(info, opened.extractfile(info) if info.isfile() else None) for info in opened.getmembers()]
            return [(info, file.read() if file is not None else b"") for info, file in files]

    def entry(self, path: str) -> tuple[tarfile.TarInfo, bytes]:
        (found,) = self.entries(path)
        return found

    def get(self, path: str) -> bytes:
        return self.entry(path)[1]

    def shell(self, script: str, *args: str) -> str:
        out, err, code = collect(self.runtime.spawn(self.ref, ExecSpec(("sh", "-c", script, *args), user="0")))
        assert code == 0, err
        return out.decode(errors="surrogateescape")


@pytest.fixture(scope="module")
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    yield from docker_site(request, supervised=True)


RUNTIMES = ()  # the site is the module's own


@pytest.fixture(scope="module")
def new_box(
    site: Site, tmp_path_factory: pytest.TempPathFactory, new_image: Callable[..., str], bare_program: str
) -> Iterator[Callable[..., Box]]:
    made: list[BoxRef] = []

    def new(kind: str = "root", **fields: Any) -> Box:
        if kind == "of a user":
            fields = {"image": new_image(User="box"), **fields}
        if kind == "an init of its own":
            fields = {"image": new_image(Entrypoint=["sh", "-c", "[ $$ = 1 ] || exit 100; exec sleep 9999"]), **fields}
        if kind == "no shell":
            fields = {"image": bare_program, **fields}
        made.append(site.running_box(**fields))
        return Box(site, tmp_path_factory.mktemp("spool"), made[-1])

    yield new
    for ref in made:
        site.runtime.remove(ref, force=True)


@pytest.fixture(scope="module")
def bare_program(api: docker.APIClient, test_image: str) -> Iterator[str]:
    """An image of one static program, without a shell and without users."""
    base = api.create_container(test_image)["Id"]
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(b"".join(api.get_archive(base, "/bin/busybox")[0]))) as archive:
        (info,) = archive.getmembers()
        content = archive.extractfile(info)
        info.name = "sleep"
        with tarfile.open(fileobj=out, mode="w") as image:
            image.addfile(info, content)
    api.remove_container(base)
    api.import_image_from_data(out.getvalue(), "boxlite-test-program", "latest", changes=['CMD ["/sleep", "9999"]'])
    yield "boxlite-test-program:latest"
    api.remove_image("boxlite-test-program:latest", force=True)


@pytest.fixture(scope="module")
def box(new_box: Callable[..., Box]) -> Box:
    """A running box that the tests share, each with paths of its own."""
    return new_box()


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_engine(monkeypatch)


def refuse_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every file call to the engine fail the test from now on."""

    def refuse(*_: object) -> None:
        raise AssertionError("the engine was asked")

    for call in ("stat", "put", "get"):
        monkeypatch.setattr(DockerFiles, call, refuse)


def by_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the engine do everything from now on."""

    def refuse(*_: object) -> None:
        raise UnheardError

    monkeypatch.setattr(Programs, "take", refuse)


# ---- by the file service --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_file_comes_and_goes_without_the_engine(
    new_box: Callable[..., Box], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    box = new_box(kind)
    place = "/small" if kind == "no shell" else "/tmp/small"
    box.put(place, b"")  # the engine tells at first who the box's user is
    refuse_engine(monkeypatch)
    for data in (b"first", b"second"):
        box.put(place, data, mode=0o640, mtime=TIME + 0.5)
        info, content = box.entry(place)
        assert (content, info.name, info.mode & 0o7777, info.mtime) == (data, "small", 0o640, TIME)
        assert (info.uid, info.gid) == ((1000, 1000) if kind == "of a user" else (0, 0))


@pytest.mark.parametrize("size", [0, 1, 512, 300_000, MAX_BYTES])
@pytest.mark.usefixtures("no_engine")
def test_files_up_to_1_mib_are_small(box: Box, size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    box.put("/sized", data[:size])
    assert box.get("/sized") == data[:size]


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_file_comes_without_the_engine(
    new_box: Callable[..., Box], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    box = new_box(kind)
    place, data = "/large" if kind == "no shell" else "/tmp/large", PATTERN * 30 + b"x"
    box.put(place, b"")  # the engine tells at first who the box's user is
    for content in (data, data[:-77]):
        with monkeypatch.context() as patched:
            refuse_engine(patched)
            box.put(place, content, mode=0o640, mtime=TIME + 0.5)
        info, found = box.entry(place)
        assert found == content
        assert (info.name, info.mode & 0o7777, info.mtime) == ("large", 0o640, TIME)
        assert (info.uid, info.gid) == ((1000, 1000) if kind == "of a user" else (0, 0))


@pytest.mark.parametrize("other", [b"", bytes(512)])
def test_a_large_file_beside_others_is_the_engines(box: Box, other: bytes) -> None:
    for number, names in enumerate([("large", "other"), ("other", "large")]):
        files = {"large": PATTERN * (2 + number), "other": other}
        box.unpack(
            f"/beside-{number}",
            b"".join(tar(files[name], name)[: 512 + len(files[name])] for name in names) + bytes(1024),
        )
        assert {name: box.get(f"/beside-{number}/{name}") for name in names} == files


def test_a_file_of_more_than_half_of_the_boxs_memory_is_the_engines(
    new_box: Callable[..., Box], monkeypatch: pytest.MonkeyPatch
) -> None:
    box = new_box(memory_mib=32)
    data = PATTERN * 17
    box.put("/large", data)
    assert box.get("/large") == data
    refuse_engine(monkeypatch)
    with pytest.raises(AssertionError, match="the engine was asked"):
        box.put("/large", data)


@pytest.mark.usefixtures("no_engine")
def test_a_transfer_is_no_execution_and_leaves_nothing_behind(box: Box) -> None:
    opened = box.runtime.files(box.ref)
    assert isinstance(opened, SupervisedFiles)
    assert opened.stat("/etc/passwd") is not None
    assert SERVICE.strip() in box.shell("ps")
    assert box.runtime.inspect(box.ref).commands == 0
    opened.close()
    for number in range(600):  # more than the supervisor remembers commands
        box.put("/often", b"%d" % number)
    assert box.get("/often") == b"599"
    wait_until(lambda: SERVICE.strip() not in box.shell("ps"), "the file services end")
    assert ".boxlite" not in box.shell("ls -a /")


# ---- the same as by the engine --------------------------------------------------------------------------


FILES = {
    "plain": {"mode": 0o644},
    "set-id": {"mode": 0o6755},
    "nothing allowed": {"mode": 0},
    "sticky": {"mode": 0o1777},
    "old": {"mtime": 1},
    "late": {"mtime": 2**32 + 5},
    "exact": {"mtime": TIME + 0.123456789},
    "ümläut": {},
    "raw-\udcff": {},
    "a\nline": {},
    "x" * 255: {},
}


def test_a_user_of_numbers_needs_no_engine(new_box: Callable[..., Box], no_engine: None) -> None:
    box = new_box(user="1000:1000")
    box.put("/tmp/f", b"x")
    assert box.entry("/tmp/f")[0].uid == 1000


@pytest.mark.parametrize("size", [0, 2 * MAX_BYTES], ids=["small", "large"])
@pytest.mark.parametrize("user", ["", "box", "1000:7"])
def test_an_upload_has_the_same_result(
    new_box: Callable[..., Box], monkeypatch: pytest.MonkeyPatch, user: str, size: int
) -> None:
    box = new_box(user=user)
    results = []
    for _ in range(2):
        box.shell("rm -rf /d /tmp/* && mkdir -m 1777 /d && touch '/d/plain' && ln -s nowhere /d/old && mkfifo /d/late")
        for name, fields in FILES.items():
            box.put("/d/", f"content of {name!r}".encode() + bytes(size), name=name, **fields)
        results.append(box.shell('cd /d; for f in *; do stat -c \'%n %a %u %g %s %Y %F\' "$f"; md5sum < "$f"; done'))
        by_engine(monkeypatch)
    assert results[0] == results[1]


def test_a_download_has_the_same_result(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.shell(
        "mkdir /down && cd /down && for m in 644 4755 2711 1600 0; do echo $m > $m; chmod $m $m; done"
        " && chown 12:34 644 && touch -d @100 644 && ln 644 hard && ln -s 644 link"
        " && echo n > $(printf 'n%.0s' $(seq 200))"
    )
    paths = [f"/down/{name}" for name in ("644", "4755", "2711", "1600", "0", "n" * 200, "hard", "link")]
    results = []
    for _ in range(2):
        found = [box.entry(path) for path in [*paths, "/etc/hosts", "/etc/passwd"]]
        results.append(
            [(i.name, i.type, i.mode & 0o7777, i.uid, i.gid, i.size, i.mtime, i.linkname, data) for i, data in found]
        )
        by_engine(monkeypatch)
    assert results[0] == results[1]


@pytest.mark.parametrize("data", [b"no", PATTERN * 2], ids=["small", "large"])
def test_a_refusal_reads_the_same(
    new_box: Callable[..., Box], site: Site, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    source = site.allowed / "read-only"
    source.mkdir(exist_ok=True)
    (source / "there").write_text("there")
    box = new_box(mounts=(Mount("/ro", host_path=str(source), read_only=True),))
    box.shell(
        "mkdir -p /d/full && touch /d/full/x && mkfifo /d/pipe && ln -s round /d/round && ln -s /proc /d/proc"
        " && ln -s /proc/self/root /d/self && ln -s /dev/null /d/null && ln -s /nowhere /d/broken && touch /d/f"
    )
    reads = ["/d/nosuch", "/d/f/below", "/d/pipe", "/d/round", "/d/round/x", "/d/proc/version", "/d/self/etc/passwd"]
    writes = ["/ro/new", "/ro/there", "/d/f/below", "/d/round/x", "/d/proc/x", "/d/self/x/", "/d/full/x/", "/d/null"]
    results = []
    for _ in range(2):
        told = []
        for act, paths in ((box.get, [*reads, "/d/null", "/d/broken"]), (lambda path: box.put(path, data), writes)):
            for path in paths:
                try:
                    told.append((path, act(path)))
                except BoxliteError as exc:
                    told.append((path, type(exc), exc.message))
        results.append((told, box.shell("ls -R /d /ro")))
        by_engine(monkeypatch)
    assert results[0] == results[1]
    assert [entry for entry in results[0][0] if not isinstance(entry[1], type)] == []
    assert box.get("/ro/there") == b"there"


def test_what_the_boxs_user_may_not_do_the_engine_does(new_box: Callable[..., Box]) -> None:
    box = new_box("of a user")
    box.put("/root/secret", b"secret", mode=0o600)
    assert box.get("/root/secret") == b"secret"
    box.put("/etc/new", PATTERN * 2)
    assert box.shell("stat -c '%u %g' /etc/new; ls -a /etc").startswith("1000 1000\n")
    box.shell("echo old > /tmp/roots; chmod 444 /tmp/roots")  # in a sticky directory
    box.put("/tmp/roots", b"mine")
    assert box.get("/tmp/roots") == b"mine"
    assert ".boxlite" not in box.shell("ls -a /etc /tmp /root")


def test_the_engines_own_files_can_be_replaced(new_box: Callable[..., Box]) -> None:
    box = new_box()
    box.put("/etc/hosts", b"127.0.0.1 mine\n")
    assert box.get("/etc/hosts") == b"127.0.0.1 mine\n"
    box.runtime.stop(box.ref, 0)
    box.runtime.start(box.ref)
    assert box.get("/etc/hosts") == b"127.0.0.1 mine\n"
    assert box.shell("cat /etc/hosts") == "127.0.0.1 mine\n"


def test_a_paused_box_and_a_stopped_one_are_the_engines(new_box: Callable[..., Box], api: docker.APIClient) -> None:
    box = new_box()
    box.put("/f", b"running")
    large = PATTERN * 3
    api.pause(f"boxlite-{box.ref.box_id}-{box.ref.generation}")
    box.put("/f", large)
    assert box.get("/f") == large
    api.unpause(f"boxlite-{box.ref.box_id}-{box.ref.generation}")
    box.runtime.stop(box.ref, 0)
    assert box.get("/f") == large
    box.put("/f", b"stopped")
    box.runtime.start(box.ref)
    assert box.get("/f") == b"stopped"


def test_files_of_a_box_that_was_removed(new_box: Callable[..., Box], site: Site) -> None:
    ref = site.running_box()
    opened = site.runtime.files(ref)
    assert opened.stat("/etc") is not None
    site.runtime.remove(ref, force=True)
    with pytest.raises(BoxliteError):
        opened.get("/etc/passwd")
    with pytest.raises(NotFoundError):
        site.runtime.files(ref)
    opened.close()


# ---- attackers in the box -------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"written", PATTERN * 2], ids=["small", "large"])
@pytest.mark.parametrize("signal", ["STOP", "KILL"])
def test_a_box_that_harms_its_file_service_is_served_by_the_engine(
    new_box: Callable[..., Box], monkeypatch: pytest.MonkeyPatch, signal: str, data: bytes
) -> None:
    monkeypatch.setattr(service, "PATIENCE", 1.0)
    box = new_box()
    opened = box.runtime.files(box.ref)
    assert opened.stat("/etc/passwd") is not None
    assert box.shell(FOR_EACH_SERVICE, signal) == "found\n"
    began = time.monotonic()
    opened.put("/", pieces(data))
    assert b"root:x:0:0" in b"".join(opened.get("/etc/passwd"))
    assert time.monotonic() - began < 60
    opened.close()
    assert box.get("/f") == data
    wait_until(lambda: SERVICE.strip() not in box.shell("ps"), "the file service is killed")
    box.put("/f", b"as before")
    assert box.shell("cat /f") == "as before"


@pytest.mark.parametrize("signal", ["STOP", "KILL"])
def test_a_large_file_that_the_file_service_was_kept_from_writing_is_there_and_nothing_else(
    new_box: Callable[..., Box], monkeypatch: pytest.MonkeyPatch, signal: str
) -> None:
    monkeypatch.setattr(service, "PATIENCE", 1.0)
    box, sendfile = new_box(), os.sendfile

    def sent(out: int, file: int, position: int, size: int) -> int:
        monkeypatch.setattr(os, "sendfile", sendfile)
        done = sendfile(out, file, position, 300_000)
        assert box.shell(FOR_EACH_SERVICE, signal) == "found\n"
        return done

    box.put("/there", b"before")
    monkeypatch.setattr(os, "sendfile", sent)
    box.put("/there", PATTERN * 5)
    assert box.get("/there") == PATTERN * 5
    wait_until(lambda: SERVICE.strip() not in box.shell("ps"), "the file service is killed")
    assert ".boxlite" not in box.shell("ls -a /")


def test_a_program_that_was_killed_while_it_rested_is_replaced(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.put("/rested", b"x")
    box.shell(FOR_EACH_SERVICE, "KILL")
    wait_until(lambda: SERVICE.strip() not in box.shell("ps"), "the file service is killed")
    refuse_engine(monkeypatch)
    assert box.get("/rested") == b"x"


SWAPS = {
    "a pipe": "rm -f x; mkfifo x; rm -f x; echo data > x",
    "a link": "ln -sf /elsewhere/x x; rm -f x; echo data > x",
    "a circle": "rm -f x; ln -s x x; rm -f x; echo data > x",
    "a directory": "rm -rf x; mkdir x; rmdir x; echo data > x",
    "a device": "rm -f x; mknod x c 1 5; rm -f x; echo data > x",
    "the way to it": "cd /; mv swap/d swap/e; ln -s /elsewhere swap/d; rm swap/d; mv swap/e swap/d; cd /swap/d",
}


@pytest.mark.parametrize("swap", SWAPS)
def test_a_file_that_is_something_else_each_moment(box: Box, swap: str) -> None:
    box.shell("rm -rf /swap; mkdir -p /swap/d /elsewhere; echo data | tee /elsewhere/x > /swap/d/x")
    process = box.runtime.spawn(box.ref, ExecSpec(("sh", "-c", f"cd /swap/d; while :; do {SWAPS[swap]}; done")))
    told = set()
    try:
        for number in range(60):
            try:
                if number % 2:
                    box.put("/swap/d/x", b"data\n")
                else:
                    told |= {data for _, data in box.entries("/swap/d/x")}
            except BoxliteError as exc:
                assert exc.message
    finally:
        process.kill()
        collect(process)
    assert told <= {b"data\n", b""}
    assert ".boxlite" not in box.shell("ls -Ra /swap /elsewhere")


def test_many_at_once_are_each_whole(box: Box) -> None:
    """Writers of one file: whoever reads it sees what one of them has written."""
    contents = [bytes([number]) * 200_000 for number in range(4)]
    box.put("/shared", contents[0])
    threads = [in_thread(lambda data=data: [box.put("/shared", data) for _ in range(10)]) for data in contents]
    seen = {box.get("/shared") for _ in range(20)}
    for thread in threads:
        thread.join()
    assert seen <= set(contents)


def test_an_unknown_generation_has_no_file_service(box: Box, site: Site) -> None:
    later = BoxRef(box.ref.box_id, box.ref.generation + 1)
    with pytest.raises((NotFoundError, InvalidStateError)):
        site.runtime.files(later)
