"""The whole of openapi.yaml against a live cluster: every answer is one that the spec promises.

`make test` runs every phase with a few examples of each operation, the same ones every time; `make fuzz` takes others
in every round, and goes on until it is interrupted or something fails.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.cluster import Cluster, wait_until
from support.keys import KEY

ROOT = Path(__file__).parents[2]
SEED = "1"  # of `make test`, which is to pass or fail for what was changed
EXAMPLES = 2  # of each operation, in the random phases
ROUND = 25  # the same, in a round of `make fuzz`
SECONDS = os.environ.get("BOXLITE_FUZZ_SECONDS")  # of `make fuzz`; 0 is without end


@pytest.fixture
def guarded(new_cluster) -> Cluster:
    """A cluster with a key, so that the fuzzer sees what its absence does."""
    cluster: Cluster = new_cluster(api_key=KEY)
    cluster.start_coordinator()
    cluster.start_worker("--api-key", KEY)
    return cluster


def only_worker(cluster: Cluster) -> str:
    """The id of the cluster's worker. The fuzzer registers others."""
    (worker,) = cluster.http("GET", "/v1/admin/workers")[2]["workers"]
    return str(worker["id"])


def schemathesis(
    cluster: Cluster, worker: str, image: str, command: str, *flags: str
) -> subprocess.CompletedProcess[str]:
    config = Path(__file__).with_name("schemathesis.toml")
    return subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--no-color", "--config-file", config, command),
            "--suppress-health-check=too_slow",  # which a busy machine fails
            *(ROOT / "openapi.yaml", "--url", cluster.url, "--header", f"Authorization: Bearer {KEY}", *flags),
        ],
        cwd=cluster.directory,  # it leaves files behind
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
            "BOXLITE_FUZZ_IMAGE": image,
            "BOXLITE_FUZZ_WORKER": worker,
            "BOXLITE_FUZZ_KEY": KEY,
        },
        stdin=subprocess.DEVNULL,
        stdout=None if SECONDS else subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@pytest.mark.skipif(SECONDS is not None, reason="make fuzz is under way")
@pytest.mark.timeout(600)
def test_every_answer_is_one_that_the_spec_promises(guarded: Cluster, test_image: str) -> None:
    done = schemathesis(
        guarded, only_worker(guarded), test_image, "run", "--seed", SEED, "--max-examples", str(EXAMPLES)
    )
    assert done.returncode == 0, done.stdout
    check_that_it_survived(guarded, test_image)


@pytest.mark.skipif(SECONDS is None, reason="make fuzz runs it")
@pytest.mark.timeout(0)
def test_until_something_fails(guarded: Cluster, test_image: str) -> None:
    """Round after round, each with a seed of its own; the round under way is finished. Not by the fuzzer's own
    endless mode, which stumbles over its own recorder."""
    deadline = time.monotonic() + float(SECONDS or 0) if float(SECONDS or 0) else math.inf
    worker = only_worker(guarded)
    flags = ("--max-examples", str(ROUND), "--phases", "fuzzing,stateful")
    while True:
        done = schemathesis(guarded, worker, test_image, "run", *flags)
        assert done.returncode == 0
        check_that_it_survived(guarded, test_image)
        if time.monotonic() > deadline:
            return


def check_that_it_survived(cluster: Cluster, image: str) -> None:
    """No fault in a log, nothing left on the engine, and the fuzzer's own workers are in nobody's way."""
    for process in cluster.processes:
        assert "Traceback" not in process.log.read_text(errors="replace"), process.tail()
    assert cluster.http("PUT", "/v1/admin/warm", {"pools": []})[0] == 200
    wait_until(lambda: cluster.containers() == [], "nothing is left, warm boxes included")
    status, _, box = cluster.http("POST", "/v1/boxes", {"image": image})
    assert status == 201, box
    assert cluster.http("POST", f"/v1/boxes/{box['box_id']}/exec", {"command": "true"})[0] == 201
    assert cluster.http("DELETE", f"/v1/boxes/{box['box_id']}?force=true")[0] == 204
