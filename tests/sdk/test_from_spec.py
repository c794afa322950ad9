"""A client generated from openapi.yaml, as people without an SDK for their language get one."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.cluster import Cluster
from support.sdk import python_with

pytestmark = pytest.mark.timeout(600)  # what it needs may have to be installed first

SPEC = Path(__file__).parents[2] / "openapi.yaml"
SCRIPT = Path(__file__).with_name("from_spec.py")
# The generator, and what the client that it makes imports.
REQUIREMENTS = ["openapi-generator-cli==7.26.0", "pydantic>=2,<3", "python-dateutil", "typing-extensions", "urllib3"]


@pytest.mark.skipif(os.environ.get("BOXLITE_TEST_CLIENTS") != "all", reason="make test-clients runs it")
@pytest.mark.skipif(shutil.which("java") is None, reason="the generator needs Java 11 or newer")
def test_a_generated_client_leads_a_box_through_its_life(cluster: Cluster, test_image: str, tmp_path: Path) -> None:
    python = python_with("from-spec", *REQUIREMENTS)
    generator = Path(python).with_name("openapi-generator-cli")
    made = subprocess.run(
        [generator, "generate", "-g", "python", "-i", SPEC, "-o", tmp_path, "--package-name", "boxlite_client"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    done = subprocess.run(
        [python, SCRIPT, cluster.url, test_image],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert cluster.containers() == []
