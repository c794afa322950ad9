"""Control groups of both versions, as files of the host."""

from __future__ import annotations

from pathlib import Path

import pytest

from boxlite_server.worker.kernel.cgroup import Cgroup

LAYOUTS = {
    "version 1": (
        "4:memory:/docker/abc\n1:name=systemd:/docker/abc\n",
        {
            "systemd/docker/abc/cgroup.procs": "7\n8\n",
            "memory/docker/abc/memory.oom_control": "under_oom 0\noom_kill 3\n",
        },
    ),
    "version 2": (
        "0::/system.slice/docker-abc.scope\n",
        {
            "system.slice/docker-abc.scope/cgroup.procs": "7\n",
            "system.slice/docker-abc.scope/inner/deep/cgroup.procs": "8\n",
            "system.slice/docker-abc.scope/memory.events": "low 0\nmax 9\noom 4\noom_kill 3\n",
        },
    ),
    "hybrid": (
        "3:cpu,cpuacct:/docker/abc\n2:memory:/docker/abc\n0::/docker/abc\n",
        {
            "cpu,cpuacct/docker/abc/cgroup.procs": "7\n8\n",
            "memory/docker/abc/memory.oom_control": "oom_kill 3\n",
            "unified/docker/abc/cgroup.procs": "7\n8\n",
        },
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_processes_and_kills_are_known(tmp_path: Path, layout: str) -> None:
    memberships, files = LAYOUTS[layout]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    cgroup = Cgroup(memberships, tmp_path)
    assert (cgroup.pids(), cgroup.kills()) == ({7, 8}, 3)


@pytest.mark.parametrize("memberships", ["", "0::/\n", "4:memory:/docker/gone\n", "0::/../../docker/abc\n"])
def test_what_the_host_does_not_show_is_not_known(tmp_path: Path, memberships: str) -> None:
    (tmp_path / "cgroup.procs").write_text("1\n")  # of the whole host
    (tmp_path / "memory.events").write_text("oom_kill 1\n")
    cgroup = Cgroup(memberships, tmp_path)
    assert (cgroup.pids(), cgroup.kills()) == (None, None)


@pytest.mark.parametrize(
    ("name", "running", "paused"), [("cgroup.freeze", "0", "1"), ("freezer.state", "THAWED", "FROZEN")]
)
def test_a_paused_container_is_seen(tmp_path: Path, name: str, running: str, paused: str) -> None:
    directory = tmp_path / ("docker/abc" if name == "cgroup.freeze" else "freezer/docker/abc")
    directory.mkdir(parents=True)
    cgroup = Cgroup("3:cpu,cpuacct:/docker/abc\n2:freezer:/docker/abc\n0::/docker/abc\n", tmp_path)
    assert not cgroup.is_frozen()
    for text, expected in ((running, False), (paused, True), (running, False)):
        (directory / name).write_text(f"{text}\n")
        assert cgroup.is_frozen() is expected
