"""The released SDKs, unchanged, against a live cluster."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.attach import Proxy
from support.cluster import Cluster
from support.sdk import NEWEST, run_sdk

pytestmark = pytest.mark.timeout(600)  # what it needs may have to be installed first

SCENARIOS = Path(__file__).with_name("scenarios.py")
OLDEST = "0.9.0"
# `make test-clients` takes one of every generation and shape of the wire.
VERSIONS = [OLDEST, NEWEST]
if os.environ.get("BOXLITE_TEST_CLIENTS") == "all":
    VERSIONS[1:1] = ["0.9.3", "0.9.4", "0.9.5", "0.9.7", "0.10.0", "0.10.7"]


def scenarios(version: str) -> Iterator[str]:
    """The names of the scenarios that this version can run: coroutines of the script that take nothing."""
    for node in ast.parse(SCENARIOS.read_text()).body:
        if not isinstance(node, ast.AsyncFunctionDef) or node.args.args:
            continue
        since = [ast.literal_eval(mark.args[0]) for mark in node.decorator_list if isinstance(mark, ast.Call)]
        if all(_number(version) >= _number(first) for first in since):
            yield node.name


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


@pytest.mark.parametrize(("version", "scenario"), [(v, name) for v in VERSIONS for name in scenarios(v)])
def test_scenario(cluster: Cluster, test_image: str, version: str, scenario: str) -> None:
    env = {
        "BOXLITE_REST_URL": cluster.url,
        "BOXLITE_REST_CLIENT_ID": "anybody",
        "BOXLITE_REST_CLIENT_SECRET": "anything",
    }
    said_to_the_server = ["auto_remove"] if _number(version) < (0, 10) else []
    done = run_sdk(version, SCENARIOS, scenario, test_image, *said_to_the_server, env=env, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    assert cluster.containers() == []


def test_a_lost_connection_costs_nothing_and_repeats_nothing(cluster: Cluster, test_image: str) -> None:
    proxy = Proxy(cluster.port, tripwire=b"line 4")
    try:
        env = {"BOXLITE_REST_URL": f"http://127.0.0.1:{proxy.port}"}
        done = run_sdk(NEWEST, SCENARIOS, "lost_connection", test_image, env=env, timeout=180)
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        proxy.close()
    assert cluster.containers() == []


def _with_key(env: dict[str, str], key: str) -> dict[str, str]:
    return {name: key if value == "KEY" else value for name, value in env.items()}


@pytest.mark.parametrize(
    ("version", "env"),
    [
        (OLDEST, {"BOXLITE_REST_CLIENT_ID": "me", "BOXLITE_REST_CLIENT_SECRET": "KEY"}),
        (NEWEST, {"BOXLITE_API_KEY": "KEY"}),
    ],
)
def test_with_a_key(new_cluster, test_image: str, version: str, env: dict[str, str]) -> None:
    """The boxes of a key are in its own prefix, whatever the client's path says."""
    cluster = new_cluster()
    key = cluster.new_key("--prefix", "acme")
    cluster.start_coordinator()
    cluster.start_worker("--api-key", cluster.new_key("--worker"))
    env = {"BOXLITE_REST_URL": cluster.url, **env}
    done = run_sdk(version, SCENARIOS, "output", test_image, env=_with_key(env, key))
    assert done.returncode == 0, done.stdout + done.stderr
    made = cluster.http("GET", "/v1/acme/metrics", headers={"Authorization": f"Bearer {key}"})[2]
    assert made["boxes_created_total"] >= 1
    wrong = _with_key(env, "wrong")
    refused = run_sdk(version, SCENARIOS, "output", test_image, env=wrong)
    assert refused.returncode != 0
    assert "auth" in refused.stderr


_LOST_BOX = """
import asyncio
from boxlite import Boxlite, BoxliteRestOptions


def status(info):
    state = getattr(info, "state", None)
    return str(getattr(state, "status", state)).lower()


async def main():
    runtime = Boxlite.rest(BoxliteRestOptions.from_env())
    assert "unknown" in status(await runtime.get_info("lost"))
    assert ["unknown" in status(info) for info in await runtime.list_info()] == [True]
    try:
        await (await runtime.get("lost")).start()
    except Exception as exc:
        print(exc)


asyncio.run(main())
"""


def test_a_box_of_a_lost_worker_is_shown_and_refuses_at_once(new_cluster, test_image: str) -> None:
    cluster = new_cluster()
    cluster.start_coordinator()
    worker = cluster.start_worker(name="one")
    assert cluster.http("POST", "/v1/boxes", {"image": test_image, "name": "lost", "memory_mib": 128})[0] == 201
    worker.stop()
    for version in VERSIONS:
        env = {"BOXLITE_REST_URL": cluster.url, "BOXLITE_REST_CLIENT_ID": "me", "BOXLITE_REST_CLIENT_SECRET": "x"}
        done = run_sdk(version, _LOST_BOX, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "worker one was shut down at" in done.stdout
    worker.start()
    assert cluster.http("DELETE", "/v1/boxes/lost")[0] == 204
