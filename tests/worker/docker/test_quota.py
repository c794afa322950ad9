"""Where the engine's storage has quotas, it limits the disks of boxes; whether it has, an attempt tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import docker
import pytest
from support.sites import Site, collect

from boxlite_server import ids
from boxlite_server.errors import EngineError, UnsupportedError
from boxlite_server.worker.commands import ExecSpec
from boxlite_server.worker.docker.engine import Engine
from boxlite_server.worker.docker.labels import DISK_LIMIT_LABEL
from boxlite_server.worker.docker.runtime import DockerRuntime
from boxlite_server.worker.docker.stats import layer_bytes
from boxlite_server.worker.docker.storage.quota import GB, Quota
from boxlite_server.worker.runtime import BoxRef, BoxSpec, DiskLimit, Owner

OVERLAY = {"Driver": "overlay2", "DriverStatus": [["Backing Filesystem", "xfs"], ["Supports d_type", "true"]]}
CONTAINERD = {"Driver": "btrfs", "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]}


class Storage:
    """What `Quota` asks of an engine, on storage with quotas."""

    def __init__(self, info: dict[str, Any], fault: Exception | None = None) -> None:
        self.api = self
        self.fault = fault
        self.asked: list[str] = []
        self.held: set[str] = set()
        self._info = info

    def info(self) -> dict[str, Any]:
        self.asked.append("info")
        return self._info

    def import_image_from_data(self, data: bytes, repository: str, tag: str) -> None:
        self.held.add(f"image {repository}")

    def create_container_from_config(self, config: dict[str, Any], name: str) -> None:
        assert config["HostConfig"]["StorageOpt"] == {"size": str(GB)}
        if self.fault:
            raise self.fault
        self.held.add(f"container {name}")

    def remove_container(self, name: str, **how: bool) -> None:
        self.held.discard(f"container {name}")

    def remove_image(self, name: str) -> None:
        self.held.discard(f"image {name}")


def quota(storage: Any, **how: Any) -> Quota:
    return Quota(storage, **how)


def limited(quota: Quota, gb: int) -> dict[str, Any]:
    """The configuration of a container with that limit."""
    config: dict[str, Any] = {"HostConfig": {}, "Labels": {}}
    spec = BoxSpec("image", disk_size_gb=gb)
    quota.admit(spec)
    quota.apply(config, spec)
    return config


@pytest.mark.parametrize("enforce", [True, False])
def test_storage_with_quotas_gets_the_limit(enforce: bool) -> None:
    storage = Storage(OVERLAY)
    ours = quota(storage, enforce=enforce)
    assert ours.kind is DiskLimit.ENFORCED
    assert not storage.held, "the probe leaves nothing behind"
    assert limited(ours, 3) == {
        "HostConfig": {"StorageOpt": {"size": str(3 * GB)}},
        "Labels": {DISK_LIMIT_LABEL: ""},
    }
    assert limited(ours, 0)["HostConfig"] == {}
    assert storage.asked == ["info"], "the engine is asked once"


def test_snapshotters_of_containerd_accept_a_limit_and_do_not_keep_it() -> None:
    assert quota(Storage(CONTAINERD)).kind is DiskLimit.WATCHED


def test_an_engine_that_goes_away_during_the_probe_is_asked_again() -> None:
    storage = Storage(OVERLAY, OSError("connection reset"))
    ours = quota(storage)
    with pytest.raises(EngineError):
        _ = ours.kind
    storage.fault = None
    assert ours.kind is DiskLimit.ENFORCED


def test_a_real_engine_without_quotas_refuses_the_probe(docker_host: str, api: docker.APIClient) -> None:
    engine = Engine(docker_host)
    info = {**api.info(), "Driver": "overlay2"}
    if "xfs" in str(info["DriverStatus"]):
        pytest.skip("this engine may have quotas")

    class Asked:
        def __init__(self) -> None:
            self.api = self

        def info(self) -> dict[str, Any]:
            return info

        def __getattr__(self, name: str) -> Any:
            return getattr(engine.api, name)

    ours = quota(Asked())
    assert ours.kind is DiskLimit.WATCHED
    assert limited(ours, 2) == {"HostConfig": {}, "Labels": {DISK_LIMIT_LABEL: str(2 * GB)}}
    assert not [name for image in api.images() for name in image["RepoTags"] or () if "probe" in name]
    assert not api.containers(all=True, filters={"name": "boxlite-probe"})
    engine.close()


def test_an_operator_who_wants_limits_enforced_has_boxes_refused(docker_host: str, docker_alone: Site) -> None:
    owner = Owner(ids.new_id(), ids.new_id())
    strict = DockerRuntime(lambda: owner, docker_host, enforce_disk_limit=True)
    if strict.capacity().disk_limit is DiskLimit.ENFORCED:
        pytest.skip("this engine has quotas")
    assert strict.capacity().disk_limit is DiskLimit.UNSUPPORTED
    with pytest.raises(UnsupportedError, match="--disk-limit enforce"):
        strict.create(BoxRef(ids.new_id(), 1), docker_alone.spec(disk_size_gb=1))
    box = BoxRef(ids.new_id(), 1)
    strict.create(box, docker_alone.spec())
    strict.remove(box, force=True)
    strict.close()


def test_the_engine_measures_a_layer_that_the_worker_cannot_reach(
    docker_host: str, docker_alone: Site, api: docker.APIClient, tmp_path: Path
) -> None:
    box = docker_alone.running_box()
    command = ExecSpec(("dd", "if=/dev/zero", "of=/big", "bs=1024k", "count=3"))
    assert collect(docker_alone.runtime.spawn(box, command))[2] == 0
    container = api.inspect_container(f"boxlite-{box.box_id}-1")
    engine = Engine(docker_host)
    there = layer_bytes(engine, container)
    elsewhere = layer_bytes(engine, {**container, "GraphDriver": {"Data": {"UpperDir": str(tmp_path / "none")}}})
    assert min(there, elsewhere) >= 3 * 1024 * 1024
    assert abs(there - elsewhere) < 1024 * 1024
    engine.close()
    docker_alone.runtime.remove(box, force=True)
