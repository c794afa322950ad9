"""The documented command lines, as they stand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.attach import attached
from support.cluster import Cluster, call, free_port, wait_until
from support.command import boxlite, output

BIN = Path(sys.executable).parent


@pytest.fixture
def box(cluster: Cluster, test_image: str):
    name = f"box-{os.urandom(4).hex()}"
    output(boxlite(cluster, "create", "--name", name, "--memory", "128", test_image))
    yield name
    boxlite(cluster, "rm", "-f", name)


def test_a_boxs_whole_life(cluster: Cluster, test_image: str) -> None:
    box_id = output(boxlite(cluster, "create", "--name", "life", test_image)).strip()
    assert len(box_id) == 12
    assert output(boxlite(cluster, "start", "life"))
    assert "life" in output(boxlite(cluster, "list"))
    assert output(boxlite(cluster, "exec", "life", "--", "echo", "hello")) == "hello\n"
    assert output(boxlite(cluster, "inspect", "--format", "{{.State.Status}}", "life")).strip() == "running"
    assert output(boxlite(cluster, "stop", "life"))
    assert "life" not in output(boxlite(cluster, "ps"))
    assert "life" in output(boxlite(cluster, "ls", "-a"))
    assert output(boxlite(cluster, "rm", "life"))
    assert boxlite(cluster, "inspect", "life").returncode == 1
    assert cluster.containers() == []


@pytest.mark.parametrize("code", [0, 3, 255])
def test_the_exit_code_is_the_commands(cluster: Cluster, test_image: str, box: str, code: int) -> None:
    done = boxlite(cluster, "exec", box, "--", "sh", "-c", f"echo out; echo err >&2; exit {code}")
    assert (done.returncode, done.stdout, done.stderr) == (code, b"out\n", b"err\n")
    done = boxlite(cluster, "run", "--rm", test_image, "sh", "-c", f"echo out; echo err >&2; exit {code}")
    assert (done.returncode, done.stdout, done.stderr) == (code, b"out\n", b"err\n")


def test_a_command_that_is_not_there(cluster: Cluster, box: str) -> None:
    done = boxlite(cluster, "exec", box, "--", "nosuchcommand")
    assert done.returncode == 127
    assert b"not found" in done.stderr


def test_bytes_pass_unchanged_in_both_directions(cluster: Cluster, box: str) -> None:
    data = os.urandom(1 << 20) * 10
    done = boxlite(cluster, "exec", "-i", box, "--", "cat", stdin=data)
    assert done.returncode == 0, done.stderr
    assert done.stdout == data


def test_run_leaves_the_box_stopped_unless_told_otherwise(cluster: Cluster, test_image: str) -> None:
    assert output(boxlite(cluster, "run", "--name", "job", test_image, "echo", "done")) == "done\n"
    box = cluster.http("GET", "/v1/boxes/job")[2]
    assert (box["status"], box["exit_code"]) == ("stopped", 0)
    output(boxlite(cluster, "rm", "job"))
    assert cluster.containers() == []


def test_logs(cluster: Cluster, test_image: str) -> None:
    script = "echo out; echo err >&2; read x; echo $x"
    output(boxlite(cluster, "create", "--name", "talker", test_image, "sh", "-c", script))
    assert output(boxlite(cluster, "logs", "talker")) == ""
    for word in (b"one\n", b"two\n"):
        output(boxlite(cluster, "start", "talker"))
        command = [sys.executable, "-m", "boxlite_server.client", "--url", cluster.url, "logs", "-f"]
        with (
            subprocess.Popen([*command, "talker"], stdout=subprocess.PIPE) as follower,
            attached(cluster, "talker/attach") as client,
        ):
            client.until(b"out\n")
            # Following disturbs nobody, and being attached does not disturb the log.
            wait_until(lambda: boxlite(cluster, "logs", "talker").stdout.endswith(b"out\n"), "it is in the log")
            assert client.stdout == b"out\n"  # of this run alone
            client.send(word)
            assert follower.stdout is not None
            assert follower.stdout.read().endswith(word)
        assert follower.returncode == 0
        wait_until(
            lambda: cluster.http("GET", "/v1/boxes/talker")[2]["status"] == "stopped", "the box is seen to have stopped"
        )
    done = boxlite(cluster, "logs", "talker")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"out\none\nout\ntwo\n", b"err\nerr\n")
    assert output(boxlite(cluster, "logs", "-n", "1", "talker")) == "two\n"
    assert boxlite(cluster, "logs", "nosuch").returncode == 1
    output(boxlite(cluster, "rm", "talker"))


def test_the_usage_lines(tmp_path: Path, docker_host: str, test_image: str) -> None:
    """Both spellings of the server's command."""
    port, worker_port, health_port = free_port(), free_port(), free_port()
    env = {**os.environ, "DOCKER_HOST": docker_host, "HOME": str(tmp_path)}
    url = f"http://127.0.0.1:{port}"
    python = [sys.executable, "-m", "boxlite_server"]
    coordinator = [*python, "coordinator", "--port", str(port)]
    worker = [str(BIN / "boxlite-server"), "worker", "--coordinator", url, "--port", str(worker_port)]
    worker += ["--health-port", str(health_port)]
    processes = [subprocess.Popen(command, env=env) for command in (coordinator, worker)]
    cluster = Cluster(tmp_path, docker_host)
    cluster.port = port
    try:

        def ready() -> bool:
            try:
                return call(health_port, "GET", "/readyz")[0] == 200
            except OSError:
                return False

        wait_until(ready, "the worker is ready")
        done = subprocess.run(
            [str(BIN / "boxlite"), "--url", url, "create", "alpine:latest"], capture_output=True, text=True, check=True
        )
        box_id = done.stdout.strip()
        assert cluster.http("DELETE", f"/v1/boxes/{box_id}")[0] == 204
    finally:
        for process in reversed(processes):
            process.terminate()
        assert [process.wait(30) for process in processes] == [0, 0]


def test_volumes_ports_and_images(cluster: Cluster, test_image: str, registry_image: str) -> None:
    volume = output(boxlite(cluster, "volume", "create", "--name", "cli-data")).strip()
    assert len(volume) == 12
    assert "cli-data" in output(boxlite(cluster, "volume", "ls"))
    write = ("run", "--rm", "-v", "cli-data:/data", test_image, "sh", "-c", "echo kept > /data/file")
    assert output(boxlite(cluster, *write)) == ""
    read = ("run", "--rm", "-v", f"{volume}:/data:ro", "--cap-drop", "ALL", test_image, "cat", "/data/file")
    assert output(boxlite(cluster, *read)) == "kept\n"
    box = output(boxlite(cluster, "run", "-d", "-v", "cli-data:/data", "-p", "80", test_image)).strip()
    ports = json.loads(output(boxlite(cluster, "inspect", box)))[0]["Ports"]
    assert [(port["guest_port"], port["host_ip"]) for port in ports] == [(80, "127.0.0.1")]
    assert ports[0]["host_port"]
    done = boxlite(cluster, "volume", "rm", "cli-data")
    assert (done.returncode, b"in use" in done.stderr) == (1, True)
    output(boxlite(cluster, "rm", "-f", box))
    assert output(boxlite(cluster, "volume", "rm", "cli-data")) == "cli-data\n"
    assert registry_image in output(boxlite(cluster, "pull", registry_image))
    assert registry_image.rpartition(":")[0] in output(boxlite(cluster, "images"))
    assert cluster.http("DELETE", f"/v1/images/{registry_image}")[0] == 204
    assert cluster.containers() == []
