"""The units in deploy/systemd: systemd reads them, they are hardened, and what they start runs with what they leave."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import boxes
from support.cluster import Cluster

from boxlite_server.cli import main
from boxlite_server.local import machine

UNITS = Path(__file__).parents[2] / "deploy/systemd"
BOXLITE_SERVER = Path(sys.executable).with_name("boxlite-server")

# The most that `systemd-analyze security` may say: from 0, nothing is open, to 10.
EXPOSURE = {"boxlite-coordinator": 1.5, "boxlite-worker": 4.5}
units = pytest.mark.parametrize("unit", EXPOSURE)


def settings(unit: str) -> dict[str, str]:
    """The last value of each setting of a unit, with its continued lines."""
    text = (UNITS / f"{unit}.service").read_text().replace("\\\n", " ")
    return dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))


@pytest.fixture
def analyze() -> str:
    found = machine.which("systemd-analyze")
    if found is None:
        pytest.skip("systemd-analyze is missing")
    return found


@units
def test_systemd_reads_the_unit(unit: str, analyze: str, tmp_path: Path) -> None:
    text = (UNITS / f"{unit}.service").read_text()
    copy = tmp_path / f"{unit}.service"
    copy.write_text(text.replace("/opt/boxlite/bin/boxlite-server", str(BOXLITE_SERVER)))
    done = subprocess.run([analyze, "verify", "--man=no", copy], capture_output=True, text=True, check=False)
    own = [line for line in done.stderr.splitlines() if unit in line]  # not what is wrong with units of this machine
    assert own == []


@units
def test_the_unit_is_hardened(unit: str, analyze: str) -> None:
    threshold = f"--threshold={EXPOSURE[unit] * 10:.0f}"
    command = [analyze, "security", "--offline=true", "--no-pager", threshold, UNITS / f"{unit}.service"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze is older than systemd 250")
    assert done.returncode == 0, done.stdout


@units
def test_the_unit_starts_a_command_with_flags_that_exist(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOXLITE_COORDINATOR_URL", "https://coordinator.internal:8200")
    program, *arguments = shlex.split(settings(unit)["ExecStart"])
    assert program == "/opt/boxlite/bin/boxlite-server"
    main._parser().parse_args(arguments)


def confined(unit: str) -> list[str]:
    """A command in front of another one, which then has what the unit leaves: capabilities, and no new privileges, no
    memory that is written and executed. The rest of the unit takes systemd."""
    names = settings(unit)["CapabilityBoundingSet"].split()
    bounds = ",".join(["-all", *(f"+{name.removeprefix('CAP_').lower()}" for name in names)])
    deny = "import ctypes, os, sys; ctypes.CDLL(None).prctl(65, 1, 0, 0, 0); os.execvp(sys.argv[1], sys.argv[1:])"
    setpriv = ["setpriv", f"--bounding-set={bounds}", f"--inh-caps={bounds}", "--no-new-privs", "--"]
    return [*setpriv, sys.executable, "-c", deny]


def test_a_worker_works_with_what_its_unit_leaves(new_cluster: Callable[..., Cluster], test_image: str) -> None:
    cluster = new_cluster()
    cluster.start_coordinator()
    worker = cluster.start_worker(within=confined("boxlite-worker"))
    status = Path(f"/proc/{worker.pid}/status").read_text()
    assert "NoNewPrivs:\t1" in status
    (bounding,) = re.findall(r"^CapBnd:\t([0-9a-f]+)$", status, re.MULTILINE)
    assert int(bounding, 16).bit_count() == len(settings("boxlite-worker")["CapabilityBoundingSet"].split())
    box = boxes.create(cluster)
    boxes.start(cluster, box)
    assert cluster.http("GET", f"/v1/boxes/{box}")[2]["supervisor"] == "init"
    ran = cluster.http("POST", f"/v1/boxes/{box}/run", {"command": "id"})[2]
    assert ran["exit_code"] == 0, ran
    execution = boxes.execute(cluster, box, "trap '' TERM; sleep 600")
    assert cluster.http("DELETE", f"/v1/boxes/{box}/executions/{execution}")[0] in (200, 204)
    assert cluster.http("DELETE", f"/v1/boxes/{box}?force=true")[0] == 204
    assert "WARNING" not in worker.log.read_text()
