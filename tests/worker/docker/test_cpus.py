"""Boxes that are pinned to cpus, on a real engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import docker
import pytest
from support.sites import Site, collect

from boxlite_server import ids
from boxlite_server.errors import InvalidArgumentError
from boxlite_server.worker.commands import ExecSpec
from boxlite_server.worker.docker.runtime import DockerRuntime
from boxlite_server.worker.host_access import Policy
from boxlite_server.worker.runtime import BoxRef, Owner

NewSite = Callable[..., Site]

pytestmark = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="takes two cpus")


@pytest.fixture
def new_site(docker_alone: Site, docker_host: str) -> Iterator[NewSite]:
    """Makes runtimes of one worker, one after the other, that pin boxes to cpus."""
    owner = Owner(ids.new_id(), ids.new_id())
    made: list[DockerRuntime] = []

    def new(*cpus: int) -> Site:
        made.append(DockerRuntime(lambda: owner, docker_host, Policy(cpus=cpus)))
        return Site(made[-1], docker_alone.image, docker_alone.bare_image, docker_alone.allowed)

    yield new
    for state in made[-1].list_boxes():
        made[-1].remove(state.box, force=True)
    for runtime in made:
        runtime.close()


@pytest.fixture
def cpus_of(api: docker.APIClient) -> Callable[[BoxRef], str]:
    return lambda box: api.inspect_container(f"boxlite-{box.box_id}-{box.generation}")["HostConfig"]["CpusetCpus"]


def nproc(site: Site, box: BoxRef) -> int:
    site.runtime.start(box)
    return int(collect(site.runtime.spawn(box, ExecSpec(("nproc",))))[0])


def test_programs_see_as_many_cpus_as_their_box_has(new_site: NewSite) -> None:
    site = new_site(0, 1)
    assert [nproc(site, site.new_box(cpus=cpus)) for cpus in (1, 2)] == [1, 2]


def test_boxes_are_spread_over_the_cpus_also_after_a_restart(
    new_site: NewSite, cpus_of: Callable[[BoxRef], str]
) -> None:
    site = new_site(0, 1)
    first, second = site.new_box(), site.new_box()
    assert [cpus_of(first), cpus_of(second)] == ["0", "1"]
    site.runtime.remove(first, force=True)
    site = new_site(0, 1)
    assert cpus_of(site.new_box()) == "0"
    copy = BoxRef(ids.new_id(), 1)
    site.runtime.disks.clone(second, copy, site.spec())
    assert cpus_of(copy) == "0"
    assert cpus_of(site.new_box()) == "1"


def test_a_box_cannot_have_more_cpus_than_there_are_for_boxes(new_site: NewSite) -> None:
    site = new_site(1)
    assert site.runtime.capacity().cpus == 1
    with pytest.raises(InvalidArgumentError, match="2 cpus: this worker has 1 for boxes"):
        site.new_box(cpus=2)


def test_other_workers_pin_nothing(docker_alone: Site, cpus_of: Callable[[BoxRef], str]) -> None:
    box = docker_alone.new_box()
    assert cpus_of(box) == ""
    docker_alone.runtime.remove(box, force=True)
