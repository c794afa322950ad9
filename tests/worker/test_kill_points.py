"""The worker's process dies before or after any step that it takes at the engine.

What the next process does is what the coordinator has it do: the call once more. Then the end state is that of an
undisturbed call, nothing is there twice, and with the box all that was made goes.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import pytest
from support.sites import Site, collect

from boxlite_server import ids
from boxlite_server.worker.commands import ExecSpec
from boxlite_server.worker.docker.runtime import DockerRuntime
from boxlite_server.worker.runtime import BoxRef, BoxSpec, BoxState, BoxStatus, Owner
from boxlite_server.worker.supervisor.links import Links
from boxlite_server.worker.supervisor.program import program


class Death(BaseException):
    """The death of the worker's process; no code of the worker catches this."""


# What changes something at the engine, as requests name it.
STEPS = {
    "create container": r"POST /containers/create",
    "start container": r"POST /containers/\S+/start",
    "remove container": r"DELETE /containers/",
    "commit": r"POST /commit",
    "load image": r"POST /images/create",
    "tag image": r"POST /images/\S+/tag",
    "remove image": r"DELETE /images/",
}


class MortalRuntime(DockerRuntime):
    """Dies at its n-th step of a kind, before or after it; from then on it reaches the engine no more."""

    def die_at(self, step: str, number: int, when: str) -> None:
        engine, session = self._engine, self._engine.api
        call, send = session.send, engine.send
        self.is_dead, left = False, number
        pattern = re.compile(STEPS[step])

        def pass_on(request: str, act: Callable[[], Any]) -> Any:
            nonlocal left
            if self.is_dead:
                raise Death
            if pattern.match(request):
                left -= 1
                if left == 0:
                    self.is_dead = True
                    if when == "after":
                        act().close()
                    raise Death
            return act()

        def mortal_call(request: Any, **how: Any) -> Any:
            path = re.sub(r"^\S+?://[^/]+(/v[\d.]+)?", "", request.url)
            return pass_on(f"{request.method} {path}", lambda: call(request, **how))

        def mortal_send(method: str, path: str, *args: Any, **how: Any) -> Any:
            return pass_on(f"{method} {path}", lambda: send(method, path, *args, **how))

        session.send = mortal_call
        engine.send = mortal_send  # type: ignore[method-assign]


@dataclass
class Scene:
    """One owner's boxes on a real engine, and its worker's processes one after the other."""

    docker_host: str
    image: str
    directory: Path
    owner: Owner = field(default_factory=lambda: Owner(ids.new_id(), ids.new_id()))

    def __post_init__(self) -> None:
        self.site = self.next_life()

    def next_life(self) -> Site:
        if hasattr(self, "site"):
            self.site.runtime.close()
        home, supervisor = self.directory / "home", program()
        assert supervisor is not None
        links = Links(home / "boxes", supervisor)
        runtime = MortalRuntime(lambda: self.owner, self.docker_host, links=links, prepared=home / "prepared")
        runtime.tidy()
        self.site = Site(runtime, self.image, self.image, self.directory)
        return self.site

    def box_with_file(self) -> BoxRef:
        """A box at rest with something on its disk."""
        box = self.site.new_box()
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as tar:
            entry = tarfile.TarInfo("file")
            entry.size = 4
            tar.addfile(entry, io.BytesIO(b"one\n"))
        self.site.runtime.files(box).put("/", [data.getvalue()])
        return box

    def has_file(self, box: BoxRef) -> bool:
        return self.site.runtime.files(box).stat("/file") is not None


@pytest.fixture
def scene(docker_host: str, test_image: str, tmp_path: Path, api: docker.APIClient) -> Iterator[Scene]:
    scene = Scene(docker_host, test_image, tmp_path)
    yield scene
    for state in scene.site.runtime.list_boxes():
        scene.site.runtime.remove(state.box, force=True)
    scene.site.runtime.disks.tidy()
    mine = {"label": [f"boxlite.cluster={scene.owner.cluster_id}"]}
    assert api.containers(all=True, filters=mine) == []
    assert [image["RepoTags"] for image in api.images(all=True, filters=mine)] == []


Verb = Callable[[Site], BoxState | None]


def survive(scene: Scene, step: str, number: int, when: str, verb: Verb) -> BoxState | None:
    """Call, die, and call again in the next life. Returns the second answer."""
    runtime = scene.site.runtime
    assert isinstance(runtime, MortalRuntime)
    runtime.die_at(step, number, when)
    with pytest.raises(Death):
        verb(scene.site)
    return verb(scene.next_life())


def deaths(*steps: str) -> pytest.MarkDecorator:
    """A test for each moment: before and after the n-th `step n`."""
    cases = []
    for text in steps:
        step, _, number = text.partition(" #")
        cases += [pytest.param(step, int(number or 1), when, id=f"{when} {text}") for when in ("before", "after")]
    return pytest.mark.parametrize(("step", "number", "when"), cases)


def boxes(scene: Scene) -> list[tuple[str, int, BoxStatus]]:
    found = [(s.box.box_id, s.box.generation, s.status) for s in scene.site.runtime.list_boxes()]
    return sorted(found)


@deaths("create container")
def test_create(scene: Scene, step: str, number: int, when: str) -> None:
    box = BoxRef(ids.new_id(), 1)
    state = survive(scene, step, number, when, lambda site: site.runtime.create(box, site.spec()))
    assert state is not None and state.box == box
    assert boxes(scene) == [(box.box_id, 1, BoxStatus.CONFIGURED)]
    assert scene.site.runtime.start(box).status is BoxStatus.RUNNING


@deaths("remove container", "create container")
def test_create_over_a_former_generation(scene: Scene, step: str, number: int, when: str) -> None:
    former = scene.site.new_box()
    box = BoxRef(former.box_id, 2)
    survive(scene, step, number, when, lambda site: site.runtime.create(box, site.spec()))
    assert boxes(scene) == [(box.box_id, 2, BoxStatus.CONFIGURED)]


@deaths("start container")
def test_start(scene: Scene, step: str, number: int, when: str) -> None:
    box = scene.site.new_box(cmd=("sh", "-c", "echo x >> /starts; tail -f /dev/null"))
    survive(scene, step, number, when, lambda site: site.runtime.start(box))
    assert boxes(scene) == [(box.box_id, 1, BoxStatus.RUNNING)]
    said = collect(scene.site.runtime.spawn(box, ExecSpec(("sh", "-c", "until cat /starts; do sleep 0.02; done"))))[0]
    assert said == b"x\n", "it was started once"


@deaths("create container", "start container")
def test_prepare(scene: Scene, step: str, number: int, when: str) -> None:
    box = BoxRef(ids.new_id(), 1)
    state = survive(scene, step, number, when, lambda site: site.runtime.prepare(box, site.spec()))
    assert state is not None and state.unclaimed
    assert boxes(scene) == [(box.box_id, 1, BoxStatus.CONFIGURED)]
    scene.site.runtime.create(box, scene.site.spec(env={"OWN": "own"}))
    assert scene.site.runtime.start(box).status is BoxStatus.RUNNING
    assert collect(scene.site.runtime.spawn(box, ExecSpec(("sh", "-c", "echo $OWN"))))[0] == b"own\n"


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", ["write the claim", "write the start", "start the main command"])
def test_claim_and_start(scene: Scene, step: str, when: str) -> None:
    """The engine has no part in these steps."""
    box, runtime = BoxRef(ids.new_id(), 1), scene.site.runtime
    runtime.prepare(box, scene.site.spec())
    pid = _pid(scene, box)
    assert isinstance(runtime, MortalRuntime)
    places = {
        "write the claim": (runtime._prepared, "put"),
        "write the start": (runtime._prepared, "start"),
        "start the main command": (runtime._supervisors, "start_main"),
    }
    owner, name = places[step]
    call = getattr(owner, name)

    def mortal(*args: object) -> None:
        if when == "after":
            call(*args)
        raise Death

    def claim_and_start(site: Site) -> BoxState:
        cmd = ("sh", "-c", "echo main of $OWN; exec tail -f /dev/null")
        site.runtime.create(box, site.spec(env={"OWN": "own"}, cmd=cmd))
        return site.runtime.start(box)

    setattr(owner, name, mortal)
    with pytest.raises(Death):
        claim_and_start(scene.site)
    assert claim_and_start(scene.next_life()).status is BoxStatus.RUNNING
    assert boxes(scene) == [(box.box_id, 1, BoxStatus.RUNNING)]
    assert _pid(scene, box) == pid, "it is still the warm box"
    assert collect(scene.site.runtime.spawn(box, ExecSpec(("sh", "-c", "echo $OWN"))))[0] == b"own\n"
    log = scene.site.runtime.read_logs(box, None, follow=True)
    assert log.read() == (1, b"main of own\n")
    log.close()
    scene.site.runtime.stop(box, 0)
    log = scene.site.runtime.read_logs(box, None, follow=True)
    assert [log.read(), log.read()] == [(1, b"main of own\n"), None], "its main command was started once"
    log.close()


def _pid(scene: Scene, box: BoxRef) -> int:
    """Of the container's first process."""
    api = docker.APIClient(base_url=scene.docker_host)
    try:
        return int(api.inspect_container(f"boxlite-{box.box_id}-{box.generation}")["State"]["Pid"])
    finally:
        api.close()


@deaths("commit")
def test_snapshot(scene: Scene, api: docker.APIClient, step: str, number: int, when: str) -> None:
    box, kept = scene.box_with_file(), ids.new_id()

    def snapshot(site: Site) -> None:
        site.runtime.disks.snapshot(box, kept)

    survive(scene, step, number, when, snapshot)
    assert boxes(scene) == [(box.box_id, 1, BoxStatus.CONFIGURED)]
    assert disks(scene, api) == [f"boxlite/snapshot:{kept}"]
    assert scene.has_file(box)


@deaths("create container", "remove container")
def test_restore(scene: Scene, api: docker.APIClient, step: str, number: int, when: str) -> None:
    box, kept = scene.box_with_file(), ids.new_id()
    scene.site.runtime.disks.snapshot(box, kept)
    survive(scene, step, number, when, lambda site: site.runtime.disks.restore(box, kept, 2, site.spec()))
    assert boxes(scene) == [(box.box_id, 2, BoxStatus.CONFIGURED)]
    assert scene.has_file(BoxRef(box.box_id, 2))
    assert disks(scene, api) == [f"boxlite/snapshot:{kept}"]


@deaths("remove image")
def test_restore_of_a_box_that_has_a_disk_of_its_own(
    scene: Scene, api: docker.APIClient, step: str, number: int, when: str
) -> None:
    source, box, kept = scene.box_with_file(), BoxRef(ids.new_id(), 1), ids.new_id()
    scene.site.runtime.disks.clone(source, box, scene.site.spec())
    scene.site.runtime.disks.snapshot(box, kept)
    survive(scene, step, number, when, lambda site: site.runtime.disks.restore(box, kept, 2, site.spec()))
    assert (box.box_id, 2, BoxStatus.CONFIGURED) in boxes(scene)
    assert scene.has_file(BoxRef(box.box_id, 2))
    assert disks(scene, api) == [f"boxlite/snapshot:{kept}"]


@deaths("commit", "create container")
def test_clone(scene: Scene, api: docker.APIClient, step: str, number: int, when: str) -> None:
    source, box = scene.box_with_file(), BoxRef(ids.new_id(), 1)
    survive(scene, step, number, when, lambda site: site.runtime.disks.clone(source, box, site.spec()))
    expected = [(source.box_id, 1, BoxStatus.CONFIGURED), (box.box_id, 1, BoxStatus.CONFIGURED)]
    assert boxes(scene) == sorted(expected)
    assert disks(scene, api) == [f"boxlite/box:{box.box_id}"]
    assert scene.has_file(box)


@deaths("load image", "create container")
def test_import(scene: Scene, api: docker.APIClient, step: str, number: int, when: str) -> None:
    source, box = scene.box_with_file(), BoxRef(ids.new_id(), 1)
    with scene.site.runtime.disks.export(source) as export:
        data, own = b"".join(export.tar), export.settings
    scene.site.runtime.remove(source, force=True)
    spec = BoxSpec(scene.image, memory_mib=64, network_enabled=False, env=own.env, cmd=own.cmd)
    survive(scene, step, number, when, lambda site: site.runtime.disks.load(box, spec, iter([data])))
    assert boxes(scene) == [(box.box_id, 1, BoxStatus.CONFIGURED)]
    assert disks(scene, api) == [f"boxlite/box:{box.box_id}"]
    assert scene.has_file(box)


@deaths("commit", "create container", "remove container", "remove image")
def test_export(scene: Scene, api: docker.APIClient, step: str, number: int, when: str) -> None:
    box = scene.box_with_file()

    def export(site: Site) -> None:
        with site.runtime.disks.export(box) as export:
            assert sum(map(len, export.tar)) > 10_000

    survive(scene, step, number, when, export)
    assert boxes(scene) == [(box.box_id, 1, BoxStatus.CONFIGURED)]
    assert disks(scene, api) == []
    assert api.containers(all=True, filters={"label": [f"boxlite.export={scene.owner.worker_id}"]}) == []


@deaths("remove container", "remove image", "remove image #2")
def test_remove(scene: Scene, api: docker.APIClient, step: str, number: int, when: str) -> None:
    source, box = scene.box_with_file(), BoxRef(ids.new_id(), 1)
    scene.site.runtime.disks.clone(source, box, scene.site.spec())
    scene.site.runtime.disks.snapshot(box, ids.new_id())
    scene.site.runtime.start(box)
    survive(scene, step, number, when, lambda site: site.runtime.remove(box, force=True))
    assert boxes(scene) == [(source.box_id, 1, BoxStatus.CONFIGURED)]
    assert disks(scene, api) == []


@deaths("remove image", "tag image")
def test_remove_snapshot(scene: Scene, api: docker.APIClient, step: str, number: int, when: str) -> None:
    box, kept = scene.box_with_file(), ids.new_id()
    scene.site.runtime.disks.snapshot(box, kept)
    if step == "tag image":  # only of one that the box stands on
        box = scene.site.runtime.disks.restore(box, kept, 2, scene.site.spec()).box

    def remove(site: Site) -> None:
        site.runtime.disks.remove_snapshot(box, kept)

    survive(scene, step, number, when, remove)
    assert [tag for tag in disks(scene, api) if "snapshot" in tag] == []
    assert scene.has_file(box)


def disks(scene: Scene, api: docker.APIClient) -> list[str]:
    """The tags of the images that are the owner's, `<none>` for one without."""
    mine = {"label": [f"boxlite.cluster={scene.owner.cluster_id}"]}
    return sorted(tag for image in api.images(filters=mine) for tag in image["RepoTags"] or ["<none>"])
