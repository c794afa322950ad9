"""Boxes of images that declare volumes, as those of databases do: what a box writes there belongs to the box."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import docker
import pytest
from support import boxes
from support.cluster import Cluster
from support.sdk import NEWEST, run_sdk

DATABASE = "boxlite-test-database:1"
OCTETS = {"Content-Type": "application/octet-stream"}
WRITE = "for at in /data /var/lib/db /link/deep/er; do echo keep > $at/f; done"
READ = "cat /data/f /var/lib/db/f /srv/deep/er/f"


def entry(name: str, mode: int, owner: int = 0, data: bytes | None = None, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mode, info.uid, info.gid, info.linkname = mode, owner, owner, link
    info.type = tarfile.SYMTYPE if link else tarfile.DIRTYPE if data is None else tarfile.REGTYPE
    info.size = len(data or b"")
    return info


def make_image(api: docker.APIClient, source: str, name: str) -> str:
    """An image that declares volumes: where it has files of somebody's, where it has nothing, and behind a link."""
    files = io.BytesIO()
    with tarfile.open(fileobj=files, mode="w") as tar:
        tar.addfile(entry("srv", 0o1710, owner=1001))
        for at in ("var", "var/lib"):
            tar.addfile(entry(at, 0o755))
        tar.addfile(entry("var/lib/db", 0o700, owner=1000))
        tar.addfile(entry("var/lib/db/seed", 0o600, owner=1000, data=b"sown\n"), io.BytesIO(b"sown\n"))
        tar.addfile(entry("link", 0o777, link="srv"))
    container = api.create_container(source)["Id"]
    api.put_archive(container, "/", files.getvalue())
    repository, _, tag = name.partition(":")
    changes = [f"VOLUME {at}" for at in ("/data", "/var/lib/db", "/link/deep/er")]
    made: str = api.commit(container, repository, tag, changes=[*changes, "ENV WHO=db", "LABEL of=tests"])["Id"]
    api.remove_container(container)
    return made


@pytest.fixture(scope="module")
def image(api: docker.APIClient, test_image: str) -> Iterator[str]:
    before = volumes(api)
    make_image(api, test_image, DATABASE)
    yield DATABASE
    api.remove_image(DATABASE)
    assert volumes(api) <= before


def volumes(api: docker.APIClient) -> set[str]:
    return {volume["Name"] for volume in api.volumes()["Volumes"] or []}


def bases(api: docker.APIClient) -> set[str]:
    """What the engine has besides images that people and snapshots have named."""
    return {tag for image in api.images() for tag in image["RepoTags"] or () if tag.startswith("boxlite.invalid/")}


def container_of(api: docker.APIClient, box: str) -> dict[str, Any]:
    (found,) = api.containers(all=True, filters={"label": f"boxlite.box={box}"})
    return dict(api.inspect_container(found["Id"]))


def ok(cluster: Cluster, method: str, path: str, body: Any = None, **headers: str) -> Any:
    status, _, answer = cluster.http(method, path, body, headers=headers)
    assert 200 <= status < 300, answer
    return answer


def run(cluster: Cluster, box: str, script: str) -> str:
    """The output of a shell script in the box."""
    path = f"/v1/boxes/{box}/executions/{boxes.execute(cluster, box, script)}/output"
    events = ok(cluster, "GET", path).decode().split("\n\n")
    pieces = [json.loads(event.rpartition("data: ")[2]) for event in events if "event: std" in event]
    return b"".join(base64.b64decode(piece["data"]) for piece in pieces).decode()


def stop(cluster: Cluster, box: str) -> None:
    ok(cluster, "POST", f"/v1/boxes/{box}/stop", {"timeout_seconds": 1})


def restored(cluster: Cluster, box: str, name: str) -> None:
    stop(cluster, box)
    ok(cluster, "POST", f"/v1/boxes/{box}/snapshots/{name}/restore")


@pytest.fixture
def box(new_box: Callable[..., str], image: str) -> str:
    return new_box(image=image, env={})


@pytest.mark.parametrize("running", [False, True])
def test_what_a_box_wrote_is_in_its_snapshot(cluster: Cluster, box: str, running: bool) -> None:
    run(cluster, box, WRITE)
    if not running:
        stop(cluster, box)
    made = ok(cluster, "POST", f"/v1/boxes/{box}/snapshots", {"name": "s"})
    assert made["container_disk_bytes"] >= 15
    run(cluster, box, "rm /data/f; echo lost > /var/lib/db/f")
    for _ in range(2):
        restored(cluster, box, "s")
        assert run(cluster, box, READ) == "keep\n" * 3
        run(cluster, box, "rm /data/f /var/lib/db/f")


def test_what_a_box_wrote_is_in_its_clone_and_in_its_archive(cluster: Cluster, box: str) -> None:
    run(cluster, box, WRITE)
    copy = ok(cluster, "POST", f"/v1/boxes/{box}/clone", {})
    archive = ok(cluster, "POST", f"/v1/boxes/{box}/export", {})
    loaded = ok(cluster, "POST", "/v1/boxes/import", archive, **OCTETS)
    run(cluster, box, "rm -r /data/f /var/lib/db/f")
    for made in (copy, loaded):
        assert made["image"] == DATABASE
        assert run(cluster, made["box_id"], f"{READ}; echo $WHO") == "keep\n" * 3 + "db\n"
        again = ok(cluster, "POST", f"/v1/boxes/{made['box_id']}/clone", {})["box_id"]
        assert run(cluster, again, READ) == "keep\n" * 3
        for one in (made["box_id"], again):
            ok(cluster, "DELETE", f"/v1/boxes/{one}?force=true")


SDK = """
import asyncio, sys, tempfile, boxlite

async def main():
    runtime = boxlite.Boxlite.rest(boxlite.BoxliteRestOptions.from_env())
    box, made = await runtime.create(boxlite.BoxOptions(image=sys.argv[1], memory_mib=128)), []
    try:
        await (await box.exec("sh", ["-c", "echo keep > /data/f"])).wait()
        await box.snapshot.create(name="s")
        made.append(await box.clone_box())
        with tempfile.TemporaryDirectory() as directory:
            made.append(await runtime.import_box(str(await box.export(dest=directory))))
        await (await box.exec("rm", ["/data/f"])).wait()
        await box.stop()
        await box.snapshot.restore("s")
        for one in (await runtime.get(box.id), *made):
            await one.start()
            command = await one.exec("cat", ["/data/f"])
            print([line async for line in command.stdout()])
    finally:
        for one in (box, *made):
            await runtime.remove(one.id, force=True)

asyncio.run(main())
"""


def test_the_released_sdk_finds_it_in_all_three(cluster: Cluster, image: str) -> None:
    done = run_sdk(NEWEST, SDK, image, env={"BOXLITE_REST_URL": cluster.url})
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['keep\\n']\n" * 3


def test_the_paths_are_as_the_image_has_them(cluster: Cluster, box: str, api: docker.APIClient, image: str) -> None:
    script = "cd /var/lib/db; cat seed; stat -c '%a %u %g' . seed /data /srv /srv/deep/er; readlink /link"
    expected = ["sown", "700 1000 1000", "600 1000 1000", "755 0 0", "1710 1001 1001", "755 0 0", "srv"]
    assert run(cluster, box, script).splitlines() == expected
    container, ours = container_of(api, box), api.inspect_image(image)["Config"]
    assert [mount["Destination"] for mount in container["Mounts"]] == ["/dev/boxlite"]
    assert container["Config"]["Entrypoint"] == ["/dev/boxlite/init", "--", *(ours["Entrypoint"] or ())]
    for key in ("Env", "Cmd", "User", "WorkingDir"):
        assert container["Config"][key] == ours[key]
    assert container["Config"]["Labels"].items() >= ours["Labels"].items()


def test_a_named_volume_on_a_declared_path_is_mounted_and_stays_outside(
    cluster: Cluster, new_box: Callable[..., str], image: str
) -> None:
    volume = ok(cluster, "POST", "/v1/volumes", {})["id"]
    box = new_box(image=image, volumes=[{"managed_volume": volume, "guest_path": "/var/lib/db"}])
    assert run(cluster, box, f"cat /var/lib/db/seed; {WRITE}") == "sown\n"
    ok(cluster, "POST", f"/v1/boxes/{box}/snapshots", {"name": "s"})
    run(cluster, box, "echo later > /var/lib/db/f; echo later > /data/f")
    restored(cluster, box, "s")
    assert run(cluster, box, "cat /data/f /var/lib/db/f") == "keep\nlater\n"
    ok(cluster, "DELETE", f"/v1/boxes/{box}?force=true")
    ok(cluster, "DELETE", f"/v1/volumes/{volume}")


def test_many_boxes_at_once_share_what_is_made_of_the_image(
    cluster: Cluster, new_box: Callable[..., str], api: docker.APIClient, test_image: str
) -> None:
    made = make_image(api, test_image, "boxlite-test-many:1")
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: new_box(image="boxlite-test-many:1"), range(6)))
    assert len({container_of(api, box)["Image"] for box in found}) == 1
    assert [tag for tag in bases(api) if made.removeprefix("sha256:") in tag] != []
    for box in found:
        ok(cluster, "DELETE", f"/v1/boxes/{box}?force=true")
    ok(cluster, "DELETE", "/v1/images/boxlite-test-many:1")
    assert not [tag for tag in bases(api) if made.removeprefix("sha256:") in tag]


def test_an_image_is_listed_kept_and_removed_as_if_boxes_were_made_of_itself(
    cluster: Cluster, new_box: Callable[..., str], api: docker.APIClient, test_image: str
) -> None:
    make_image(api, test_image, "boxlite-test-listed:1")
    api.tag("boxlite-test-listed:1", "boxlite-test-listed", "2")
    before, listed = bases(api), ok(cluster, "GET", "/v1/images")
    box = new_box(image="boxlite-test-listed:1")
    assert ok(cluster, "GET", f"/v1/boxes/{box}")["image"] == "boxlite-test-listed:1"
    assert ok(cluster, "GET", "/v1/images") == listed
    (base,) = bases(api) - before
    assert cluster.http("DELETE", f"/v1/images/{quote(base, safe='')}")[0] == 404
    assert cluster.http("DELETE", "/v1/images/boxlite-test-listed:1")[0] == 409
    ok(cluster, "DELETE", "/v1/images/boxlite-test-listed:2")  # no box was asked for by that name
    assert cluster.http("DELETE", "/v1/images/boxlite-test-listed:1")[0] == 409
    ok(cluster, "DELETE", f"/v1/boxes/{box}?force=true")
    assert base in bases(api)  # for the next box
    ok(cluster, "DELETE", "/v1/images/boxlite-test-listed:1")
    assert bases(api) == before


def test_an_image_that_the_operator_removed_leaves_nothing_once_its_boxes_are_gone(
    cluster: Cluster, new_box: Callable[..., str], api: docker.APIClient, test_image: str
) -> None:
    make_image(api, test_image, "boxlite-test-gone:1")
    before = bases(api)
    box = new_box(image="boxlite-test-gone:1")
    api.remove_image("boxlite-test-gone:1")
    assert run(cluster, box, f"{WRITE}; {READ}") == "keep\n" * 3
    ok(cluster, "DELETE", f"/v1/boxes/{box}?force=true")
    assert bases(api) == before
