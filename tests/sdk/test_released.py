"""The released SDKs, unchanged, against a live cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.cluster import Cluster
from support.sdk import NEWEST, run_sdk

SCENARIOS = Path(__file__).with_name("scenarios.py")
OLDEST = "0.9.0"
NAMES = [
    "lifecycle",
    "output",
    "implied_start",
    "large_output",
    "late_reader",
    "stdin",
    "kill",
    "timeout",
    "silence",
    "auto_remove",
    "bad_image",
    "spec",
    "interleaved",
    "terminal",
    "metrics",
]
SINCE_MAIN_SESSIONS = ["main_session", "main_terminal", "read_only", "lifetimes"]


@pytest.mark.parametrize(
    ("version", "scenario"),
    [(version, name) for version in (OLDEST, NEWEST) for name in NAMES]
    + [(NEWEST, name) for name in SINCE_MAIN_SESSIONS],
)
def test_scenario(cluster: Cluster, test_image: str, version: str, scenario: str) -> None:
    env = {
        "BOXLITE_REST_URL": cluster.url,
        "BOXLITE_REST_CLIENT_ID": "anybody",
        "BOXLITE_REST_CLIENT_SECRET": "anything",
    }
    said_to_the_server = ["auto_remove"] if version == OLDEST else []
    done = run_sdk(version, SCENARIOS, scenario, test_image, *said_to_the_server, env=env, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    assert cluster.containers() == []


@pytest.mark.parametrize(
    ("version", "env"),
    [
        (OLDEST, {"BOXLITE_REST_CLIENT_ID": "me", "BOXLITE_REST_CLIENT_SECRET": "the-key"}),
        (NEWEST, {"BOXLITE_API_KEY": "the-key"}),
    ],
)
def test_with_a_key(new_cluster, test_image: str, version: str, env: dict[str, str]) -> None:
    cluster = new_cluster(api_key="the-key")
    cluster.start_coordinator()
    cluster.start_worker("--api-key", "the-key")
    env = {"BOXLITE_REST_URL": cluster.url, **env}
    done = run_sdk(version, SCENARIOS, "output", test_image, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = {key: "wrong" if value == "the-key" else value for key, value in env.items()}
    refused = run_sdk(version, SCENARIOS, "output", test_image, env=wrong)
    assert refused.returncode != 0
    assert "auth" in refused.stderr
