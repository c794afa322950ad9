"""Snapshots, clones and archives over REST, against real workers; no engine keeps anything of ours afterwards."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import http.client
import io
import json
import sqlite3
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from support.cluster import Cluster, wait_until
from support.memory import growth

from boxlite_server.local import dockerd

OCTETS = {"Content-Type": "application/octet-stream"}


def leftovers(cluster: Cluster, docker_host: str | None = None) -> list[str]:
    """What of this cluster is on an engine: containers, and images by any of our labels."""
    host = docker_host or cluster.docker_host
    found = cluster.containers(host)
    for worker in cluster.http("GET", "/v1/admin/workers")[2]["workers"]:
        for label in ("boxlite.worker", "boxlite.export"):
            query = urlencode({"all": 1, "filters": json.dumps({"label": [f"{label}={worker['id']}"]})})
            found += [image["Id"] for image in json.loads(dockerd.request(host, "GET", f"/images/json?{query}"))]
        found += dockerd.containers(host, f"boxlite.export={worker['id']}")
    return found


class Boxes:
    """Boxes of a cluster, all gone at the end."""

    def __init__(self, cluster: Cluster, image: str) -> None:
        self.cluster = cluster
        self.image = image

    def ok(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        status, _, answer = self.cluster.http(method, path, body, headers=headers)
        assert 200 <= status < 300, answer
        return answer

    def refused(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, str]:
        status, _, answer = self.cluster.http(method, path, body, headers=headers)
        assert status >= 400, answer
        return status, answer["error"]["code"]

    def new(self, **fields: Any) -> str:
        return self.ok("POST", "/v1/boxes", {"image": self.image, "memory_mib": 128, **fields})["box_id"]

    def run(self, box: str, script: str) -> str:
        """The output of a shell script in the box."""
        started = self.ok("POST", f"/v1/boxes/{box}/exec", {"command": "sh", "args": ["-c", script]})
        path = f"/v1/boxes/{box}/executions/{started['execution_id']}/output"
        events = self.ok("GET", path).decode().split("\n\n")
        pieces = [json.loads(e.rpartition("data: ")[2]) for e in events if "event: stdout" in e]
        return b"".join(base64.b64decode(piece["data"]) for piece in pieces).decode()

    def stop(self, box: str) -> None:
        self.ok("POST", f"/v1/boxes/{box}/stop", {"timeout_seconds": 1})

    def get(self, box: str) -> Any:
        return self.ok("GET", f"/v1/boxes/{box}")

    def names(self, box: str) -> list[str]:
        return [one["name"] for one in self.ok("GET", f"/v1/boxes/{box}/snapshots")["snapshots"]]

    def remove_all(self) -> None:
        for box in self.ok("GET", "/v1/boxes")["boxes"]:
            self.ok("DELETE", f"/v1/boxes/{box['box_id']}?force=true")


@pytest.fixture
def boxes(cluster: Cluster, test_image: str) -> Iterator[Boxes]:
    boxes = Boxes(cluster, test_image)
    yield boxes
    boxes.remove_all()
    assert leftovers(cluster) == []


def test_a_snapshots_life(boxes: Boxes) -> None:
    box = boxes.new(name="kept", labels={"a": "b"})
    assert boxes.names(box) == []
    boxes.run(box, "echo one > /file; head -c 100000 /dev/zero > /zeros")
    first = boxes.ok("POST", f"/v1/boxes/{box}/snapshots", {"name": "first"})
    assert set(first) == {
        "id", "box_id", "name", "created_at", "container_disk_bytes", "guest_disk_bytes", "size_bytes",
    }  # fmt: skip
    assert (first["box_id"], first["name"], first["guest_disk_bytes"]) == (box, "first", 0)
    assert 100_000 <= first["container_disk_bytes"] < 1_000_000 < first["size_bytes"]
    assert isinstance(first["created_at"], int)
    assert boxes.get(box)["status"] == "running"
    assert boxes.run(box, "rm /zeros; echo two > /file; cat /file") == "two\n"
    boxes.stop(box)
    second = boxes.ok("POST", "/v1/boxes/kept/snapshots", {"name": "second"})
    assert second["container_disk_bytes"] < 100_000
    assert boxes.names("kept") == ["first", "second"]
    assert boxes.ok("GET", f"/v1/boxes/{box}/snapshots/first") == first
    before = boxes.get(box)
    boxes.ok("POST", f"/v1/boxes/{box}/snapshots/first/restore")
    after = boxes.get("kept")
    assert after["status"] == "configured"
    for key in ("box_id", "name", "image", "labels", "created_at", "memory_mib", "cpus"):
        assert after[key] == before[key]
    assert boxes.run(box, "cat /file; wc -c < /zeros") == "one\n100000\n"
    boxes.stop(box)
    boxes.ok("DELETE", f"/v1/boxes/{box}/snapshots/first")
    assert boxes.names(box) == ["second"]
    boxes.ok("POST", f"/v1/boxes/{box}/snapshots/second/restore")
    assert boxes.run(box, "cat /file; ls /zeros 2>&1").startswith("two\nls:")
    assert len(boxes.cluster.containers()) == 1


def test_refusals_about_snapshots(boxes: Boxes) -> None:
    box = boxes.new()
    path = f"/v1/boxes/{box}/snapshots"
    boxes.ok("POST", path, {"name": "s"})
    boxes.ok("POST", f"/v1/boxes/{box}/start")
    assert boxes.refused("POST", path, {"name": "s"}) == (409, "already_exists")
    assert boxes.refused("POST", f"{path}/s/restore") == (409, "invalid_state")
    assert boxes.get(box)["status"] == "running"
    for method, rest in (("GET", ""), ("DELETE", ""), ("POST", "/restore")):
        assert boxes.refused(method, f"{path}/nosuch{rest}") == (404, "not_found")
        assert boxes.refused(method, f"/v1/boxes/nosuch/snapshots/s{rest}") == (404, "not_found")
        assert boxes.refused(method, f"/v1/other{path.removeprefix('/v1')}/s{rest}") == (404, "not_found")
    for name in ("", "a/b", ".hidden", "a\nb", "x" * 129):
        assert boxes.refused("POST", path, {"name": name}) == (400, "invalid_argument")
    assert boxes.refused("POST", path, {}) == (400, "invalid_argument")


@pytest.mark.parametrize("name", ["two words", "größe", "100%", "a?b#c&d=e", 'it\'s "quoted"', "-x"])
def test_names_are_percent_encoded(boxes: Boxes, name: str) -> None:
    box = boxes.new()
    status, headers, made = boxes.cluster.http("POST", f"/v1/boxes/{box}/snapshots", {"name": name})
    assert (status, made["name"]) == (201, name)
    assert boxes.ok("GET", headers["location"]) == made
    path = f"/v1/boxes/{box}/snapshots/{quote(name, safe='')}"
    boxes.ok("POST", f"{path}/restore")
    boxes.ok("DELETE", path)
    assert boxes.refused("GET", path) == (404, "not_found")


def test_names_are_unique_only_within_a_box(boxes: Boxes) -> None:
    one, two = boxes.new(), boxes.new()
    ids = [boxes.ok("POST", f"/v1/boxes/{box}/snapshots", {"name": "same"})["id"] for box in (one, two)]
    assert len(set(ids)) == 2
    boxes.ok("DELETE", f"/v1/boxes/{one}/snapshots/same")
    assert boxes.names(two) == ["same"]
    boxes.ok("DELETE", f"/v1/boxes/{two}?force=true")
    assert boxes.names(one) == []


def test_a_box_whose_container_is_gone_comes_back_from_a_snapshot(boxes: Boxes) -> None:
    box = boxes.new()
    boxes.run(box, "echo one > /file")
    boxes.ok("POST", f"/v1/boxes/{box}/snapshots", {"name": "s"})
    for container in boxes.cluster.containers():
        dockerd.request(boxes.cluster.docker_host, "DELETE", f"/containers/{container}?force=1")
    wait_until(lambda: bool(boxes.get(box)["status"] == "failed"), "the box is seen to be gone")
    assert boxes.refused("POST", f"/v1/boxes/{box}/snapshots", {"name": "t"}) == (409, "invalid_state")
    assert boxes.refused("POST", f"/v1/boxes/{box}/clone", {}) == (409, "invalid_state")
    assert boxes.refused("POST", f"/v1/boxes/{box}/export", {}) == (409, "invalid_state")
    boxes.ok("POST", f"/v1/boxes/{box}/snapshots/s/restore")
    assert boxes.run(box, "cat /file") == "one\n"


@pytest.mark.parametrize("running", [False, True])
def test_a_clone(boxes: Boxes, running: bool) -> None:
    source = boxes.new(name="source", env={"A": "b"}, labels={"l": "m"}, cpus=1, working_dir="/tmp")
    boxes.run(source, "echo one > /file")
    if not running:
        boxes.stop(source)
    before = boxes.get(source)
    copy = boxes.ok("POST", "/v1/boxes/source/clone", {"name": "copy"})
    assert copy["box_id"] != source
    assert (copy["name"], copy["status"]) == ("copy", "configured")
    for key in ("image", "cpus", "memory_mib", "labels", "worker"):
        assert copy[key] == before[key]
    assert same(boxes.get(source), before)
    assert boxes.run("copy", "cat /file; echo $A; pwd; echo two > /file") == "one\nb\n/tmp\n"
    assert boxes.run(source, "cat /file") == "one\n"
    assert boxes.names("copy") == []
    nameless = boxes.ok("POST", f"/v1/boxes/{source}/clone")
    assert nameless["name"] is None
    assert boxes.refused("POST", f"/v1/boxes/{source}/clone", {"name": "copy"}) == (409, "already_exists")
    assert boxes.refused("POST", "/v1/boxes/nosuch/clone", {}) == (404, "not_found")
    boxes.ok("DELETE", f"/v1/boxes/{source}?force=true")
    assert boxes.run("copy", "cat /file") == "two\n"


def test_a_clone_takes_room(new_cluster: Callable[..., Cluster], test_image: str) -> None:
    cluster = new_cluster()
    cluster.start_coordinator()
    cluster.start_worker(name="tiny", max_boxes=1)
    boxes = Boxes(cluster, test_image)
    box = boxes.new()
    assert boxes.refused("POST", f"/v1/boxes/{box}/clone", {}) == (503, "upstream_unavailable")
    assert len(boxes.ok("GET", "/v1/boxes")["boxes"]) == 1
    boxes.remove_all()
    assert leftovers(cluster) == []


def test_what_a_crash_left_half_done(new_cluster: Callable[..., Cluster], test_image: str) -> None:
    """The coordinator ends between its row and its call; the next one finishes that with the first heartbeat."""
    cluster = new_cluster()
    coordinator = cluster.start_coordinator()
    cluster.start_worker()
    boxes = Boxes(cluster, test_image)
    box = boxes.new()
    for name in ("made", "removed", "restored"):
        boxes.run(box, f"echo {name} > /file")
        boxes.ok("POST", f"/v1/boxes/{box}/snapshots", {"name": name})
    boxes.run(box, "echo later > /file")
    boxes.stop(box)
    coordinator.kill()
    with sqlite3.connect(cluster.directory / "coordinator.db") as db:
        for name, state in (("made", "creating"), ("removed", "removing"), ("restored", "restoring")):
            db.execute("UPDATE snapshots SET state = ? WHERE name = ?", (state, name))
    db.close()
    coordinator.start()
    wait_until(lambda: bool(boxes.get(box)["status"] == "configured"), "the restore is finished")
    assert boxes.names(box) == ["restored"]
    assert boxes.run(box, "cat /file") == "restored\n"
    assert len(cluster.containers()) == 1
    boxes.ok("POST", f"/v1/boxes/{box}/snapshots", {"name": "made"})
    boxes.remove_all()
    assert leftovers(cluster) == []


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two answers show the same box; asking about a box may change its `updated_at`."""
    return {**one, "updated_at": None} == {**other, "updated_at": None}


# ---- archives --------------------------------------------------------------------------------------------


def export(boxes: Boxes, box: str) -> bytes:
    status, headers, archive = boxes.cluster.http("POST", f"/v1/boxes/{box}/export", {})
    assert (status, headers["content-type"]) == (200, "application/octet-stream"), archive
    assert isinstance(archive, bytes)
    return archive


def load(boxes: Boxes, archive: bytes, query: str = "") -> Any:
    return boxes.ok("POST", f"/v1/boxes/import{query}", archive, **OCTETS)


@pytest.mark.parametrize("running", [False, True])
def test_export_and_import(boxes: Boxes, running: bool) -> None:
    source = boxes.new(
        name="source", env={"A": "b c"}, labels={"l": "m"}, user="box", working_dir="/tmp", cmd=["sh", "-c", "cat"]
    )
    boxes.run(source, "echo one > /tmp/file; ln -s file /tmp/link; chmod 600 /tmp/file")
    if not running:
        boxes.stop(source)
    before = boxes.get(source)
    archive = export(boxes, source)
    assert same(boxes.get(source), before)
    boxes.ok("DELETE", f"/v1/boxes/{source}?force=true")
    assert leftovers(boxes.cluster) == []
    box = load(boxes, archive, "?name=copy")
    assert (box["name"], box["status"]) == ("copy", "configured")
    for key in ("image", "cpus", "memory_mib", "labels"):
        assert box[key] == before[key]
    script = "id -un; pwd; echo $A; cat link; stat -c %a file; tr '\\0' ' ' < /proc/1/cmdline"
    assert boxes.run("copy", script).split("\n")[:5] == ["box", "/tmp", "b c", "one", "600"]
    assert "sh -c cat" in boxes.run("copy", script)
    again = load(boxes, export(boxes, "copy"))
    assert again["name"] is None
    assert boxes.run(again["box_id"], "cat link; echo $A") == "one\nb c\n"
    boxes.stop("copy")
    boxes.ok("POST", "/v1/boxes/copy/snapshots", {"name": "s"})
    boxes.ok("POST", "/v1/boxes/copy/snapshots/s/restore")
    assert boxes.run("copy", "cat link; echo $A; id -un") == "one\nb c\nbox\n"
    assert boxes.refused("POST", "/v1/boxes/import?name=copy", archive, OCTETS) == (409, "already_exists")


def test_an_archive_is_a_tar_of_what_it_says(boxes: Boxes) -> None:
    box = boxes.new(name="source")
    boxes.run(box, "echo one > /file")
    with tarfile.open(fileobj=io.BytesIO(export(boxes, "source"))) as archive:
        names = archive.getnames()
        assert (names[0], names[-1]) == ("manifest.json", "end.json")
        parts = {name: archive.extractfile(name).read() for name in names}  # type: ignore[union-attr]
    manifest = json.loads(parts["manifest.json"])
    assert (manifest["format"], manifest["version"], manifest["image"]) == ("boxlite-archive", 1, boxes.image)
    assert manifest["spec"]["memory_mib"] == 128
    assert manifest["settings"]["cmd"] == ["sh"]
    disk = b"".join(parts[name] for name in names[1:-1])
    assert json.loads(parts["end.json"])["bytes"] == len(disk)
    with tarfile.open(fileobj=io.BytesIO(disk)) as tar:
        found = tar.extractfile("file")
        assert found is not None and found.read() == b"one\n"


def test_an_archive_makes_a_box_on_another_host(
    new_cluster: Callable[..., Cluster], test_image: str, second_docker_host: str
) -> None:
    cluster = new_cluster()
    cluster.start_coordinator()
    cluster.start_worker(name="one")
    boxes = Boxes(cluster, test_image)
    source = boxes.new()
    boxes.run(source, "echo one > /file")
    archive = export(boxes, source)
    cluster.start_worker(name="two", docker_host=second_docker_host)
    box = load(boxes, archive)
    assert (boxes.get(source)["worker"], box["worker"]) == ("one", "two")
    assert boxes.run(box["box_id"], "cat /file") == "one\n"
    boxes.remove_all()
    assert leftovers(cluster) == leftovers(cluster, second_docker_host) == []


def repacked(archive: bytes, change: Callable[[str, bytes], bytes | None]) -> bytes:
    """The archive with other contents; None leaves an entry out."""
    made = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(archive)) as old, tarfile.open(fileobj=made, mode="w") as new:
        for entry in old:
            data = change(entry.name, old.extractfile(entry).read())  # type: ignore[union-attr]
            if data is not None:
                entry.size = len(data)
                new.addfile(entry, io.BytesIO(data))
    return made.getvalue()


def manifest_with(archive: bytes, **changes: Any) -> bytes:
    def change(name: str, data: bytes) -> bytes:
        return json.dumps({**json.loads(data), **changes}).encode() if name == "manifest.json" else data

    return repacked(archive, change)


def spec_with(archive: bytes, **changes: Any) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        manifest = json.loads(tar.extractfile("manifest.json").read())  # type: ignore[union-attr]
    return manifest_with(archive, spec={**manifest["spec"], **changes})


def a_tar() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        entry = tarfile.TarInfo("etc/passwd")
        entry.size = 4
        tar.addfile(entry, io.BytesIO(b"root"))
    return made.getvalue()


def flipped(archive: bytes, at: int) -> bytes:
    return archive[:at] + bytes([archive[at] ^ 1]) + archive[at + 1 :]


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda a: b"",
    "text": lambda a: b"not an archive\n" * 1000,
    "zeros": lambda a: bytes(100_000),
    "foreign tar": lambda a: a_tar(),
    "gzip": gzip.compress,
    "cut in the manifest": lambda a: a[:700],
    "cut between entries": lambda a: a[: 512 * 4],
    "cut in the middle": lambda a: a[: len(a) // 2],
    "cut before the end": lambda a: a[: a.rindex(b"end.json")],
    "a bit of the file system": lambda a: flipped(a, len(a) // 2),
    "the last bits of the file system": lambda a: flipped(a, a.rindex(b"end.json") - 100),
    "without end": lambda a: repacked(a, lambda name, data: None if name == "end.json" else data),
    "without a piece": lambda a: repacked(a, lambda name, data: None if name.endswith("02") else data),
    "without file system": lambda a: repacked(a, lambda name, data: None if name.startswith("rootfs") else data),
    "other file system": lambda a: repacked(a, lambda name, data: b"x" * len(data) if name[-2:] == "00" else data),
    "more behind it": lambda a: a + a_tar(),
    "another format": lambda a: manifest_with(a, format="other"),
    "another version": lambda a: manifest_with(a, version=2),
    "without spec": lambda a: manifest_with(a, spec=None),
    "without settings": lambda a: manifest_with(a, settings=None),
    "a large manifest": lambda a: manifest_with(a, more="x" * (2 << 20)),
    "no JSON": lambda a: repacked(a, lambda name, data: b"{" if name == "manifest.json" else data),
    "a lone surrogate": lambda a: repacked(a, lambda name, data: data.replace(b'"sh"', b'"\\ud800"')),
    "bad cpus": lambda a: spec_with(a, cpus=0),
    "bad memory": lambda a: spec_with(a, memory_mib="much"),
    "bad image": lambda a: spec_with(a, image=""),
    "bad environment": lambda a: spec_with(a, env={"A=B": "c"}),
    "bad settings": lambda a: manifest_with(a, settings={"cmd": "sh"}),
    "bad stop signal": lambda a: manifest_with(a, settings={"cmd": ["sh"], "stop_signal": 15}),
    "bad user": lambda a: manifest_with(a, settings={"cmd": ["sh"], "user": "x\0"}),
}


@pytest.fixture(scope="module")
def archive(cluster: Cluster, test_image: str) -> bytes:
    """A sound one."""
    boxes = Boxes(cluster, test_image)
    box = boxes.new()
    made = export(boxes, box)
    boxes.ok("DELETE", f"/v1/boxes/{box}")
    return made


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_whole_archive_is_refused(boxes: Boxes, archive: bytes, kind: str) -> None:
    broken = BROKEN[kind](archive)
    assert boxes.refused("POST", "/v1/boxes/import?name=x", broken, OCTETS) == (400, "invalid_argument")
    assert boxes.ok("GET", "/v1/boxes")["boxes"] == []
    assert leftovers(boxes.cluster) == []
    # Sent without a length it is refused as well.
    pieces = iter([broken[:1000], broken[1000:]])
    assert boxes.refused("POST", "/v1/boxes/import?name=x", pieces, OCTETS) == (400, "invalid_argument")


def test_what_the_server_does_not_take_is_refused(boxes: Boxes, archive: bytes) -> None:
    asking = spec_with(archive, secrets=[{"name": "s", "value": "v"}])
    assert boxes.refused("POST", "/v1/boxes/import", asking, OCTETS) == (400, "unsupported")
    assert boxes.refused("POST", "/v1/boxes/import?name=../x", archive, OCTETS) == (400, "invalid_argument")
    assert boxes.refused("POST", "/v1/boxes/import", archive, {"Content-Type": "text/plain"})[0] == 415
    large = spec_with(archive, cpus=255)
    assert boxes.refused("POST", "/v1/boxes/import", large, OCTETS) == (503, "upstream_unavailable")
    assert leftovers(boxes.cluster) == []


def test_a_hostile_file_system_stays_in_its_box(boxes: Boxes, archive: bytes, tmp_path: Path) -> None:
    """Absolute names, names with `..` and links that lead out are taken for what they are: names in the box."""
    outside = tmp_path / "outside"
    made = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(archive)) as old:
        names = old.getnames()
        disk = io.BytesIO(b"".join(old.extractfile(n).read() for n in names[1:-1]))  # type: ignore[union-attr]
        manifest = old.extractfile("manifest.json").read()  # type: ignore[union-attr]
    with tarfile.open(fileobj=disk) as old, tarfile.open(fileobj=made, mode="w") as new:
        for entry in old:
            new.addfile(entry, old.extractfile(entry) if entry.isreg() else None)
        link = tarfile.TarInfo("way-out")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        new.addfile(link)
        for name in (str(outside), "../../../../../../.." + str(outside), "way-out/outside"):
            entry = tarfile.TarInfo(name)
            entry.size = 1
            new.addfile(entry, io.BytesIO(b"x"))
    status, _, answer = boxes.cluster.http(
        "POST", "/v1/boxes/import", archived(json.loads(manifest), made.getvalue()), headers=OCTETS
    )
    assert status in (201, 400), answer
    assert not outside.exists()


def archived(manifest: dict[str, Any], disk: bytes) -> bytes:
    """An archive as the format's description has it, by other means than the server's."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as tar:

        def add(name: str, data: bytes) -> None:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))

        add("manifest.json", json.dumps(manifest).encode())
        for number, start in enumerate(range(0, len(disk), 1 << 20)):
            add(f"rootfs.tar.{number:08d}", disk[start : start + (1 << 20)])
        add("end.json", json.dumps({"bytes": len(disk), "sha256": hashlib.sha256(disk).hexdigest()}).encode())
    return made.getvalue()


def test_a_large_disk_takes_little_memory(boxes: Boxes) -> None:
    box = boxes.new()
    boxes.run(box, "head -c 200000000 /dev/urandom > /large; sha256sum /large > /sum")
    load(boxes, export(boxes, boxes.new()))  # the first transfer is left out of the measurement
    with contextlib.ExitStack() as stack:
        grown = [stack.enter_context(growth(process.pid)) for process in boxes.cluster.processes]
        copy = load(boxes, export(boxes, box))
    assert max(one.peak for one in grown) < 32 << 20, [one.peak for one in grown]
    assert boxes.run(copy["box_id"], "sha256sum -c /sum") == "/large: OK\n"


def test_an_archive_that_nobody_takes(boxes: Boxes) -> None:
    box = boxes.new()
    boxes.run(box, "head -c 50000000 /dev/zero > /large")
    connection = http.client.HTTPConnection("127.0.0.1", boxes.cluster.port, timeout=60)
    connection.request("POST", f"/v1/boxes/{box}/export", b"{}", {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert len(response.read(1000)) == 1000
    connection.close()
    response.close()
    boxes.ok("DELETE", f"/v1/boxes/{box}?force=true")
    wait_until(lambda: leftovers(boxes.cluster) == [], "the export is given up")


def test_an_upload_that_breaks_off(boxes: Boxes, archive: bytes) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", boxes.cluster.port, timeout=60)
    connection.putrequest("POST", "/v1/boxes/import?name=half")
    connection.putheader("Content-Type", "application/octet-stream")
    connection.putheader("Content-Length", str(len(archive)))
    connection.endheaders(archive[: len(archive) // 2])
    wait_until(lambda: boxes.cluster.http("GET", "/v1/boxes/half")[0] == 200, "the import has begun")
    connection.close()
    wait_until(lambda: boxes.cluster.http("GET", "/v1/boxes/half")[0] == 404, "the import is given up")
    wait_until(lambda: leftovers(boxes.cluster) == [], "nothing is left of it")
