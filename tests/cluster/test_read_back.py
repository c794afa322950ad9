"""Boxes that are read back as they were made, and who may read what of them."""

from __future__ import annotations

from typing import Any

import pytest
from support.cluster import Cluster

MADE = {
    "entrypoint": ["tail"],
    "cmd": ["-f", "/dev/null"],
    "env": {"TOKEN": "s3cret", "EMPTY": ""},
    "working_dir": "/srv",
    "user": "1000:1000",
    "tty": True,
    "network": "disabled",
    "security": "standard",
    "advanced": {"capabilities": {"add": [], "drop": ["CHOWN"]}},
    "auto_stop": 3600,
    "disk_size_gb": None,
}


@pytest.fixture(scope="module")
def cluster(new_shared_cluster: Any) -> Cluster:
    """Its requests carry a key of the prefix acme."""
    cluster: Cluster = new_shared_cluster()
    cluster.start_with_keys()
    cluster.api_key = cluster.new_key("--prefix", "acme")
    return cluster


def test_a_box_is_read_back_as_it_was_made(cluster: Cluster, test_image: str) -> None:
    assert cluster.http("POST", "/v1/volumes", {"name": "data"})[0] == 201
    mount = {"managed_volume": "data", "guest_path": "/data", "read_only": True}
    asked = {**MADE, "image": test_image, "memory_mib": 128, "volumes": [mount]}
    headers = {"Idempotency-Key": "made"}
    status, _, made = cluster.http("POST", "/v1/boxes", asked, headers=headers)
    assert status == 201, made
    path = f"/v1/boxes/{made['box_id']}"
    whole = cluster.http("GET", path)[2]
    for name, value in asked.items():
        expected = [{**mount, "host_path": None}] if name == "volumes" else value
        assert whole["network_mode" if name == "network" else name] == expected, name
    hidden = {"TOKEN": None, "EMPTY": None}
    assert made == {**whole, "env": hidden}
    [listed] = cluster.http("GET", "/v1/boxes")[2]["boxes"]
    assert listed == {**whole, "env": hidden}
    reader = {"Authorization": f"Bearer {cluster.new_key('--prefix', 'acme', '--scope', 'box:read')}"}
    assert cluster.http("GET", path, headers=reader)[2] == {**whole, "env": hidden}
    assert cluster.http("DELETE", path)[0] == 204


@pytest.mark.parametrize(
    "long",
    [{"cmd": ["sh", "-c", ": " + "x" * 5000], "env": {"A": "1"}}, {"env": {f"{'N' * 99}{n}": "" for n in range(50)}}],
)
def test_a_list_leaves_out_what_is_long(cluster: Cluster, test_image: str, long: dict[str, Any]) -> None:
    status, _, made = cluster.http("POST", "/v1/boxes", {"image": test_image, "memory_mib": 128, **long})
    assert (status, made["cmd"]) == (201, long.get("cmd"))
    [listed] = cluster.http("GET", "/v1/boxes")[2]["boxes"]
    assert [listed[name] for name in ("cmd", "entrypoint", "env", "volumes")] == [None] * 4
    path = f"/v1/boxes/{made['box_id']}"
    assert cluster.http("GET", path)[2]["env"] == long["env"]
    assert cluster.http("DELETE", path)[0] == 204


def test_defaults_of_the_image_are_null(cluster: Cluster, test_image: str) -> None:
    made = cluster.http("POST", "/v1/boxes", {"image": test_image, "memory_mib": 128})[2]
    assert [made[name] for name in ("entrypoint", "cmd", "working_dir", "user")] == [None] * 4
    assert (made["env"], made["volumes"], made["network_mode"], made["tty"]) == ({}, [], "enabled", False)
    assert cluster.http("DELETE", f"/v1/boxes/{made['box_id']}")[0] == 204
