"""The network and mount namespaces of a private engine, and the ways between its network and the machine's.

An engine makes interfaces, firewall rules, sysctls and mounts. In namespaces of its own, these are apart from the
machine's and go with the last process in them. Two ways lead out and in, and neither changes the machine:

- slirp4netns, a network stack in user space, opens the engine's outgoing connections as those of an ordinary
  program. The engine, but no box, also reaches the machine's loopback, by the usual address 127.0.0.1.
- `port_proxy.py`, in place of the engine's own proxy, listens on the machine for the ports that boxes publish.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import EngineError
from . import machine, port_proxy

# 198.18.0.0/15 is set aside for tests of networks: no office and no cloud has it.
BRIDGE = "198.18.1.1/24"  # of the engine's default network
POOL = "198.19.0.0/16"  # of its other networks
_UPLINK = "198.18.0.0/24"
_HOST = "198.18.0.2"  # for slirp4netns, the machine's 127.0.0.1
_RESOLVER = "198.18.0.3"  # of slirp4netns: it asks the machine's
_READY_SECONDS = 10.0

log = logging.getLogger(__name__)


class Namespace:
    """The namespaces of one engine; they last as long as any process in them."""

    def __init__(self, pid: int) -> None:
        self._pid = pid  # of the process that holds them open

    def command(self, *command: str) -> list[str]:
        """The command, to be run in the namespaces."""
        within = f"/proc/{self._pid}/ns"
        return ["nsenter", f"--net={within}/net", f"--mount={within}/mnt", "--", *command]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the namespaces to its end."""
        return machine.run(*self.command(*command))

    def must(self, *command: str) -> None:
        """Run a command in the namespaces. EngineError with its complaint when it fails."""
        done = self.run(*command)
        if done.returncode != 0:
            raise EngineError(f"an engine's network cannot be set up: {shlex.join(command)}: {done.stderr.strip()}")


@contextlib.contextmanager
def namespace(directory: Path) -> Iterator[Namespace]:
    """New namespaces with an uplink; what holds them open ends with the context, or when this process is killed.

    Needs root. Without slirp4netns or /dev/net/tun there is no uplink: a warning says so, and the engine can
    neither pull nor give its boxes outgoing connections. `directory` takes the log of slirp4netns.
    """
    command = ["unshare", "--net", "--mount", "--propagation", "slave", "sh", "-c", "echo; exec sleep infinity"]
    with _running(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        if not holder.stdout.readline():
            raise EngineError("this machine lets nobody make network and mount namespaces, which an engine needs")
        made = Namespace(holder.pid)
        made.must("ip", "link", "set", "lo", "up")
        with _uplink(made, holder.pid, directory):
            yield made


@contextlib.contextmanager
def _uplink(made: Namespace, pid: int, directory: Path) -> Iterator[None]:
    missing = [] if machine.which("slirp4netns") else ["slirp4netns"]
    missing += [] if Path("/dev/net/tun").exists() else ["/dev/net/tun"]
    if missing:
        log.warning("%s is missing: the private engine has no outgoing connections", " and ".join(missing))
        yield
        return
    ready, told = os.pipe()
    command = ["slirp4netns", "--configure", "--mtu=65520", f"--cidr={_UPLINK}", f"--ready-fd={told}", str(pid), "tap0"]
    path = directory / "slirp4netns.log"
    try:
        with path.open("ab") as output, _running(command, stdout=output, stderr=output, pass_fds=[told]):
            os.close(told)
            told = -1
            poll = select.poll()
            poll.register(ready, select.POLLIN)
            if poll.poll(_READY_SECONDS * 1000) and os.read(ready, 1):
                _route(made)
            else:
                log.warning("slirp4netns did not start: the private engine has no outgoing connections (log: %s)", path)
            yield
    finally:
        for descriptor in (ready, told):
            if descriptor >= 0:
                os.close(descriptor)


def _route(made: Namespace) -> None:
    """Send what boxes and the engine say to others through tap0."""
    for rule in (
        "-t nat -A POSTROUTING -o tap0 -j MASQUERADE",
        # The engine's loopback is the machine's: registries and resolvers there are reached.
        *(f"-t nat -A OUTPUT -d 127.0.0.0/8 -p {kind} --dport 53 -j DNAT --to {_RESOLVER}" for kind in ("udp", "tcp")),
        f"-t nat -A OUTPUT -d 127.0.0.0/8 -p tcp -j DNAT --to {_HOST}",
        # Boxes are kept from what listens on the machine's loopback alone.
        f"-A FORWARD -d {_HOST} -j DROP",
    ):
        made.must("iptables", "--wait", *rule.split())
    made.must("sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/tap0/route_localnet")


@contextlib.contextmanager
def _running(command: Sequence[str], **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """A helper process; it ends with the context, or when this process is killed."""
    process: subprocess.Popen[bytes] = subprocess.Popen(  # type: ignore[call-overload]
        ["setpriv", "--pdeathsig", "KILL", *command],  # for development, found in PATH  # nosec B607
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        env=machine.environment(),
        **options,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def write_port_proxy(path: Path) -> None:
    """Write the program that an engine runs for each published port; the port opens in this process's network."""
    python = [sys.executable, "-I", "-S", port_proxy.__file__, f"/proc/{os.getpid()}/ns/net"]
    path.write_text(f'#!/bin/sh\nexec {shlex.join(python)} "$@"\n')
    path.chmod(0o755)
