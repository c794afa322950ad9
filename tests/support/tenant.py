"""A tenant of a cluster, who has a key of its own and the REST API, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from support import lent_python, transfer
from support.cluster import Cluster, call

# What lends boxes the host's Python. `MEMORY` MiB are enough for it.
LENDING = tuple(word for path in lent_python.LENT for word in ("--allow-host-path", str(path)))
BORROWED = [
    {"host_path": mount.host_path, "guest_path": mount.guest_path, "read_only": True} for mount in lent_python.MOUNTS
]
MEMORY = 128


class Tenant:
    """Requests under the prefix `prefix`."""

    def __init__(self, cluster: Cluster, prefix: str) -> None:
        self.cluster = cluster
        self.key = cluster.new_key("--prefix", prefix)
        self.headers = {"Authorization": f"Bearer {self.key}"}

    def ask(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> tuple[int, Any]:
        """Status and body of the answer; `path` is behind `/v1/boxes`."""
        headers = {**self.headers, **({"Content-Type": kind} if body is not None else {})}
        status, _, answer = call(self.cluster.port, method, f"/v1/boxes{path}", body, headers=headers, timeout=120)
        return status, answer

    def must(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        status, answer = self.ask(method, path, body, kind)
        assert status < 300, answer
        return answer

    def create(self, **fields: Any) -> str:
        """A running box in which there is Python."""
        wanted = {"image": "alpine:latest", "memory_mib": MEMORY, "volumes": BORROWED, "start": True, **fields}
        return str(self.must("POST", "", wanted)["box_id"])

    def remove(self, box: str) -> None:
        self.must("DELETE", f"/{box}?force=true")

    @contextmanager
    def box(self, **fields: Any) -> Iterator[str]:
        """A box as `create` makes it, for the duration of the `with` block."""
        made = self.create(**fields)
        try:
            yield made
        finally:
            self.remove(made)

    def run(self, box: str, *command: str, **fields: Any) -> dict[str, Any]:
        """The answer to one command."""
        wanted = {"command": command[0], "args": command[1:], **fields}
        return dict(self.must("POST", f"/{box}/run", wanted))

    def sh(self, box: str, script: str, **fields: Any) -> str:
        """What a shell script writes."""
        ended = self.run(box, "sh", "-c", script, **fields)
        return str(ended["stdout"] + ended["stderr"])

    def python(self, box: str, program: str, **fields: Any) -> list[str]:
        """The lines that a Python program prints in the box, see `lent_python.attack`."""
        ended = self.run(box, *lent_python.command(program), **fields)
        assert ended["exit_code"] == 0, ended
        return str(ended["stdout"]).splitlines()

    def put(self, box: str, path: str, archive: bytes) -> tuple[int, Any]:
        return self.ask("PUT", transfer.url(box, path).removeprefix("/v1/boxes"), archive, "application/x-tar")

    def get(self, box: str, path: str) -> tuple[int, Any]:
        return self.ask("GET", transfer.url(box, path).removeprefix("/v1/boxes"))
