"""What a tenant comes to who attacks by files, archives and paths, over the REST API: what is on the worker's host and
what is another tenant's stays unread and unchanged, and nothing of it is a fault of the server."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support import boxes
from support.cluster import Cluster, call
from support.hostile import answer, misleading_places, misleading_requests, unmake
from support.memory import growth
from support.tenant import Tenant

MIB = 1 << 20
SECRET = b"what-nobody-else-may-read"


class Site(NamedTuple):
    """`planted`: a directory of the worker's host with a file `x` that holds `SECRET`. Requests of `cluster` itself
    are the attacker's."""

    cluster: Cluster
    attacker: Tenant
    other: Tenant
    bystander: str
    planted: Path

    def must_be_well(self) -> None:
        """Worker and coordinator answer, the bystander's box has all it had, and the host's files are as they were."""
        assert call(self.cluster.workers[0].health_port, "GET", "/readyz")[0] == 200
        assert self.other.sh(self.bystander, "cat /secret") == SECRET.decode()
        assert [(path.name, path.read_bytes()) for path in self.planted.iterdir()] == [("x", SECRET)]


@pytest.fixture(scope="module")
def site(new_shared_cluster: type[Cluster], test_image: str) -> Iterator[Site]:
    cluster = new_shared_cluster()
    cluster.start_with_keys()
    attacker, other = Tenant(cluster, "acme"), Tenant(cluster, "other")
    cluster.api_key = attacker.key
    bystander = other.create(name="bystander", volumes=[])
    other.sh(bystander, f"printf {SECRET.decode()} > /secret")
    planted = cluster.directory / "planted"
    planted.mkdir()
    (planted / "x").write_bytes(SECRET)
    yield Site(cluster, attacker, other, bystander, planted)
    other.remove(bystander)


@pytest.fixture(autouse=True)
def well(site: Site) -> Iterator[None]:
    yield
    site.must_be_well()
    for process in site.cluster.processes:
        assert "Traceback" not in process.log.read_text(errors="replace"), process.tail()


@pytest.fixture
def box(site: Site) -> Iterator[str]:
    with site.attacker.box(volumes=[]) as box:
        yield box


def entry(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.mode = len(data), kind, 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def tar(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


# ---- races ----

# What becomes of /swap/d, or of the file x in it, again and again; @ is the directory of the host.
SWAPS = {
    "the directory": "mv d e; ln -s @ d; rm d; mv e d",
    "the file": "rm -f d/x; ln -s @/x d/x; rm -f d/x; cp data d/x",
    "a chain": "mv d e; ln -s ../../../../proc/1/root@ d; rm d; mv e d",
}
SIZES = {"by the box": 1000, "by the engine": 2 * MIB}


@pytest.fixture(params=SWAPS)
def swapping(request: pytest.FixtureRequest, site: Site, box: str) -> Iterator[None]:
    """The box swaps what is on the way for links that lead to the host's files."""
    there = f"mkdir -p /swap/d {site.planted}; cd /swap; printf data > data; cp data d/x; cp data {site.planted}/x"
    swap = SWAPS[request.param].replace("@", str(site.planted))
    body = {"command": "sh", "args": ["-c", f"{there}; echo on; while :; do {swap}; done 2> /dev/null"]}
    execution = site.attacker.must("POST", f"/{box}/exec", body)["execution_id"]
    yield
    assert boxes.state(site.cluster, box, execution)["status"] == "running"


@pytest.mark.usefixtures("swapping")
@pytest.mark.parametrize("size", SIZES)
def test_symlink_races_against_an_upload(site: Site, box: str, size: str) -> None:
    archive = tar(entry("x", b"y" * SIZES[size]))
    statuses = [site.attacker.put(box, path, archive)[0] for _ in range(10) for path in ("/swap/d/x", "/swap/d")]
    assert all(status == 204 or 400 <= status < 500 for status in statuses), statuses


@pytest.mark.usefixtures("swapping")
@pytest.mark.parametrize("size", SIZES)
def test_symlink_races_against_a_download(site: Site, box: str, size: str) -> None:
    site.attacker.sh(box, f"head -c {SIZES[size]} /dev/zero > /swap/data")
    statuses = set()
    for _ in range(10):
        for path in ("/swap/d/x", "/swap/d"):
            status, got = site.attacker.get(box, path)
            statuses.add(status)
            assert SECRET not in (got if isinstance(got, bytes) else json.dumps(got).encode())
    assert all(status == 200 or 400 <= status < 500 for status in statuses), statuses


# ---- archives ----


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    return entry(name, kind=kind, size=size)[0].tobuf(tarfile.GNU_FORMAT)


ARCHIVES = {
    "a name that leads upwards": tar(entry("../../../../etc/y", b"x")),
    "an absolute name": tar(entry("/etc/y", b"x")),
    "a link and a file behind it": tar(entry("l", kind=tarfile.SYMTYPE, linkname="/etc"), entry("l/y", b"x")),
    "a hard link to the host": tar(entry("h", kind=tarfile.LNKTYPE, linkname="/etc/shadow")),
    "a device": tar(entry("d", kind=tarfile.BLKTYPE, devmajor=8)),
    "a deep path": tar(entry("a/" * 1900 + "f")),
    "a petabyte that is not there": header("f", 1 << 50),
    "a negative size": header("f", 0)[:124] + b"\xff" * 12 + header("f", 0)[136:],
    "a gzip bomb": gzip.compress(bytes(64 * MIB)),
    "an extended header of names upwards": tar(entry("f", pax_headers={"path": "../" * 100_000})),
    "many records": tar(entry("f", pax_headers={f"k{number}": "v" for number in range(60_000)})),
    "many attributes": tar(entry("f", pax_headers={f"SCHILY.xattr.user.{n}": "v" for n in range(2000)})),
    "noise": bytes(range(256)) * 400,
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_a_hostile_archive_on_upload(site: Site, box: str, kind: str) -> None:
    archive = ARCHIVES[kind]
    with growth(site.cluster.workers[0].pid) as worker:
        status, told = site.attacker.put(box, "/to", archive)
    assert (status, told["error"]["code"]) == (400, "invalid_argument")
    assert worker.peak < 64 * MIB
    assert site.attacker.get(box, "/to")[0] == 404


def imported(disk: bytes, *, settings: dict[str, Any] | None = None, **spec: Any) -> bytes:
    """A .boxlite archive of that file system, for a box of that spec."""
    digest = hashlib.sha256(disk).hexdigest()
    manifest: dict[str, Any] = {"format": "boxlite-archive", "version": 1, "image": "alpine:latest"}
    manifest |= {"spec": {"image": "alpine:latest", "memory_mib": 128, **spec}, "settings": settings or {"cmd": ["sh"]}}
    pieces = [disk[start : start + MIB] for start in range(0, len(disk), MIB)]
    names = ["manifest.json", *(f"rootfs.tar.{number:08d}" for number in range(len(pieces))), "end.json"]
    end = json.dumps({"bytes": len(disk), "sha256": digest}).encode()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in zip(names, [json.dumps(manifest).encode(), *pieces, end], strict=True):
            archive.addfile(*_file(name, data))
    return out.getvalue()


def _file(name: str, data: bytes) -> tuple[tarfile.TarInfo, io.BytesIO]:
    info, data = entry(name, data)
    return info, io.BytesIO(data)


DISK = tar(entry("f"))
HOST_MOUNT = {"host_path": "/", "guest_path": "/host"}
IMPORTS = {
    "a mount of the host": imported(DISK, volumes=[HOST_MOUNT]),
    "the host's root": imported(DISK, rootfs_path="/", image=None),
    "capabilities": imported(DISK, advanced={"capabilities": {"add": ["ALL"]}}),
    "a weak preset": imported(DISK, security="development"),
    "a port of the host": imported(DISK, ports=[{"guest_port": 80, "host_port": 22}]),
    "an address of the host": imported(DISK, ports=[{"guest_port": 80, "host_ip": "0.0.0.0"}]),
    "a mount in the settings": imported(DISK, settings={"cmd": ["sh"], "volumes": [HOST_MOUNT], "user": "a\0"}),
    "a name that leads upwards": imported(tar(entry("../../y", b"x"))),
    "a name that leads upwards, before much else": imported(tar(entry("../../y", b"x")) + bytes(32 * MIB)),
    "a petabyte that is not there": imported(header("f", 1 << 50)),
    "a deep path": imported(tar(entry("a/" * 1900 + "f"))),
    "a gzip bomb": imported(gzip.compress(bytes(64 * MIB))),
    "noise": bytes(range(256)) * 400,
}


@pytest.mark.parametrize("kind", IMPORTS)
def test_a_hostile_archive_on_import(site: Site, kind: str) -> None:
    with growth(site.cluster.workers[0].pid) as worker:
        status, told = site.attacker.ask("POST", "/import", IMPORTS[kind], "application/octet-stream")
    assert (status, told["error"]["code"]) in ((400, "invalid_argument"), (400, "unsupported"))
    assert worker.peak < 64 * MIB
    assert site.attacker.must("GET", "")["boxes"] == []


PROGRAMS = ("sh", "head", "id", "grep")


def test_devices_and_set_user_id_programs_on_import(site: Site, box: str) -> None:
    """They come through, as they were exported, and give their box nothing."""
    busybox = site.attacker.must("GET", f"/{box}/files?path=%2Fbin%2Fbusybox")
    with tarfile.open(fileobj=io.BytesIO(busybox)) as archive:
        program = archive.extractfile("busybox").read()  # type: ignore[union-attr]
    links = [entry(f"bin/{name}", kind=tarfile.LNKTYPE, linkname="bin/busybox", mode=0o4755) for name in PROGRAMS]
    disk = tar(
        entry("bin/busybox", program, mode=0o4755),
        *links,
        entry("disk", kind=tarfile.BLKTYPE, devmajor=254, devminor=0),
        entry("memory", kind=tarfile.CHRTYPE, devmajor=1, devminor=1),
    )
    there = site.attacker.must("POST", "/import", imported(disk), "application/octet-stream")["box_id"]
    for user in ("0", "1000"):
        script = "head -c1 -q /disk /memory; id -u; grep -c 'NoNewPrivs:.1' /proc/self/status"
        said = site.attacker.run(there, "sh", "-c", script, user=user)
        assert (said["stdout"], "not permitted" in said["stderr"]) == (f"{user}\n1\n", True)
    site.attacker.remove(there)


# ---- paths ----


def test_path_tricks_on_every_parameter(site: Site, box: str) -> None:
    """Of each operation: in its path, its query, its headers and each field of its body. None may be missing."""
    other, planted = site.bystander, site.planted / "x"
    tricks = [
        "..",
        "../../../../../../../../../../etc/shadow",
        f"../../../../../../../../../..{planted}",
        f"/proc/self/root{planted}",
        f"/proc/1/root{planted}",
        f"file://{planted}",
        str(planted),
        f"..\\..\\{other}",
        f"../other/boxes/{other}",
        f"{box}/../../other/boxes/{other}",
        f"{box}/../{other}",
        "x/../../containers/json",
        "./.",
        "\u2025/\uff0e\uff0e/",
    ]

    def known(operation_id: str) -> dict[str, str]:
        """What there is, and a box of its own for whoever removes it."""
        there = {"prefix": "acme", "box_id": box, "worker_id": "W0rk3r000001", "snapshot_name": "kept"}
        there["execution_id"] = site.attacker.must("POST", f"/{box}/exec", {"command": "true"})["execution_id"]
        if operation_id == "removeBox":
            there["box_id"] = site.attacker.must("POST", "", {"image": "alpine:latest", "memory_mib": 128})["box_id"]
        return there

    places = set()
    for request in misleading_requests(known, tricks, {"application/x-tar": tar(entry("x", b"y"))}):
        status, body = answer(site.cluster, request)
        places.add(request.why)
        told = (status, request.why, request.target[:200], request.body[:200], body)
        assert status < 500 or status == 501, told
        assert SECRET not in body, told
        assert " path " not in request.why or status >= 400, told
        if status == 201:
            unmake(site.cluster, request.target, json.loads(body))
    assert not set(misleading_places()) - places
    assert [found["box_id"] for found in site.attacker.must("GET", "")["boxes"]] == [box]
