"""The `boxlite` command as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

from support.cluster import Cluster


def boxlite(
    cluster: Cluster, *arguments: str, stdin: bytes = b"", env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "boxlite_server.client", "--url", cluster.url, *arguments],
        input=stdin,
        env={**os.environ, "BOXLITE_HOME": str(cluster.directory), **(env or {})},  # without this machine's profiles
        capture_output=True,
        timeout=120,
        check=False,
    )


def output(done: subprocess.CompletedProcess[bytes]) -> str:
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()
