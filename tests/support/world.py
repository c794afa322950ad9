"""Other hosts for the boxes of a private engine: one of the public internet, one of a private network, and a cloud's
metadata; and a server on the engine's host, which is what boxes see of a worker's host."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from support.namespaces import Namespace

PUBLIC, PRIVATE, METADATA = "11.22.33.44", "10.9.9.9", "169.254.169.254"
HOST = ("198.18.1.1", "11.22.33.1", "10.9.9.1")  # addresses of the engine's host besides the bridge of the boxes
PORT = 8099

_SERVER = f"""
import socketserver
class Greeter(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(b"reached")
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    address_family = 10
server = Server(("::", {PORT}), Greeter)
print("ready", flush=True)
server.serve_forever()
"""

# Answers each question for an address with the next one of its arguments.
_RESOLVER = f"""
import itertools, socket, sys
addresses = itertools.cycle(map(socket.inet_aton, sys.argv[1:]))
wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
wire.bind(({PUBLIC!r}, 53))
print("ready", flush=True)
while True:
    asked, client = wire.recvfrom(512)
    end = asked.index(0, 12) + 5
    found = asked[end - 4 : end - 2] == bytes([0, 1])
    answer = asked[:2] + bytes([0x81, 0x80, 0, 1, 0, found, 0, 0, 0, 0]) + asked[12:end]
    if found:
        answer += bytes([0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]) + next(addresses)
    wire.sendto(answer, client)
"""

# For a Python program in a box: `reached(address, port)` waits for a host that answers, and not for one that does not.
CONNECT = """
def reached(address, port, family=socket.AF_INET):
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.settimeout(2.5)
        try:
            connection.connect(address if isinstance(address, tuple) else (address, port))
            return connection.recv(100).decode()
        except OSError as exc:
            return "unreached"
"""


@contextmanager
def world(engine: int) -> Iterator[int]:
    """The other hosts, all in one namespace, for the engine with this pid. Yields the pid of a process there."""
    host = Namespace(engine)
    with _running("unshare", "--net", "sh", "-c", "echo; exec sleep infinity") as other:
        assert other.stdout is not None
        other.stdout.readline()
        there = Namespace(other.pid)
        host.run("ip", "link", "add", "world0", "type", "veth", "peer", "name", "world1", "netns", str(other.pid))
        host.run("ip", "link", "set", "world0", "up")
        for command in (
            "ip link set lo up",
            "ip link set world1 up",
            f"ip address add {PUBLIC}/24 dev world1",
            f"ip address add {PRIVATE}/24 dev world1",
            f"ip address add {METADATA}/32 dev world1",
            "ip route add default via 11.22.33.1",
        ):
            there.run(*command.split())
        for command in (
            "ip address add 11.22.33.1/24 dev world0",
            "ip address add 10.9.9.1/24 dev world0",
            f"ip route add {METADATA}/32 dev world0",
        ):
            host.run(*command.split())
        with _serving(other.pid, _SERVER), _serving(engine, _SERVER):
            yield other.pid
        host.run("ip", "link", "delete", "world0")


@contextmanager
def resolver(there: int, *addresses: str) -> Iterator[None]:
    """A name server at `PUBLIC`, for whom every name has these addresses, one after the other. `there`: as `world`
    yields it."""
    with _serving(there, _RESOLVER, *addresses):
        yield


@contextmanager
def _running(*command: str) -> Iterator[subprocess.Popen[str]]:
    """A process that ends with the context, or with this one."""
    with subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command], stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


@contextmanager
def _serving(pid: int, program: str, *arguments: str) -> Iterator[None]:
    """A server in the network namespace of a process."""
    command = ["nsenter", f"--net=/proc/{pid}/ns/net", "--", sys.executable, "-I", "-S", "-c", program, *arguments]
    with _running(*command) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield
