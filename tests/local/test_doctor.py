"""What `boxlite-server doctor` says of a host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from support.cluster import Cluster, free_port, wait_until

from boxlite_server.local import dockerd, machine
from boxlite_server.local.doctor import fleet, holes
from boxlite_server.local.doctor.engine import examine
from boxlite_server.local.doctor.findings import Finding, Level

KEY = "the-one-key-of-this-installation"
SOUND: dict[str, Any] = {
    "ServerVersion": "27.3.1",
    "SecurityOptions": ["name=apparmor", "name=seccomp,profile=builtin", "name=cgroupns"],
    "CgroupVersion": "2",
    "DockerRootDir": "/",
    "Driver": "overlay2",
    "DriverStatus": [["Supports d_type", "true"]],
    **dict.fromkeys(("MemoryLimit", "SwapLimit", "CpuCfsQuota", "PidsLimit"), True),
}


def run(docker_host: str, home: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "boxlite_server", "doctor", "--home", str(home), *flags]
    env = {key: value for key, value in os.environ.items() if not key.startswith("BOXLITE_")}
    env |= {"DOCKER_HOST": docker_host, "HOME": str(home)}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def said(docker_host: str, home: Path, *flags: str) -> dict[tuple[str, str], str]:
    """Text and remedy of what is found, by level and subject."""
    done = run(docker_host, home, "--json", *flags)
    report = json.loads(done.stdout)
    assert done.stderr == ""
    assert report["ok"] == (done.returncode == 0)
    return joined(Finding(**found) for found in report["findings"])


def joined(findings: Iterator[Finding]) -> dict[tuple[str, str], str]:
    by_kind: dict[tuple[str, str], str] = {}
    for level, subject, text, remedy in findings:
        by_kind[level, subject] = f"{by_kind.get((level, subject), '')}{text} → {remedy}\n"
    return by_kind


def of_engine(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> dict[tuple[str, str], str]:
    """What is said of an engine that differs from a sound one by those fields."""
    answer = json.dumps({**SOUND, **changes}).encode()
    monkeypatch.setattr(dockerd, "request", lambda *_, **__: answer)
    monkeypatch.setattr(machine, "cannot_filter", lambda: "")
    return joined(examine("unix:///engine"))


# ---- the engine -----------------------------------------------------------------------------------------


def test_a_real_engine_is_examined(docker_host: str, tmp_path: Path) -> None:
    done = run(docker_host, tmp_path)
    assert done.returncode in (0, 1), done.stderr
    assert "ok       engine       Docker Engine " in done.stdout
    assert " versions " in done.stdout
    assert done.stderr == ""


def test_an_engine_that_does_not_answer_is_a_problem(tmp_path: Path) -> None:
    done = run(f"unix://{tmp_path}/nothing.sock", tmp_path)
    assert done.returncode == 1
    assert done.stdout.startswith("problem  engine       no engine answers at ")
    assert "set DOCKER_HOST" in done.stdout


def test_an_engine_that_is_not_installed_is_said_with_the_command_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(machine, "which", lambda _: None)
    found = joined(examine("unix:///nowhere/docker.sock"))
    assert "Docker Engine is not installed → apt-get install -y docker.io" in found[Level.PROBLEM, "engine"]


def test_a_sound_host_has_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not [kind for kind in of_engine(monkeypatch) if kind[0] is Level.PROBLEM]


@pytest.mark.parametrize("option", ["name=userns", "name=rootless"])
def test_users_that_are_not_those_of_the_host_are_said(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = of_engine(monkeypatch, SecurityOptions=[*SOUND["SecurityOptions"], option])
    assert "an ordinary user of this host" in found[Level.OK, "isolation"]
    assert "root of this host" in of_engine(monkeypatch)[Level.WARNING, "isolation"]


def test_what_weakens_boxes_is_said_with_what_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    unconfined = of_engine(monkeypatch, SecurityOptions=["name=seccomp,profile=unconfined"])
    assert "seccomp" in unconfined[Level.PROBLEM, "isolation"]
    assert "older than 20.10" in of_engine(monkeypatch, ServerVersion="19.03.8")[Level.PROBLEM, "engine"]
    unlimited = of_engine(monkeypatch, MemoryLimit=False, PidsLimit=False)
    assert "cannot limit memory, processes" in unlimited[Level.WARNING, "cgroups"]
    assert "storage driver vfs" in of_engine(monkeypatch, Driver="vfs")[Level.WARNING, "storage"]
    without_types = of_engine(monkeypatch, DriverStatus=[["Supports d_type", "false"]])
    assert "ftype=1" in without_types[Level.PROBLEM, "storage"]


@pytest.mark.parametrize(
    ("program", "version", "expected"),
    [
        ("runc", "1.1.11", {"CVE-2024-21626", "CVE-2024-45310", "CVE-2025-31133", "CVE-2025-52565", "CVE-2025-52881"}),
        ("runc", "1.1.15", {"CVE-2025-31133", "CVE-2025-52565", "CVE-2025-52881"}),
        ("runc", "1.2.7", {"CVE-2025-31133", "CVE-2025-52565", "CVE-2025-52881"}),
        ("runc", "1.4.0-rc.2", {"CVE-2025-31133", "CVE-2025-52565", "CVE-2025-52881"}),
        ("runc", "1.2.8", set()),
        ("runc", "1.3.3", set()),
        ("runc", "1.4.0-rc.3", set()),
        ("runc", "1.4.0", set()),
        ("runc", "2.0.0", set()),
        ("containerd", "v1.7.26", {"CVE-2024-40635"}),
        ("containerd", "v1.7.27", set()),
        ("Engine", "27.1.0", {"CVE-2024-41110"}),
        ("Engine", "24.0.9", {"CVE-2024-41110"}),
        ("Engine", "27.1.1", set()),
        ("Engine", "29.0.0", set()),
    ],
)
def test_a_version_with_known_holes_is_a_problem(program: str, version: str, expected: set[str]) -> None:
    (found,) = holes.examine({program: version}, authorizes=True)
    assert found.level is (Level.PROBLEM if expected else Level.OK)
    assert {hole.cve for hole in holes.HOLES if hole.cve in found.text} == expected


def test_a_hole_in_authorization_concerns_only_engines_that_ask_a_plugin() -> None:
    (found,) = holes.examine({"Engine": "24.0.9"}, authorizes=False)
    assert found.level is Level.OK


def test_a_build_of_a_distribution_may_have_been_mended() -> None:
    (found,) = holes.examine({"runc": "1.1.5+ds1"}, authorizes=False)
    assert found.level is Level.WARNING
    assert "apt-get changelog runc | grep -E 'CVE-2024-21626|" in found.remedy


# ---- files with secrets ---------------------------------------------------------------------------------


def test_a_secret_that_others_may_read_is_a_problem(docker_host: str, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(KEY)
    key.chmod(0o644)
    assert f"→ chmod 600 {key}\n" in said(docker_host, tmp_path, "--api-key-file", str(key))[Level.PROBLEM, "keys"]
    key.chmod(0o600)
    assert (Level.PROBLEM, "keys") not in said(docker_host, tmp_path, "--api-key-file", str(key))


def command(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "boxlite_server", *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_certificates_that_end_soon_or_do_not_fit_are_said(docker_host: str, tmp_path: Path) -> None:
    certs = tmp_path / "certs"
    command("certs", "init", "--dir", str(certs))
    command("certs", "issue", "--dir", str(certs), "--coordinator", "a.example", "--days", "3")
    found = said(docker_host, tmp_path, "--certs", str(certs))
    assert f"{certs}/coordinator.crt ends on " in found[Level.WARNING, "certificates"]
    assert f"→ boxlite-server certs issue --dir {certs} --coordinator HOST" in found[Level.WARNING, "certificates"]
    assert f"{certs}/ca.crt is valid until " in found[Level.OK, "certificates"]
    (certs / "coordinator.key").write_bytes((certs / "ca.key").read_bytes())
    found = said(docker_host, tmp_path, "--certs", str(certs))
    assert "are not a certificate and its key" in found[Level.PROBLEM, "certificates"]


def test_keys_that_end_are_said(docker_host: str, tmp_path: Path) -> None:
    database = str(tmp_path / "coordinator.db")
    command("keys", "create", "--database", database, "--name", "ci", "--prefix", "acme", "--expires", "3d")
    assert "the API key ci " in said(docker_host, tmp_path, "--database", database)[Level.WARNING, "keys"]
    command("keys", "revoke", "--database", database, "ci")
    assert "nobody gets in" in said(docker_host, tmp_path, "--database", database)[Level.PROBLEM, "keys"]


# ---- the way to the coordinator -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keyed(new_shared_cluster: Callable[..., Cluster]) -> Cluster:
    """A cluster where an operator's key exists."""
    cluster = new_shared_cluster(api_key=KEY)
    cluster.start_coordinator()
    cluster.start_worker("--api-key", KEY)
    return cluster


def test_a_coordinator_that_does_not_answer_is_a_problem(docker_host: str, tmp_path: Path) -> None:
    found = said(docker_host, tmp_path, "--coordinator", "http://127.0.0.1:1")
    assert "the coordinator at http://127.0.0.1:1 cannot be reached" in found[Level.PROBLEM, "ports"]


def test_a_wrong_key_and_no_key_are_problems(keyed: Cluster, docker_host: str, tmp_path: Path) -> None:
    without = said(docker_host, tmp_path, "--coordinator", keyed.url)
    assert "wants an API key" in without[Level.PROBLEM, "keys"]
    wrong = said(docker_host, tmp_path, "--coordinator", keyed.url, "--api-key", "wrong")
    assert "refuses the API key (401)" in wrong[Level.PROBLEM, "keys"]


def test_an_operator_sees_both_ways_and_a_tenant_one(keyed: Cluster, docker_host: str, tmp_path: Path) -> None:
    assert keyed.api_key
    found = said(docker_host, tmp_path, "--coordinator", keyed.url, "--api-key", keyed.api_key)
    assert "the coordinator answers at" in found[Level.OK, "ports"]
    assert "the coordinator reaches its workers, 1 in number" in found[Level.OK, "ports"]
    assert "clocks of this host and of the coordinator agree" in found[Level.OK, "clock"]
    tenant = keyed.new_key("--prefix", "acme")
    found = said(docker_host, tmp_path, "--coordinator", keyed.url, "--api-key", tenant)
    assert "worker:admin alone" in found[Level.SKIPPED, "ports"]
    keyed.workers[0].stop()
    ask = ("--coordinator", keyed.url, "--api-key", keyed.api_key)
    wait_until(lambda: (Level.PROBLEM, "ports") in said(docker_host, tmp_path, *ask), "the worker is missed")
    assert "--advertise URL" in said(docker_host, tmp_path, *ask)[Level.PROBLEM, "ports"]


def test_a_worker_that_is_heard_and_cannot_be_called_is_a_problem(
    keyed: Cluster, docker_host: str, tmp_path: Path
) -> None:
    assert keyed.api_key
    closed = f"http://127.0.0.1:{free_port()}"
    keyed.start_worker("--api-key", keyed.api_key, "--advertise", closed, name="behind-a-wall")
    workers = keyed.http("GET", "/v1/admin/workers")[2]["workers"]
    assert {worker["name"]: worker["status"] for worker in workers}["behind-a-wall"] == "active"
    found = said(docker_host, tmp_path, "--coordinator", keyed.url, "--api-key", keyed.api_key)
    assert "does not reach worker behind-a-wall" in found[Level.PROBLEM, "ports"]
    assert (Level.OK, "ports") not in found or "reaches its workers" not in found[Level.OK, "ports"]


@pytest.mark.parametrize(("late", "level"), [(0, Level.OK), (-30, Level.PROBLEM), (30, Level.PROBLEM)])
def test_a_coordinator_with_another_time_is_a_problem(late: int, level: Level, monkeypatch: pytest.MonkeyPatch) -> None:
    def get(_: fleet.Coordinator, path: str) -> tuple[int, dict[str, str], Any]:
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=late), usegmt=True)
        return 200, {"date": date}, {"scopes": [], "expires_at": None}

    monkeypatch.setattr(fleet.Coordinator, "get", get)
    found = joined(fleet.examine(fleet.Coordinator("http://coordinator:8200", None, None)))
    assert (level, "clock") in found
