"""`boxlite auth` against a cluster that has keys: as a tenant logs in, works and logs out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.cluster import Cluster

BOXLITE = str(Path(sys.executable).with_name("boxlite"))


@pytest.fixture(scope="module")
def cluster(new_shared_cluster: Any, test_image: str) -> Cluster:
    cluster: Cluster = new_shared_cluster()
    cluster.start_with_keys()
    return cluster


def test_a_tenant_logs_in_works_and_logs_out(cluster: Cluster, tmp_path: Path, test_image: str) -> None:
    keys = {name: cluster.new_key("--prefix", name) for name in ("acme", "other")}
    kept = {key: value for key, value in os.environ.items() if not key.startswith("BOXLITE_")}

    def boxlite(*words: str, stdin: str = "") -> tuple[int, str, str]:
        done = subprocess.run(
            [BOXLITE, *words], input=stdin, capture_output=True, text=True, env={**kept, "HOME": str(tmp_path)}
        )
        assert not any(key in done.stdout + done.stderr for key in keys.values())
        return done.returncode, done.stdout, done.stderr

    code, _, said = boxlite("--url", cluster.url, "ps")
    assert (code, "log in with 'boxlite auth login'" in said) == (1, True)
    code, _, said = boxlite("auth", "login", "--url", cluster.url, "--api-key-stdin", stdin="blt_wrong_key\n")
    assert (code, "which was not kept" in said) == (1, True)
    for profile, name in (("default", "acme"), ("second", "other")):
        login = ("auth", "login", "--url", cluster.url, "--profile", profile, "--api-key-stdin")
        assert boxlite(*login, stdin=f"{keys[name]}\n")[0] == 0
    code, box, _ = boxlite("create", "--name", "mine", test_image)
    assert code == 0
    assert [row["Names"] for row in json.loads(boxlite("ps", "-a", "--format", "json")[1])] == ["mine"]
    assert json.loads(boxlite("--profile", "second", "ps", "-a", "--format", "json")[1]) == []
    assert f"Server:          {cluster.url}" in boxlite("auth", "whoami")[1]
    assert "box:write" in boxlite("auth", "whoami", "--profile", "second")[1]
    assert boxlite("rm", box.strip())[0] == 0
    assert (tmp_path / ".boxlite" / "credentials.toml").stat().st_mode & 0o777 == 0o600
    assert boxlite("auth", "logout", "-y")[0] == 0
    assert boxlite("auth", "logout", "-y", "--profile", "second")[0] == 0
    assert not (tmp_path / ".boxlite" / "credentials.toml").exists()
