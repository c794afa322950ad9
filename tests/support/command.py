"""The `boxlite` command as a process."""

from __future__ import annotations

import subprocess
import sys

from support.cluster import Cluster


def boxlite(cluster: Cluster, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "boxlite_server.client", "--url", cluster.url, *arguments],
        input=stdin,
        capture_output=True,
        timeout=120,
        check=False,
    )


def output(done: subprocess.CompletedProcess[bytes]) -> str:
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()
