"""What `boxlite-server doctor` says of a host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from boxlite_server.local import dockerd, machine
from boxlite_server.local.doctor import Level, examine

SOUND: dict[str, Any] = {
    "ServerVersion": "27.3.1",
    "SecurityOptions": ["name=apparmor", "name=seccomp,profile=builtin", "name=cgroupns"],
    "CgroupVersion": "2",
    "DockerRootDir": "/",
    **dict.fromkeys(("MemoryLimit", "SwapLimit", "CpuCfsQuota", "PidsLimit"), True),
}


def doctor(docker_host: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "boxlite_server", "doctor"]
    env = {**os.environ, "DOCKER_HOST": docker_host}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def found(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> dict[Level, str]:
    """What is said of an engine that differs from a sound one by those fields, by level."""
    answer = json.dumps({**SOUND, **changes}).encode()
    monkeypatch.setattr(dockerd, "request", lambda *_, **__: answer)
    monkeypatch.setattr(machine, "cannot_filter", lambda: "")
    said: dict[Level, str] = {}
    for level, text, remedy in examine("unix:///engine"):
        said[level] = f"{said.get(level, '')}{text} → {remedy}\n"
    return said


def test_a_real_engine_is_examined(docker_host: str) -> None:
    done = doctor(docker_host)
    assert done.returncode in (0, 1), done.stderr
    assert "ok       Docker Engine " in done.stdout
    assert done.stderr == ""


def test_an_engine_that_does_not_answer_is_a_problem(tmp_path: Path) -> None:
    done = doctor(f"unix://{tmp_path}/nothing.sock")
    assert done.returncode == 1
    assert done.stdout.startswith("problem  no engine answers at ")
    assert "set DOCKER_HOST" in done.stdout


def test_a_sound_host_has_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Level.PROBLEM not in found(monkeypatch)


@pytest.mark.parametrize("option", ["name=userns", "name=rootless"])
def test_users_that_are_not_those_of_the_host_are_said(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = found(monkeypatch, SecurityOptions=[*SOUND["SecurityOptions"], option])
    assert "an ordinary user of this host" in said[Level.OK]
    assert "root of this host" in found(monkeypatch)[Level.WARNING]


def test_what_weakens_boxes_is_said_with_what_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "seccomp" in found(monkeypatch, SecurityOptions=["name=seccomp,profile=unconfined"])[Level.PROBLEM]
    assert "older than 20.10" in found(monkeypatch, ServerVersion="19.03.8")[Level.PROBLEM]
    assert "cannot limit memory, processes" in found(monkeypatch, MemoryLimit=False, PidsLimit=False)[Level.WARNING]
