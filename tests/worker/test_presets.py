"""The presets of isolation, and the floor that a worker's operator puts below them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.sites import Site

from boxlite_server.errors import InvalidArgumentError, ResourceExhaustedError, UnsupportedError
from boxlite_server.worker.docker.isolation import isolation_config
from boxlite_server.worker.host_access import Policy
from boxlite_server.worker.kernel.limits import refuse_without_pids
from boxlite_server.worker.presets import Preset
from boxlite_server.worker.runtime import BoxSpec, Mount

SPEC = BoxSpec("some:image")


@pytest.mark.parametrize(
    ("asked", "floor", "given"),
    [
        ("", Preset.DEVELOPMENT, "standard"),
        ("", Preset.STANDARD, "standard"),
        ("", Preset.MAXIMUM, "maximum"),
        ("development", Preset.DEVELOPMENT, "development"),
        ("maximum", Preset.STANDARD, "maximum"),
    ],
)
def test_a_box_gets_the_preset_that_it_asks_for_or_the_operators(asked: str, floor: Preset, given: str) -> None:
    assert Policy(floor=floor).admit(replace(SPEC, security=asked)).security == given


@pytest.mark.parametrize(("asked", "floor"), [("development", Preset.STANDARD), ("standard", Preset.MAXIMUM)])
def test_no_request_goes_below_the_operators_floor(asked: str, floor: Preset) -> None:
    with pytest.raises(UnsupportedError, match=f"--security {asked}"):
        Policy(floor=floor).admit(replace(SPEC, security=asked))


def test_the_floor_holds_at_every_runtime(site: Site) -> None:
    with pytest.raises(UnsupportedError, match="--security development"):
        site.new_box(security="development")
    with pytest.raises(InvalidArgumentError, match="no security preset"):
        site.new_box(security="none")


@pytest.mark.parametrize("name", ["NET_RAW", "MKNOD", "SYS_CHROOT", "SETFCAP", "AUDIT_WRITE"])
def test_capabilities_beyond_the_preset_need_the_operators_leave(name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"--allow-cap {name}"):
        Policy().admit(replace(SPEC, cap_add=(name,)))
    Policy(capabilities=frozenset({name})).admit(replace(SPEC, cap_add=(name,)))
    Policy(floor=Preset.DEVELOPMENT).admit(replace(SPEC, cap_add=(name,), security="development"))


@pytest.mark.parametrize("preset", list(Preset))
@pytest.mark.parametrize("allowed", [(), ("ALL",), ("SYS_ADMIN",)])
def test_no_box_is_privileged_or_shares_a_namespace_of_the_host(preset: Preset, allowed: tuple[str, ...]) -> None:
    config = isolation_config(replace(SPEC, security=preset, cap_add=allowed))
    assert not {"Privileged", "PidMode", "IpcMode", "UTSMode", "UsernsMode", "CgroupnsMode", "Devices"} & config.keys()
    assert all("unconfined" not in option for option in config.get("SecurityOpt", ()))


def test_all_capabilities_but_some_are_all_but_those() -> None:
    config = isolation_config(replace(SPEC, cap_add=("ALL",), cap_drop=("SYS_MODULE",)))
    assert (config["CapAdd"], config["CapDrop"]) == (["ALL"], ["SYS_MODULE"])


def test_a_read_only_box_keeps_the_volume_that_it_mounts_at_tmp() -> None:
    mounts = (Mount("/tmp", volume_id="v1"),)
    assert isolation_config(replace(SPEC, security="maximum", mounts=mounts))["Tmpfs"].keys() == {"/run", "/var/tmp"}


@pytest.mark.parametrize("path", ["/", "/proc", "/dev/shm", "/run", "home", "above", "link"])
def test_directories_that_lead_to_the_host_cannot_be_allowed(path: str, tmp_path: Path) -> None:
    home = tmp_path / "above" / "home"
    home.mkdir(parents=True)
    (tmp_path / "link").symlink_to("/")
    place = {"home": home / "boxes", "above": home.parent, "link": tmp_path / "link"}.get(path, Path(path))
    with pytest.raises(InvalidArgumentError, match="--allow-host-path"):
        Policy((place,)).check_host_paths(home, [Path("/run/docker.sock")])


def test_other_directories_can_be_allowed(tmp_path: Path) -> None:
    Policy((tmp_path / "data",)).check_host_paths(tmp_path / "home", [Path("/run/docker.sock")])


def test_no_box_starts_when_few_process_ids_are_left(tmp_path: Path) -> None:
    load, limit = tmp_path / "loadavg", tmp_path / "pid_max"
    limit.write_text("1000\n")
    load.write_text("0.1 0.2 0.3 1/700 4242\n")
    refuse_without_pids(load, limit)
    load.write_text("0.1 0.2 0.3 1/800 4242\n")
    with pytest.raises(ResourceExhaustedError, match="800 processes and threads, of 1000"):
        refuse_without_pids(load, limit)
