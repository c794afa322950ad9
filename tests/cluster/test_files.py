"""Files through the whole of a cluster: bounded memory, broken lines, hostile archives, the `cp` command."""

from __future__ import annotations

import io
import os
import pty
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import memory, transfer
from support.cluster import Cluster, Worker, wait_until

MIB = 1 << 20
TAR = {"Content-Type": "application/x-tar"}


def tar(*entries: tuple[str, bytes | None], **fields: Any) -> bytes:
    """An archive of files, and of directories where the content is None; `fields` are those of each entry."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data or b"")
            info.type, info.mode = (tarfile.REGTYPE, 0o644) if data is not None else (tarfile.DIRTYPE, 0o755)
            for key, value in fields.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data or b""))
    return out.getvalue()


class Box:
    """A box that was never started, over HTTP."""

    def __init__(self, cluster: Cluster, image: str) -> None:
        self.cluster = cluster
        status, _, box = cluster.http("POST", "/v1/boxes", {"image": image, "memory_mib": 128})
        assert status == 201, box
        self.id = box["box_id"]

    @property
    def worker(self) -> Worker:
        return self.cluster.workers[0]

    def put(self, path: str, body: Any, query: str = "") -> tuple[int, Any]:
        status, _, answer = self.cluster.http("PUT", transfer.url(self.id, path) + query, body, headers=TAR)
        return status, answer

    def get(self, path: str, query: str = "") -> tuple[int, dict[str, str], Any]:
        return self.cluster.http("GET", transfer.url(self.id, path) + query)

    def names(self, path: str) -> list[str]:
        status, _, body = self.get(path)
        assert status == 200, body
        with tarfile.open(fileobj=io.BytesIO(body)) as archive:
            return archive.getnames()

    def has(self, path: str) -> bool:
        return self.get(path)[0] == 200

    def spooled(self) -> int:
        """How many transfers the worker holds on its disk."""
        found = 0
        for descriptor in Path(f"/proc/{self.worker.pid}/fd").iterdir():
            try:
                found += str(self.worker.home / "transfers") in str(descriptor.readlink())
            except OSError:
                continue
        return found


@pytest.fixture
def box(cluster: Cluster, test_image: str) -> Iterator[Box]:
    box = Box(cluster, test_image)
    yield box
    assert cluster.http("DELETE", f"/v1/boxes/{box.id}?force=true")[0] == 204


def test_a_small_file_of_a_running_box_comes_and_goes_whole(box: Box) -> None:
    assert box.cluster.http("POST", f"/v1/boxes/{box.id}/start")[0] == 200
    for data in (b"one", b"two"):
        assert box.put("/new/place/f", tar(("any", data), mode=0o600), "&source_is_dir=false")[0] == 204
        status, headers, body = box.get("/new/place/f")
        assert (status, headers["x-boxlite-source-is-dir"]) == (200, "false")
        assert int(headers["content-length"]) == len(body)
        with tarfile.open(fileobj=io.BytesIO(body)) as archive:
            (info,) = archive.getmembers()
            assert (info.name, info.mode & 0o7777, info.size) == ("f", 0o600, 3)
            assert data in body
    assert box.put("/new/place/f", tar(("any", b"three")), "&overwrite=false")[0] == 409
    assert box.get("/new/place/nosuch")[0] == 404
    assert box.put("/new/place/f/below", tar(("any", b"x")))[0] == 409
    assert box.put("/proc/f", tar(("any", b"x")))[0] == 400
    for _ in range(2):
        assert box.put("/tree/", tar(("a", None), ("a/b", b"x"), ("c", b"y")))[0] == 204
    assert len(box.names("/tree")) == 4


def test_what_is_written_is_read(box: Box) -> None:
    assert box.put("/srv/a.txt", tar(("host-name", b"content"))) == (204, b"")
    status, headers, body = box.get("/srv/a.txt")
    assert status == 200
    assert headers["content-type"] == "application/x-tar"
    assert headers["x-boxlite-source-is-dir"] == "false"
    with tarfile.open(fileobj=io.BytesIO(body)) as archive:
        (entry,) = archive.getmembers()
        assert (entry.name, entry.size) == ("a.txt", 7)
    assert box.get("/srv")[1]["x-boxlite-source-is-dir"] == "true"
    assert box.names("/srv/.") == [".", "./a.txt"]
    assert box.cluster.http("GET", f"/v1/boxes/{box.id}")[2]["status"] == "configured"  # still not started


@pytest.mark.parametrize(
    ("path", "body", "query", "status", "code"),
    [
        ("/x", b"no archive", "", 400, "invalid_argument"),
        ("/x", b"", "", 400, "invalid_argument"),
        ("/x", b"\x1f\x8b" + bytes(1000), "", 400, "invalid_argument"),
        ("/x", tar(("f", b"x" * 600))[:1024], "", 400, "invalid_argument"),
        ("/x", tar(("../../../etc/passwd", b"")), "", 400, "invalid_argument"),
        ("/x", tar(("/etc/passwd", b"")), "", 400, "invalid_argument"),
        ("/x", tar(("disk", b""), type=tarfile.BLKTYPE), "", 400, "invalid_argument"),
        ("/x", tar(("h", b""), type=tarfile.LNKTYPE, linkname="/etc/shadow"), "", 400, "invalid_argument"),
        ("/x", tar(("l", b""), ("l/in", b""), type=tarfile.SYMTYPE, linkname="/etc"), "", 400, "invalid_argument"),
        ("/x", tar(("a", b""), ("b", b"")), "&source_is_dir=false", 400, "invalid_argument"),
        ("/proc/x", tar(("a", b"")), "", 400, "invalid_argument"),
        ("/etc/passwd/x", tar(("a", b"")), "", 409, "invalid_state"),
        ("/etc/group", tar(("a", b"")), "&overwrite=false", 409, "already_exists"),
        ("/etc", tar((".", None), ("x", b""), ("group", b"")), "&overwrite=false", 409, "already_exists"),
        ("/x", tar(("a", b"")), "&overwrite=perhaps", 400, "invalid_argument"),
        ("", tar(("a", b"")), "", 400, "invalid_argument"),
        ("/" + "x" * 5000, tar(("a", b"")), "", 400, "invalid_argument"),
    ],
)
def test_refused_uploads_write_nothing(box: Box, path: str, body: bytes, query: str, status: int, code: str) -> None:
    before = box.names("/etc")
    got, answer = box.put(path, body, query)
    assert (got, answer["error"]["code"]) == (status, code)
    assert answer["error"]["message"]
    assert not box.has("/x")
    assert box.names("/etc") == before


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [("/nosuch", 404, "not_found"), ("/etc/passwd/x", 404, "not_found"), ("/proc/1", 400, "invalid_argument")],
)
def test_refused_downloads_are_no_200(box: Box, path: str, status: int, code: str) -> None:
    got, _, answer = box.get(path)
    assert (got, answer["error"]["code"]) == (status, code)


def test_an_unknown_box(cluster: Cluster) -> None:
    for answer in (cluster.http("PUT", transfer.url("nosuch", "/x"), tar(("a", b"")), headers=TAR),):
        assert (answer[0], answer[2]["error"]["code"]) == (404, "not_found")
    assert cluster.http("GET", transfer.url("nosuch", "/x"))[0] == 404


def test_a_refusal_reaches_a_client_that_is_still_sending(box: Box) -> None:
    big = tar(("a", bytes(20 * MIB)))
    for path in (transfer.url("nosuch", "/x"), transfer.url(box.id, "/proc/x")):
        pieces = iter([big[n : n + MIB] for n in range(0, len(big), MIB)])
        status, _, answer = box.cluster.http("PUT", path, pieces, headers=TAR)
        assert status in (400, 404)
        assert answer["error"]["message"]


def test_a_round_trip_of_64_mib(box: Box) -> None:
    sent = transfer.upload(box.cluster.port, box.id, "/root/data", 64)
    assert transfer.download(box.cluster.port, box.id, "/root/data") == sent


def test_memory_does_not_grow_with_the_file(box: Box) -> None:
    cluster = box.cluster
    assert cluster.coordinator is not None
    transfer.download(cluster.port, box.id, "/bin/busybox")
    transfer.upload(cluster.port, box.id, "/root/warm", 4)
    with memory.growth(cluster.coordinator.pid) as coordinator, memory.growth(box.worker.pid) as worker:
        sent = transfer.upload(cluster.port, box.id, "/root/data", 256)
        assert transfer.download(cluster.port, box.id, "/root/data") == sent
    assert coordinator.peak < 32 * MIB
    assert worker.peak < 32 * MIB


def test_many_at_once(box: Box) -> None:
    results: dict[int, bool] = {}

    def both_ways(number: int) -> None:
        sent = transfer.upload(box.cluster.port, box.id, f"/root/{number}", 2, seed=number)
        results[number] = transfer.download(box.cluster.port, box.id, f"/root/{number}") == sent

    threads = [threading.Thread(target=both_ways, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == dict.fromkeys(range(24), True)


def test_an_upload_that_breaks_off_leaves_nothing(box: Box) -> None:
    archive = tar(("early", bytes(MIB)), ("late", bytes(MIB)))
    head = f"PUT {transfer.url(box.id, '/fresh')} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-tar\r\n"
    with socket.create_connection(("127.0.0.1", box.cluster.port)) as line:
        line.sendall(f"{head}Content-Length: {len(archive)}\r\n\r\n".encode() + archive[: 3 * MIB // 2])
        wait_until(lambda: box.spooled() == 1, "the upload has reached the worker")
    wait_until(lambda: box.spooled() == 0, "the worker has let go of it")
    assert not box.has("/fresh")


def test_a_reader_that_does_not_read_holds_up_nobody(box: Box) -> None:
    transfer.upload(box.cluster.port, box.id, "/root/data", 64)
    with socket.create_connection(("127.0.0.1", box.cluster.port)) as line:
        line.sendall(f"GET {transfer.url(box.id, '/root/data')} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert line.recv(12) == b"HTTP/1.1 200"
        # The engine locks a container while an archive of it is under way: the worker has to take it all.
        assert box.cluster.http("POST", f"/v1/boxes/{box.id}/start")[0] == 200
        assert box.put("/root/other", tar(("x", b"x")))[0] == 204
        assert box.spooled() == 1
    wait_until(lambda: box.spooled() == 0, "the worker has let go of it")


def test_a_download_that_the_worker_breaks_off_breaks_the_connection(new_cluster, test_image: str) -> None:
    """An archive that merely ended early would look whole."""
    cluster = new_cluster()
    cluster.start_coordinator()
    worker = cluster.start_worker()
    box = Box(cluster, test_image)
    transfer.upload(cluster.port, box.id, "/root/data", 64)
    with socket.create_connection(("127.0.0.1", cluster.port)) as line:
        line.sendall(f"GET {transfer.url(box.id, '/root/data')} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        received = bytearray(line.recv(65536))
        worker.kill()
        while data := line.recv(MIB):
            received += data
    assert received.startswith(b"HTTP/1.1 200")
    assert not received.endswith(b"0\r\n\r\n")
    worker.start()
    assert cluster.http("DELETE", f"/v1/boxes/{box.id}?force=true")[0] == 204


def test_an_upload_that_the_worker_breaks_off_is_an_outage(new_cluster, test_image: str) -> None:
    cluster = new_cluster()
    cluster.start_coordinator()
    worker = cluster.start_worker()
    box = Box(cluster, test_image)
    archive = tar(("f", bytes(8 * MIB)))

    def body() -> Iterator[bytes]:
        yield archive[: 4 * MIB]
        wait_until(lambda: box.spooled() == 1, "the upload has reached the worker")
        worker.kill()
        yield archive[4 * MIB :]

    status, answer = box.put("/x", body())
    assert (status, answer["error"]["code"]) == (503, "upstream_unavailable")
    worker.start()
    assert not box.has("/x")
    assert cluster.http("DELETE", f"/v1/boxes/{box.id}?force=true")[0] == 204


# ---- the command ----------------------------------------------------------------------------------------


def cp(box: Box, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "boxlite_server.client", "--url", box.cluster.url, "cp", *arguments],
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def copied(box: Box, *arguments: str, stdin: bytes = b"") -> bytes:
    done = cp(box, *arguments, stdin=stdin)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    source = tmp_path / "src"
    (source / "sub" / "empty").mkdir(parents=True)
    (source / "a").write_bytes(b"content")
    (source / "a").chmod(0o640)
    os.utime(source / "a", (1_700_000_000, 1_700_000_000))
    (source / "same").hardlink_to(source / "a")
    (source / "sub" / "link").symlink_to("../a")
    return source


def listing(root: Path) -> dict[str, Any]:
    return {
        str(path.relative_to(root)): str(path.readlink())
        if path.is_symlink()
        else (path.read_bytes(), path.stat().st_mode, path.stat().st_mtime)
        if path.is_file()
        else None
        for path in root.rglob("*")
    }


def test_cp_of_a_directory_both_ways(box: Box, tree: Path, tmp_path: Path) -> None:
    copied(box, str(tree), f"{box.id}:/srv")
    copied(box, f"{box.id}:/srv/src", str(tmp_path / "back"))
    assert listing(tmp_path / "back" / "src") == listing(tree)
    copied(box, f"{tree}/.", f"{box.id}:/flat")
    copied(box, "--no-include-parent", f"{box.id}:/flat", str(tmp_path / "flat"))
    assert listing(tmp_path / "flat") == listing(tree)


def test_cp_of_a_file_both_ways(box: Box, tree: Path, tmp_path: Path) -> None:
    copied(box, str(tree / "a"), f"{box.id}:/srv/as/b")
    copied(box, f"{box.id}:/srv/as/b", str(tmp_path / "c"))
    copied(box, f"{box.id}:/srv/as/b", f"{tmp_path}/into/")
    assert (tmp_path / "c").read_bytes() == (tmp_path / "into" / "b").read_bytes() == b"content"
    assert (tmp_path / "c").stat().st_mode == (tree / "a").stat().st_mode


def test_cp_shows_its_progress_on_a_terminal(box: Box, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(os.urandom(3 * MIB))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "boxlite_server.client", "--url", box.cluster.url, "cp"]
    with subprocess.Popen([*command, str(tmp_path / "large"), f"{box.id}:/large"], stderr=theirs) as process:
        assert process.wait(60) == 0
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert "large  [========================] 100%  3.0 MiB / 3.0 MiB" in shown
    assert shown.endswith("/s\r\n")


def test_cp_follows_links_when_told(box: Box, tree: Path, tmp_path: Path) -> None:
    copied(box, "--follow-symlinks", str(tree), f"{box.id}:/up")
    copied(box, str(tree), f"{box.id}:/srv")
    for source in ("/up/src/sub", "/srv/src/sub"):
        copied(box, "--follow-symlinks", f"{box.id}:{source}", str(tmp_path / "back"))
        assert (tmp_path / "back" / "sub" / "link").read_bytes() == b"content"
        assert not (tmp_path / "back" / "sub" / "link").is_symlink()


def test_cp_of_streams(box: Box) -> None:
    copied(box, "-", f"{box.id}:/srv", stdin=tar(("only", b"x")))
    with tarfile.open(fileobj=io.BytesIO(copied(box, f"{box.id}:/srv", "-"))) as archive:
        assert archive.getnames() == ["srv", "srv/only"]


def test_cp_does_not_overwrite_when_told(box: Box, tree: Path, tmp_path: Path) -> None:
    copied(box, str(tree / "a"), f"{box.id}:/x")
    for arguments in ([str(tree / "same"), f"{box.id}:/x"], [f"{box.id}:/x", str(tree / "a")]):
        done = cp(box, "--no-overwrite", *arguments)
        assert done.returncode == 1
        assert b"exists" in done.stderr
    copied(box, str(tree), f"{box.id}:/d")
    copied(box, f"{box.id}:/d/src", str(tmp_path / "out"))
    done = cp(box, "--no-overwrite", f"{box.id}:/d/src", str(tmp_path / "out"))
    assert (done.returncode, b"exists" in done.stderr) == (1, True)


def test_cp_writes_nothing_outside_the_destination(box: Box, tmp_path: Path) -> None:
    """A box may hold links to anywhere, and put something else in their place later."""
    out, mine = tmp_path / "out", tmp_path / "mine"
    mine.mkdir()
    (mine / "f").write_bytes(b"mine")
    for name, target in (("away", str(mine)), ("f", str(mine / "f")), ("up", "../../mine")):
        box.put("/evil", tar((name, b""), type=tarfile.SYMTYPE, linkname=target), "&source_is_dir=true")
    copied(box, f"{box.id}:/evil", str(out))
    links = {path.name: str(path.readlink()) for path in (out / "evil").iterdir()}
    assert links == {"away": str(mine), "f": str(mine / "f"), "up": "../../mine"}

    box.put("/other/evil", tar(("away/f", b"away"), ("f", b"evil"), ("up/f", b"up")), "&source_is_dir=true")
    assert cp(box, "--no-overwrite", f"{box.id}:/other/evil", str(out)).returncode == 1
    copied(box, f"{box.id}:/other/evil", str(out))
    assert [(out / "evil" / name).read_bytes() for name in ("away/f", "f", "up/f")] == [b"away", b"evil", b"up"]
    assert (mine / "f").read_bytes() == b"mine"


def test_cp_of_a_link_gives_what_it_leads_to(box: Box, tree: Path, tmp_path: Path) -> None:
    copied(box, str(tree), f"{box.id}:/srv")
    for name, target in (("file", "/srv/src/a"), ("folder", "src/sub"), ("broken", "nowhere")):
        box.put(f"/srv/{name}", tar((name, b""), type=tarfile.SYMTYPE, linkname=target), "&source_is_dir=false")
    copied(box, f"{box.id}:/srv/file", f"{tmp_path}/into/")
    assert (tmp_path / "into" / "file").read_bytes() == b"content"
    copied(box, f"{box.id}:/srv/folder", str(tmp_path / "into"))
    assert listing(tmp_path / "into" / "folder") == listing(tree / "sub")
    assert box.get("/srv/folder")[1]["x-boxlite-source-is-dir"] == "true"
    assert box.get("/srv/file")[1]["x-boxlite-source-is-dir"] == "false"
    status, _, answer = box.get("/srv/broken")
    assert (status, answer["error"]["code"]) == (404, "not_found")
    assert "/srv/broken: it is a link to /srv/nowhere, which does not exist" in answer["error"]["message"]


def test_pipes_are_skipped_and_the_answer_names_them(box: Box) -> None:
    archive = tar(("d/a pipe", b""), type=tarfile.FIFOTYPE)
    archive = archive[:512] + tar(("d/f", b"f"))
    path = transfer.url(box.id, "/srv") + "&source_is_dir=true"
    status, headers, _ = box.cluster.http("PUT", path, archive, headers={**TAR, "Idempotency-Key": "again"})
    assert (status, headers["x-boxlite-skipped"]) == (204, "d/a%20pipe")
    status, headers, _ = box.cluster.http("PUT", path, archive, headers={**TAR, "Idempotency-Key": "again"})
    assert (status, headers["x-boxlite-skipped"]) == (204, "d/a%20pipe")
    assert box.names("/srv/d") == ["d", "d/f"]
    done = cp(box, "-", f"{box.id}:/srv", stdin=archive)
    assert (done.returncode, done.stderr) == (0, b"Error: skipped in the box: d/a%20pipe\n")


def test_a_file_of_holes_is_not_held_on_the_workers_disk(box: Box) -> None:
    archive = tar(("f", b"x"), pax_headers={"GNU.sparse.size": str(1 << 30), "GNU.sparse.map": "0,1"})
    assert box.put("/root/holes", archive)[0] == 204
    with socket.create_connection(("127.0.0.1", box.cluster.port)) as line:
        line.sendall(f"GET {transfer.url(box.id, '/root/holes')} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert line.recv(12) == b"HTTP/1.1 200"

        def held() -> list[os.stat_result]:
            return [path.stat() for path in Path(f"/proc/{box.worker.pid}/fd").iterdir() if _is_spooled(box, path)]

        nearly_all = (1 << 30) - 32 * MIB  # the rest is on its way to the client
        wait_until(lambda: [info.st_size >= nearly_all for info in held()] == [True], "the worker has what is left")
        assert sum(info.st_blocks * 512 for info in held()) < 32 * MIB


def _is_spooled(box: Box, descriptor: Path) -> bool:
    try:
        return str(box.worker.home / "transfers") in str(descriptor.readlink())
    except OSError:
        return False


@pytest.mark.parametrize(
    "arguments",
    [
        ("a", "b"),
        ("x:/a", "y:/b"),
        ("-", "-"),
        ("{box}:", "b"),
        ("/no/such/file", "{box}:/x"),
        ("{box}:/nosuch", "out"),
    ],
)
def test_cp_that_cannot_be(box: Box, arguments: tuple[str, str]) -> None:
    done = cp(box, *(argument.format(box=box.id) for argument in arguments))
    assert done.returncode == 1
    assert done.stderr.startswith(b"Error: ")
    assert done.stderr.count(b"\n") == 1
