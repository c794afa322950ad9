"""Programs in a network namespace."""

from __future__ import annotations

import os
import subprocess

from boxlite_server.worker.kernel.netns import NetworkNamespace


class Namespace(NetworkNamespace):
    """The network namespace of a process, in which a test runs programs."""

    def __init__(self, pid: int) -> None:
        super().__init__(pid)
        self.pid = pid

    def run(self, *command: str) -> str:
        """What a program prints in the namespace; it must succeed."""
        env = {"PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin", "LC_ALL": "C"}
        within = ["nsenter", f"--net=/proc/{self.pid}/ns/net", "--", *command]
        done = subprocess.run(within, capture_output=True, text=True, check=False, timeout=60, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout
