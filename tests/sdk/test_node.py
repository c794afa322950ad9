"""The released Node SDK, unchanged, against a live cluster."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support import node
from support.cluster import Cluster
from support.keys import KEY

pytestmark = pytest.mark.timeout(600)  # what it needs may have to be installed first

SCENARIOS = Path(__file__).with_name("scenarios.mjs")
NAMES = re.findall(r"^  async (\w+)\(\)", SCENARIOS.read_text(), re.MULTILINE)


@pytest.fixture(scope="module", autouse=True)
def with_node() -> None:
    if reason := node.missing():
        pytest.skip(reason)


@pytest.mark.parametrize("scenario", NAMES)
def test_scenario(cluster: Cluster, test_image: str, scenario: str) -> None:
    done = node.run_node(SCENARIOS, scenario, test_image, env={"BOXLITE_REST_URL": cluster.url})
    assert done.returncode == 0, done.stdout + done.stderr
    assert cluster.containers() == []


def test_with_a_key_and_a_prefix(new_cluster, test_image: str) -> None:
    cluster = new_cluster(api_key=KEY)
    cluster.start_coordinator()
    cluster.start_worker("--api-key", KEY)
    env = {"BOXLITE_REST_URL": cluster.url, "BOXLITE_REST_PATH_PREFIX": "acme"}
    done = node.run_node(SCENARIOS, "lifecycle", test_image, env={**env, "BOXLITE_API_KEY": KEY})
    assert done.returncode == 0, done.stdout + done.stderr
    refused = node.run_node(SCENARIOS, "lifecycle", test_image, env={**env, "BOXLITE_API_KEY": "wrong"})
    assert refused.returncode != 0
    assert "auth" in refused.stderr
