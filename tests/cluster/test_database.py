"""A whole cluster over each of its databases, and without one for a while."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from support import boxes
from support.cluster import Cluster, wait_until
from support.postgresql import Server

NewCluster = Callable[..., Cluster]


def run(cluster: Cluster, box: str) -> None:
    """Run a command in it to its end."""
    execution = boxes.execute(cluster, box, "exit 7")
    wait_until(lambda: boxes.state(cluster, box, execution)["status"] == "completed", "the command ends")
    assert boxes.state(cluster, box, execution)["exit_code"] == 7


def test_a_cluster_over_postgresql(new_cluster: NewCluster, postgresql: Server, test_image: str) -> None:
    cluster = new_cluster(database=postgresql.new_database())
    coordinator = cluster.start_coordinator()
    cluster.start_worker()
    box = boxes.create(cluster, name="web", labels={"team": "a"})
    run(cluster, box)
    coordinator.restart()
    _, _, listed = cluster.http("GET", "/v1/boxes?label=team%3Da")
    assert [row["box_id"] for row in listed["boxes"]] == [box]
    postgresql.stop()
    try:
        status, _, answer = cluster.http("GET", "/v1/boxes/web")
        assert (status, answer["error"]["code"]) == (503, "database_error")
        assert cluster.http("POST", "/v1/boxes", {"image": test_image})[0] == 503
        assert cluster.http("GET", "/v1/health")[0] == 200
    finally:
        postgresql.start()
    assert cluster.http("GET", "/v1/boxes/web")[2]["box_id"] == box
    assert cluster.http("DELETE", "/v1/boxes/web?force=true")[0] == 204
    assert cluster.containers() == []


def test_a_copy_made_while_it_runs_is_a_database_to_go_on_with(new_cluster: NewCluster, tmp_path: Path) -> None:
    cluster = new_cluster()
    coordinator = cluster.start_coordinator()
    cluster.start_worker()
    box = boxes.create(cluster, name="web")
    target = tmp_path / "copy.db"
    command = [sys.executable, "-m", "boxlite_server", "backup", "--database", cluster.database, str(target)]
    subprocess.run(command, check=True, timeout=60)
    coordinator.stop()
    for left in cluster.directory.glob("coordinator.db*"):
        left.unlink()
    shutil.copy(target, cluster.database)
    coordinator.start()
    run(cluster, box)
    assert cluster.http("DELETE", "/v1/boxes/web?force=true")[0] == 204


def test_a_second_coordinator_on_one_file_does_not_start(new_cluster: NewCluster) -> None:
    cluster = new_cluster()
    cluster.start_coordinator()
    command = [sys.executable, "-m", "boxlite_server", "coordinator", "--port", "0", "--database", cluster.database]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 1
    assert "uses it" in second.stderr
    assert cluster.http("GET", "/v1/boxes")[0] == 200
