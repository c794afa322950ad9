"""`make run` from its second half on: an engine is there, and what follows works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.cluster import free_port

from boxlite_server.local import dockerd


@pytest.mark.timeout(360)
def test_the_demo_runs_the_main_job_once(docker_host: str, tmp_path: Path) -> None:
    demo = subprocess.run(
        [sys.executable, "-m", "boxlite_server.local.demo", "--once", "--port", str(free_port())],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "DOCKER_HOST": docker_host, "BOXLITE_HOME": str(tmp_path)},
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    lines = demo.stdout.splitlines()
    command = next(line for line in lines if line.startswith("$ boxlite ") and line.endswith("echo hello"))
    assert lines[lines.index(command) + 1] == "hello"
    box_id = command.split()[command.split().index("exec") + 1]
    assert dockerd.containers(docker_host, f"boxlite.box={box_id}") == []
