"""Images made over for boxes: without declared volumes, and with few layers. Nothing is lost, and nothing is left."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import struct
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import docker
import pytest
from support.holdings import container_names, image_ids, volume_names
from support.sites import Site, collect

from boxlite_server import ids
from boxlite_server.errors import BoxliteError, EngineError, ImageError, InvalidStateError
from boxlite_server.local import busybox
from boxlite_server.worker.commands import ExecSpec
from boxlite_server.worker.docker.engine import Engine
from boxlite_server.worker.docker.labels import is_base
from boxlite_server.worker.docker.runtime import DockerRuntime
from boxlite_server.worker.docker.storage import bases
from boxlite_server.worker.docker.storage import disks as docker_disks
from boxlite_server.worker.host_access import Policy
from boxlite_server.worker.presets import Preset
from boxlite_server.worker.runtime import BoxRef, BoxSpec, BoxStatus, Owner

MAX_LAYERS = 3
VOLUMES = ["VOLUME /data", "VOLUME /odd/empty/new/er"]
SETTINGS: dict[str, Any] = {
    "Env": ["PATH=/bin", 'QUOTED="a" $b\\'],
    "WorkingDir": "/srv",
    "User": "box",
    "Entrypoint": ["sh", "-c"],
    "Cmd": ["sleep 9"],
    "Labels": {"of": "tests", "more": 'a "b" = c'},
    "Healthcheck": {"Test": ["CMD", "true"], "Interval": 5_000_000_000},
    "StopSignal": "SIGINT",
    "ExposedPorts": {"80/tcp": {}},
    "OnBuild": ["RUN true"],
    "Shell": ["sh", "-ec"],
}


@pytest.fixture
def owner(site: Site) -> Owner:
    """A second worker of the site's cluster."""
    return Owner(site.owner.cluster_id, ids.new_id())


@pytest.fixture(autouse=True)
def nothing_is_left(owner: Owner, api: docker.APIClient) -> Iterator[None]:
    """Each test removes its boxes and images; with them goes all that was made of them."""

    def held() -> tuple[list[str], ...]:
        return image_ids(api, owner), volume_names(api, owner), container_names(api, owner)

    before = held()
    yield
    assert held() == before


@pytest.fixture
def runtime(docker_host: str, owner: Owner) -> Iterator[DockerRuntime]:
    """A worker that merges layers soon."""
    runtime = DockerRuntime(lambda: owner, docker_host, Policy(floor=Preset.DEVELOPMENT), max_layers=MAX_LAYERS)
    yield runtime
    for state in runtime.list_boxes():
        runtime.remove(state.box, force=True)
    runtime.close()


@pytest.fixture(params=["loads configurations", "needs the layers"])
def any_runtime(
    request: pytest.FixtureRequest, runtime: DockerRuntime, monkeypatch: pytest.MonkeyPatch
) -> DockerRuntime:
    """The same on an engine that loads an image from its configuration alone, and on one that refuses that, as
    engines do that keep their images in containerd."""
    call = Engine.call

    def without_configurations(engine: Engine, method: str, path: str, *args: Any, **fields: Any) -> Any:
        if path == "/images/load":
            fields["body"] = iter([archive("manifest.json", data=b'[{"Config": "nosuch"}]')])
        return call(engine, method, path, *args, **fields)

    if request.param == "needs the layers":
        monkeypatch.setattr(Engine, "call", without_configurations)
    return runtime


@pytest.fixture
def new_image(runtime: DockerRuntime, site: Site, api: docker.APIClient) -> Iterator[Callable[..., str]]:
    """Makes images with more layers and other settings than the test image; they are removed after the test."""
    made = []

    def new(*, layers: int = 0, files: bytes = b"", volumes: list[str] = VOLUMES) -> str:
        name, source = f"boxlite-test-{len(made)}:1", site.image
        for number in range(layers + 1):
            container = api.create_container(source)["Id"]
            if number < layers:
                api.put_archive(container, "/", archive(f"layer{number}"))
            elif files:
                api.put_archive(container, "/", files)
            last = {"changes": volumes, "conf": SETTINGS} if number == layers else {}
            source = api.commit(container, *name.split(":"), **last)["Id"]
            api.remove_container(container)
        made.append(name)
        return name

    yield new
    for name in made:
        runtime.images.remove(name)


def archive(*names: str, data: bytes = b"data") -> bytes:
    """A tar archive of files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return packed.getvalue()


def odd_files() -> bytes:
    """A tar archive of what copies of file systems tend to lose."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:

        def add(name: str, mode: int = 0o644, data: bytes = b"", **fields: Any) -> None:
            entry = tarfile.TarInfo(name)
            entry.mode, entry.size, entry.mtime = mode, len(data), 1234567890
            for field, value in fields.items():
                setattr(entry, field, value)
            tar.addfile(entry, io.BytesIO(data))

        # cap_net_raw=ep, as setcap writes it
        capability = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0).decode("latin-1")
        add("odd", 0o1777, type=tarfile.DIRTYPE, uid=1000, gid=1001)
        add("odd/capable", 0o755, b"x", pax_headers={"SCHILY.xattr.security.capability": capability})
        add("odd/first", 0o4750, b"twice", uid=1000, gid=4_000_000)
        add("odd/second", type=tarfile.LNKTYPE, linkname="odd/first")
        add("odd/nowhere", type=tarfile.SYMTYPE, linkname="/no/such", uid=1000)
        add("odd/pipe", 0o600, type=tarfile.FIFOTYPE)
        add("odd/" + "größe " * 30, 0o600, b"y")
        add("odd/empty", 0o700, type=tarfile.DIRTYPE, uid=7, gid=8)
    return packed.getvalue()


def files_of(api: docker.APIClient, box: BoxRef) -> dict[str, tuple[Any, ...]]:
    """All about the files of a box, by name, as an export tells it."""
    data = b"".join(api.export(f"boxlite-{box.box_id}-{box.generation}"))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        told = {}
        for entry in tar:
            what = (entry.type, entry.mode, entry.uid, entry.gid, entry.size, entry.linkname)
            headers = {key: value for key, value in entry.pax_headers.items() if "xattr" in key}
            content = tar.extractfile(entry).read() if entry.isreg() else b""  # type: ignore[union-attr]
            told[entry.name] = (*what, int(entry.mtime), headers, content)
        return told


def odd(files: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
    """What `odd_files` made of them."""
    return {name: told for name, told in files.items() if name.startswith("odd/") and "/new" not in name}


def content_of(api: docker.APIClient, box: BoxRef) -> dict[str, tuple[Any, ...]]:
    """The files of a box without those that the engine puts in every container."""
    engines = ("dev", "etc", "proc", "sys", ".dockerenv")
    return {name: told for name, told in files_of(api, box).items() if name.split("/")[0] not in engines}


def written(api: docker.APIClient, box: BoxRef) -> set[str]:
    """The names of the files in /data."""
    return {name.removeprefix("data/") for name in files_of(api, box) if name.startswith("data/")} - {""}


def container_of(api: docker.APIClient, box: BoxRef) -> dict[str, Any]:
    return dict(api.inspect_container(f"boxlite-{box.box_id}-{box.generation}"))


def layers_under(api: docker.APIClient, box: BoxRef) -> int:
    return len(api.inspect_image(container_of(api, box)["Image"])["RootFS"]["Layers"])


def tagged_bases(api: docker.APIClient) -> set[str]:
    return {tag for image in api.images() for tag in image["RepoTags"] or () if is_base(tag)}


@pytest.fixture
def new_bases(api: docker.APIClient) -> Callable[[], set[str]]:
    """Answers the bases that were made since the test began: others on the engine may need those from before."""
    before = tagged_bases(api)
    return lambda: tagged_bases(api) - before


def spec(image: str, **fields: Any) -> BoxSpec:
    return BoxSpec(image, memory_mib=64, network_enabled=False, **fields)


def new_box(runtime: DockerRuntime, image: str, **fields: Any) -> BoxRef:
    return runtime.create(BoxRef(ids.new_id(), 1), spec(image, **fields)).box


def sh(runtime: DockerRuntime, box: BoxRef, script: str) -> str:
    """The output of a shell script in the box, which runs meanwhile."""
    runtime.start(box)
    output = collect(runtime.spawn(box, ExecSpec(("sh", "-c", script), user="root")))[0]
    runtime.stop(box, 0)
    return output.decode()


# ---- what is made over ----


@pytest.mark.parametrize("layers", [0, MAX_LAYERS + 1])
def test_files_and_settings_of_an_image_are_kept(
    any_runtime: DockerRuntime, api: docker.APIClient, new_image: Callable[..., str], layers: int
) -> None:
    plain = new_image(layers=layers, files=odd_files(), volumes=[])
    image = new_image(layers=layers, files=odd_files())
    config = api.inspect_image(image)["Config"]
    api.create_container(plain, ["x"], name="boxlite-plain-1")
    expected = files_of(api, BoxRef("plain", 1))
    api.remove_container("boxlite-plain-1")
    box = new_box(any_runtime, image)
    container, found = container_of(api, box), files_of(api, box)
    made = api.inspect_image(container["Image"])
    assert odd(found) == odd(expected) != {}
    assert {name.strip("/") for name in found.keys() - expected.keys()} == {
        "data",
        "odd/empty/new",
        "odd/empty/new/er",
    }
    assert container["Mounts"] == []
    for key, value in SETTINGS.items():
        got = made["Config"][key]
        if key == "Labels":
            got = {name: text for name, text in got.items() if not name.startswith("boxlite.")}
        assert got == value == config[key], key
    assert made["Architecture"] == api.inspect_image(image)["Architecture"]
    assert len(made["RootFS"]["Layers"]) <= MAX_LAYERS
    any_runtime.remove(box, force=True)


def test_an_image_without_a_command_stays_without(any_runtime: DockerRuntime, api: docker.APIClient) -> None:
    image = "boxlite-test-commandless:1"
    api.import_image_from_data(busybox.archive(), *image.split(":"), changes=["ENV PATH=/bin", "VOLUME /data"])
    box = new_box(any_runtime, image)
    assert sh(any_runtime, box, "tr '\\0' ' ' < /proc/1/cmdline; ls -d /data").endswith("tail -f /dev/null /data\n")
    any_runtime.remove(box, force=True)
    any_runtime.images.remove(image)


def test_rounds_of_snapshot_and_restore_have_no_end(
    any_runtime: DockerRuntime, api: docker.APIClient, new_image: Callable[..., str]
) -> None:
    """Each round writes a file, and one removes the first file. All snapshots stay good."""
    disks, image, rounds = any_runtime.disks, new_image(files=odd_files()), 2 * MAX_LAYERS + 1
    box = new_box(any_runtime, image)
    before, depths = odd(files_of(api, box)), []
    for number in range(1, rounds + 1):
        any_runtime.files(box).put("/data", [archive(str(number))])
        if number == 2:
            sh(any_runtime, box, "rm /data/1")
        disks.snapshot(box, f"{box.box_id}-{number}")
        box = disks.restore(box, f"{box.box_id}-{number}", number + 1, spec(image)).box
        depths.append(layers_under(api, box))
    assert max(depths) <= MAX_LAYERS
    assert sum(later < earlier for earlier, later in itertools.pairwise(depths)) >= 2
    for number in (rounds, 1, MAX_LAYERS, MAX_LAYERS + 1):
        box = disks.restore(box, f"{box.box_id}-{number}", box.generation + 1, spec(image)).box
        assert written(api, box) == ({"1"} if number == 1 else {str(left) for left in range(2, number + 1)})
        assert odd(files_of(api, box)) == before
    any_runtime.remove(box, force=True)


def test_rounds_of_clones_have_no_end(
    runtime: DockerRuntime, api: docker.APIClient, new_image: Callable[..., str]
) -> None:
    image, rounds = new_image(), MAX_LAYERS + 2
    box = new_box(runtime, image)
    for number in range(rounds):
        runtime.files(box).put("/data", [archive(str(number))])
        copy = runtime.disks.clone(box, BoxRef(ids.new_id(), 1), spec(image)).box
        runtime.remove(box, force=True)
        box = copy
        assert layers_under(api, box) <= MAX_LAYERS
    assert written(api, box) == {str(number) for number in range(rounds)}
    runtime.remove(box, force=True)


def test_an_archive_of_a_deep_disk_makes_a_flat_one(
    runtime: DockerRuntime, api: docker.APIClient, new_image: Callable[..., str]
) -> None:
    box = new_box(runtime, new_image(layers=MAX_LAYERS - 1, volumes=[]))
    runtime.files(box).put("/", [archive("kept")])
    with runtime.disks.export(box) as export:
        copy = runtime.disks.load(BoxRef(ids.new_id(), 1), spec("any"), export.tar).box
    assert layers_under(api, copy) == 1
    assert sh(runtime, copy, "cat /kept /layer0") == "datadata"
    for made in (box, copy):
        runtime.remove(made, force=True)


# ---- when it is made, and when it goes ----


def test_a_base_is_made_once_for_all_workers_of_an_engine(
    runtime: DockerRuntime,
    site: Site,
    api: docker.APIClient,
    new_image: Callable[..., str],
    docker_host: str,
    new_bases: Callable[[], set[str]],
) -> None:
    """Boxes made at once share it, and so does a worker that is started later."""
    image = new_image()
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: new_box(runtime, image), range(4)))
    restarted = DockerRuntime(runtime._containers._owner, docker_host)
    restarted.disks.tidy()
    made += [new_box(restarted, image), other := new_box(site.runtime, image)]  # type: ignore[arg-type]
    assert len({container_of(api, box)["Image"] for box in made}) == 1
    site.runtime.remove(other, force=True)
    for box in made[:-1]:
        restarted.remove(box, force=True)
    assert len(new_bases()) == 1
    restarted.images.remove(image)
    assert new_bases() == set()
    restarted.close()


def test_an_image_is_in_use_by_the_name_that_the_box_was_asked_for(
    runtime: DockerRuntime, api: docker.APIClient, new_image: Callable[..., str], new_bases: Callable[[], set[str]]
) -> None:
    image = new_image()
    api.tag(image, "boxlite-test-alias", "2")
    box = new_box(runtime, image)
    names = [found.reference for found in runtime.images.list()]
    assert not [name for name in names if "boxlite.invalid" in name]
    with pytest.raises(InvalidStateError, match="in use"):
        runtime.images.remove(image)
    runtime.images.remove("boxlite-test-alias:2")
    assert new_bases() != set()
    runtime.remove(box, force=True)
    runtime.images.remove(new_bases().pop())  # is no image of anybody's
    assert new_bases() != set()
    runtime.images.remove(image)
    assert new_bases() == set()


def test_what_a_killed_worker_left_half_made_is_tidied(
    runtime: DockerRuntime,
    api: docker.APIClient,
    new_image: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    new_bases: Callable[[], set[str]],
    owner: Owner,
) -> None:
    image = new_image()
    before = len(image_ids(api, owner))

    def killed(*args: Any) -> None:
        raise EngineError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(bases.Scratch, "__exit__", lambda *args: None)
        patch.setattr(bases, "_absent", killed)
        with pytest.raises(EngineError, match="killed"):
            new_box(runtime, image)
    assert len(image_ids(api, owner)) > before
    assert new_bases() == set()
    runtime.disks.tidy()
    assert len(image_ids(api, owner)) == before
    box = new_box(runtime, image)
    assert sh(runtime, box, "ls -d /data") == "/data\n"
    runtime.remove(box, force=True)


def test_an_export_that_breaks_off_makes_no_disk(
    runtime: DockerRuntime,
    api: docker.APIClient,
    new_image: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    new_bases: Callable[[], set[str]],
) -> None:
    image = new_image(layers=MAX_LAYERS)
    with monkeypatch.context() as patch:
        patch.setattr(bases, "DockerArchive", _Broken)
        with pytest.raises(BoxliteError, match="broke off"):
            new_box(runtime, image)
    assert new_bases() == set()


class _Broken(bases.DockerArchive):
    def __iter__(self) -> Iterator[bytes]:
        yield next(super().__iter__())
        raise EngineError("the engine broke off an archive: its end is missing")


def test_an_image_with_countless_volumes_is_refused(runtime: DockerRuntime, new_image: Callable[..., str]) -> None:
    image = new_image(volumes=[f"VOLUME /v{number}" for number in range(bases.MAX_VOLUMES + 1)])
    with pytest.raises(ImageError, match="257 volumes"):
        new_box(runtime, image)


# ---- boxes of earlier versions ----


@pytest.fixture
def former_box(
    runtime: DockerRuntime, new_image: Callable[..., str], monkeypatch: pytest.MonkeyPatch, api: docker.APIClient
) -> BoxRef:
    """A box whose container an earlier version made of the image itself, so that it has anonymous volumes."""
    image = new_image(files=odd_files())
    with monkeypatch.context() as patch:
        patch.setattr(bases.Bases, "of_image", lambda self, image: image)
        box = new_box(runtime, image, hostname="former", security="development")
    assert len(container_of(api, box)["Mounts"]) == 2
    sh(runtime, box, "echo keep > /data/f; chown box /data /data/f; chmod 700 /data; echo keep > /srv/f")
    return box


def test_what_a_box_of_an_earlier_version_wrote_is_in_its_snapshot_clone_and_archive(
    runtime: DockerRuntime, api: docker.APIClient, former_box: BoxRef
) -> None:
    disks, box, kept = runtime.disks, former_box, ids.new_id()
    asked, before = spec(container_of(api, box)["Config"]["Image"], security="development"), odd(files_of(api, box))
    disks.snapshot(box, kept)
    made = [disks.clone(box, BoxRef(ids.new_id(), 1), asked).box]
    with disks.export(box) as export:
        assert export.settings.cmd == ("sleep 9",)
        made.append(disks.load(BoxRef(ids.new_id(), 1), asked, export.tar).box)
    made.append(disks.restore(box, kept, 2, asked).box)
    assert (box.box_id, kept) in disks.list_snapshots()
    for copy in made:
        assert sh(runtime, copy, "cat /data/f /srv/f; stat -c '%U %a' /data") == "keep\nkeep\nbox 700\n"
        assert odd(files_of(api, copy)) == before
        assert container_of(api, copy)["Mounts"] == []
    for copy in (made[0], made[2]):
        config = container_of(api, copy)["Config"]
        assert {key: config[key] for key in ("User", "Entrypoint", "Cmd", "WorkingDir")} == {
            key: SETTINGS[key] for key in ("User", "Entrypoint", "Cmd", "WorkingDir")
        }
    for copy in made:
        runtime.remove(copy, force=True)


def test_a_box_of_an_earlier_version_has_to_be_stopped_for_its_snapshot(
    runtime: DockerRuntime, former_box: BoxRef
) -> None:
    runtime.start(former_box)
    with pytest.raises(InvalidStateError, match="earlier version"):
        runtime.disks.snapshot(former_box, ids.new_id())
    assert runtime.inspect(former_box).status is BoxStatus.RUNNING
    runtime.remove(former_box, force=True)  # and its volumes


def test_a_snapshot_of_an_earlier_version_makes_a_box_without_anonymous_volumes(
    runtime: DockerRuntime, api: docker.APIClient, former_box: BoxRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = ids.new_id()
    with monkeypatch.context() as patch:
        patch.setattr(docker_disks, "anonymous_volumes", lambda container: [])
        runtime.disks.snapshot(former_box, kept)
    box = runtime.disks.restore(former_box, kept, 2, spec("any")).box
    assert container_of(api, box)["Mounts"] == []
    assert sh(runtime, box, "cat /srv/f; echo later > /data/f; cat /data/f") == "keep\nlater\n"
    runtime.disks.remove_snapshot(box, kept)
    runtime.remove(box, force=True)


def test_a_box_of_an_earlier_version_with_as_many_layers_as_the_engine_takes_is_not_stuck(
    docker_host: str, api: docker.APIClient, new_image: Callable[..., str]
) -> None:
    owner, image = Owner(ids.new_id(), ids.new_id()), new_image(files=odd_files())
    api.load_image(deep_image("boxlite-test-deep:1", api.inspect_image(image)))
    former = DockerRuntime(lambda: owner, docker_host, max_layers=1000)
    box, kept = new_box(former, "boxlite-test-deep:1"), ids.new_id()
    former.files(box).put("/srv", [archive("f")])
    former.close()
    before = content_of(api, box)
    runtime = DockerRuntime(lambda: owner, docker_host)
    runtime.disks.snapshot(box, kept)
    restored = runtime.disks.restore(box, kept, 2, spec("any")).box
    assert content_of(api, restored) == before
    assert layers_under(api, restored) <= 2
    runtime.remove(restored, force=True)
    runtime.images.remove("boxlite-test-deep:1")
    runtime.close()


def deep_image(name: str, image: dict[str, Any]) -> bytes:
    """An archive of an image with the layers of another one, which the engine holds, and with 125 layers in all."""
    more = {f"{number}.tar": archive(f"deep{number}") for number in range(125 - len(image["RootFS"]["Layers"]))}
    diffs = image["RootFS"]["Layers"] + [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in more.values()]
    layers = ["held.tar"] * len(image["RootFS"]["Layers"]) + list(more)
    settings = {key: value for key, value in image["Config"].items() if key != "Volumes"}
    config = {"architecture": image["Architecture"], "os": image["Os"], "config": settings}
    config["rootfs"] = {"type": "layers", "diff_ids": diffs}
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": layers}]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for at, told in {"config.json": config, "manifest.json": manifest}.items():
            more[at] = json.dumps(told).encode()
        for at, data in more.items():
            entry = tarfile.TarInfo(at)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return packed.getvalue()
