"""Engines of our own: beside each other, and without a trace when they have ended."""

from __future__ import annotations

import http.client
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import docker
import pytest

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


def serve(docker_host: str, text: str) -> str:
    """Start a container that serves `text` over HTTP; its address."""
    busybox.import_image(docker_host, "boxlite-test:latest")
    client = docker.DockerClient(base_url=docker_host)
    script = f"echo {text} > /tmp/text; httpd -h /tmp; echo up; exec sleep 1000"
    container = client.containers.run("boxlite-test:latest", ["sh", "-c", script], detach=True)
    next(container.logs(stream=True, follow=True))
    container.reload()
    address: str = container.attrs["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
    client.close()
    return address


def fetch(address: str) -> str:
    connection = http.client.HTTPConnection(address, 80, timeout=10)
    connection.request("GET", "/text")
    return connection.getresponse().read().decode().strip()


@as_root
def test_two_engines_at_once_each_with_a_network(directory: Path) -> None:
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(dockerd.private_engine(directory / name, extra_args=["--iptables=false"]))
            for name in ("one", "two")
        )
        addresses = [serve(first, "first"), serve(second, "second")]
        assert [fetch(address) for address in addresses] == ["first", "second"]
        assert len(dockerd.containers(first)) == len(dockerd.containers(second)) == 1
        assert traces(directory)
    assert traces(directory) == []


@as_root
def test_an_engine_started_again_has_its_images(directory: Path) -> None:
    with dockerd.private_engine(directory, extra_args=["--iptables=false"]) as docker_host:
        busybox.import_image(docker_host, "kept:latest")
    assert not dockerd.answers(docker_host)
    with dockerd.private_engine(directory, extra_args=["--iptables=false"]) as docker_host:
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
