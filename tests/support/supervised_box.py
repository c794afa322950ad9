"""Containers that have the supervisor, made past the worker."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import docker

from support.supervisor_peer import Peer

FOLDER = "/dev/boxlite"
INIT = f"{FOLDER}/init"
CONFINED = {"user": "1000", "CapDrop": ["ALL"], "SecurityOpt": ["no-new-privileges"]}


class Supervised(NamedTuple):
    """A container; `pid` is the host's of its process 1."""

    api: docker.APIClient
    container: str
    pid: int
    peer: Peer

    def exec(self, *command: str, **options: object) -> tuple[int, bytes]:
        """Run a command by the engine's exec. Returns exit code and output."""
        made = self.api.exec_create(self.container, list(command), **options)["Id"]
        output = self.api.exec_start(made)
        return self.api.exec_inspect(made)["ExitCode"], output

    def processes(self) -> list[tuple[int, str]]:
        """The host's pid and the command line of each process in the box."""
        rows = self.api.top(self.container, "-eo pid,args")["Processes"]
        return [(int(pid), line) for pid, line in rows]

    def keepers(self) -> list[int]:
        """The host's pids of the keepers, which have the supervisor's command line."""
        return [pid for pid, line in self.processes() if line.startswith(INIT) and pid != self.pid]

    def count(self, line: str) -> int:
        """How many processes have this command line."""
        return [found for _, found in self.processes()].count(line)


NewBox = Callable[..., Supervised]


@contextmanager
def supervised_boxes(docker_host: str, image: str, program: Path) -> Iterator[NewBox]:
    """Makes containers of a command, with keywords of `create_container`, or of its HostConfig where they are
    capitalized. Where the supervisor is process 1 (`as_init`), it is connected when the container is returned."""
    api = docker.APIClient(base_url=docker_host, version="auto")
    made: list[tuple[str, Peer]] = []

    def new(*command: str, as_init: bool = True, accept: bool = True, **options: Any) -> Supervised:
        peer = Peer(Path(tempfile.mkdtemp(prefix="boxlite-")), program)
        mount = {"Type": "bind", "Source": str(peer.directory), "Target": FOLDER, "ReadOnly": True}
        host = {"Mounts": [mount], "NetworkMode": "none", "PidsLimit": 256}
        host |= {name: options.pop(name) for name in list(options) if name[0].isupper()}
        argv = list(command or ("sleep", "1000000"))
        if as_init:
            options["entrypoint"] = [INIT, "--"]
        container = api.create_container(image, argv, host_config=host, **options)["Id"]
        made.append((container, peer))
        api.start(container)
        pid = api.inspect_container(container)["State"]["Pid"]
        if as_init and accept:
            peer.accept(pid)
        return Supervised(api, container, pid, peer)

    try:
        yield new
    finally:
        for container, peer in made:
            api.remove_container(container, force=True)
            peer.hang_up()
            shutil.rmtree(peer.directory)
        api.close()
