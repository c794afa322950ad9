"""Engines of our own: beside each other, and without a trace when they have ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import docker
import pytest
from support.child import line_of
from support.cluster import wait_until
from support.stand_in import fetch, serve

from boxlite_server.errors import EngineError, ImageError
from boxlite_server.local import busybox, dockerd

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="an engine takes root")


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="boxlite-") as name:  # short, for the sockets in it
        yield Path(name)


def traces(directory: Path) -> list[str]:
    """Command lines of the living processes, and mounts, that name the directory."""
    found = [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(directory) in line]
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = process.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has just ended
            continue
        found += [command] if str(directory) in command else []
    return found


@as_root
def test_two_engines_at_once_each_with_a_network(directory: Path) -> None:
    with ExitStack() as stack:
        first, second = (stack.enter_context(dockerd.private_engine(directory / name)) for name in ("one", "two"))
        ports = [serve(engine, text, busybox.archive()) for engine, text in ((first, "first"), (second, "second"))]
        assert [fetch(port) for port in ports] == ["first", "second"]
        assert len(dockerd.containers(first)) == len(dockerd.containers(second)) == 1
        assert traces(directory)
    assert traces(directory) == []


def stand_in(directory: Path, *flags: str) -> subprocess.Popen[str]:
    """`support.stand_in` in a network namespace that stands for a machine's own."""
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", sys.executable, "-m", "support.stand_in"]
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
    archive = directory / "busybox.tar"
    archive.write_bytes(busybox.archive())
    with archive.open("rb") as image:
        return subprocess.Popen(
            [*command, str(directory), *flags],
            stdin=image,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )


@as_root
@pytest.mark.parametrize("flags", [[], ["--without-bridge"]], ids=["bridge", "no-bridge"])
def test_nothing_of_the_machine_is_touched(directory: Path, flags: list[str]) -> None:
    with stand_in(directory, *flags) as process:
        output, _ = process.communicate()
    assert process.returncode == 0
    found = json.loads(output)
    assert "docker0" in found["before"]["ip -details address"]
    assert "198.51.100.0/24" in found["before"]["iptables-save"]
    for moment in ("during", "after"):
        for name, state in found["before"].items():
            assert found[moment][name] == state, f"{name} {moment}"
    if not flags:
        assert found["published"] == "hello"
        assert found["from a box"] == {"the machine's address": "outside", "the machine's loopback": ""}


def processes_in(network: str) -> list[int]:
    """The processes in a network namespace, by what its link in /proc says."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/ns/net"):
        with suppress(OSError):
            found += [int(entry.parts[2])] if str(entry.readlink()) == network else []
    return found


@as_root
def test_an_engine_ends_with_its_owner_even_if_that_is_killed(directory: Path) -> None:
    with stand_in(directory, "--until-killed") as process:
        network, machine = line_of(process).split()
        assert len(processes_in(network)) >= 3  # what holds it open, dockerd and containerd
        process.kill()
    wait_until(lambda: not processes_in(network) and not processes_in(machine), "all have ended")
    wait_until(lambda: traces(directory) == [], "nothing is mounted")


@as_root
def test_an_engine_started_again_has_its_images(directory: Path) -> None:
    with dockerd.private_engine(directory) as docker_host:
        busybox.import_image(docker_host, "kept:latest")
    assert not dockerd.answers(docker_host)
    with dockerd.private_engine(directory) as docker_host:
        assert dockerd.has_image(docker_host, "kept:latest")
        with pytest.raises(EngineError, match="already"), dockerd.private_engine(directory):
            pass
        assert dockerd.answers(docker_host)


@as_root
def test_an_engine_that_does_not_start_names_its_log(directory: Path) -> None:
    with (
        pytest.raises(EngineError, match=rf"{directory}/log[^$]*no-such-flag"),
        dockerd.private_engine(directory, extra_args=["--no-such-flag"]),
    ):
        pass
    assert traces(directory) == []


def test_a_named_engine_is_never_replaced(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{directory}/none.sock")
    with pytest.raises(EngineError, match="DOCKER_HOST"), dockerd.ensure_engine(directory):
        pass
    assert list(directory.iterdir()) == []


def test_an_engine_that_answers_is_used(docker_host: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", docker_host)
    with dockerd.ensure_engine(directory) as found:
        assert found == docker_host
    assert dockerd.answers(docker_host)
    assert list(directory.iterdir()) == []


def test_a_failed_pull_says_why(docker_host: str) -> None:
    with pytest.raises(ImageError, match="refused"):
        dockerd.pull_image(docker_host, "127.0.0.1:1/none:latest")  # nobody listens on port 1


def test_images(docker_host: str, test_image: str, bare_image: str) -> None:
    client = docker.DockerClient(base_url=docker_host)
    try:
        assert client.images.get(test_image).attrs["Config"]["Cmd"] == ["sh"]
        assert not client.images.get(bare_image).attrs["Config"]["Cmd"]
        script = "id -u; stat -c %a /tmp; which dd sha256sum id env pwd head kill | wc -l"
        output = client.containers.run(test_image, ["sh", "-c", script], user="box", remove=True)
        assert output.decode().split() == ["1000", "1777", "7"]
    finally:
        client.close()
