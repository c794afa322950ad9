"""A program that runs a private engine on a machine, and shows what became of the machine's network.

    unshare --net python -m support.stand_in DIRECTORY [--without-bridge] [--until-killed] < busybox.tar

The network namespace in which it starts stands for the machine's own, with an engine's docker0 and a rule in it.
Prints JSON: the machine's state before, during and after the engine's life; with --until-killed, a line with the
links in /proc of the engine's and the machine's network.
"""

from __future__ import annotations

import http.client
import json
import re
import signal
import socketserver
import sys
import threading
from contextlib import suppress
from pathlib import Path

import docker

from boxlite_server.local import dockerd, machine

IMAGE = "boxlite-test:latest"
ADDRESS = "192.0.2.1"  # of the machine, besides loopback
COMMANDS = ("ip -details address", "ip route show table all", "ip rule", "iptables-save", "ip6tables-save")
COMMANDS += ("nft --stateless list ruleset",)
COUNTS = re.compile(r"\[\d+:\d+\]|^#.*$|(valid|preferred)_lft \w+|\w+_timer +[\d.]+", re.MULTILINE)
VOLATILE = re.compile(r"nf_conntrack_count|/random/|tcp_fastopen_key")


def state(directory: Path) -> dict[str, str]:
    """What commands show of the machine's network, all its sysctls, and the mounts in the engine's directory."""
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    found = {"mounts": "\n".join(line for line in mounts if str(directory) in line)}
    for command in COMMANDS:
        if machine.which(command.split()[0]) is not None:
            found[command] = COUNTS.sub("", machine.run(*command.split()).stdout)
    for entry in sorted(Path("/proc/sys/net").rglob("*")):
        if entry.is_file() and not VOLATILE.search(str(entry)):
            try:
                found[str(entry)] = entry.read_text()
            except OSError:  # it can only be written
                found[str(entry)] = ""
    return found


def serve(docker_host: str, text: str, archive: bytes) -> int:
    """Start a container that serves `text` over HTTP, and publish it at 127.0.0.1; its port there.

    `archive` is that of `busybox.archive`: a stand-in for a machine downloads nothing.
    """
    client = docker.DockerClient(base_url=docker_host)
    client.api.import_image_from_data(archive, *IMAGE.split(":"), changes=["ENV PATH=/bin"])
    script = f"echo {text} > /tmp/text; httpd -h /tmp; echo up; exec sleep 1000"
    ports: dict[str, int | list[int] | tuple[str, int] | None] = {"80/tcp": ("127.0.0.1", 0)}
    container = client.containers.run(IMAGE, ["sh", "-c", script], detach=True, ports=ports, stop_signal="KILL")
    next(container.logs(stream=True, follow=True))
    container.reload()
    port = int(container.attrs["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"])
    client.close()
    return port


def fetch(port: int) -> str:
    """What is served at 127.0.0.1."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/text")
    return connection.getresponse().read().decode().strip()


def from_a_box(docker_host: str, address: str, port: int, seconds: int) -> str:
    """What answers a box that connects and says something; empty when it cannot connect for so many seconds."""
    client = docker.DockerClient(base_url=docker_host)
    command = ["sh", "-c", f"(echo hello; sleep {seconds}) | nc -w {seconds} {address} {port} || true"]
    output: bytes = client.containers.run(IMAGE, command, remove=True)
    client.close()
    return output.decode().strip()


class Greeter(socketserver.BaseRequestHandler):
    """Answers a line with a word."""

    def handle(self) -> None:
        self.request.recv(100)
        self.request.sendall(b"outside")


def outside() -> int:
    """The port of a server on all the machine's addresses."""
    server = socketserver.ThreadingTCPServer(("0.0.0.0", 0), Greeter)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


def must(command: str) -> None:
    done = machine.run(*command.split())
    assert done.returncode == 0, (command, done.stderr)


def main() -> None:
    directory = Path(sys.argv[1])
    with suppress(OSError):  # without it, addresses come and go by themselves; a kernel may have no IPv6
        Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
    for command in (
        "ip link set lo up",
        "ip link add docker0 type bridge",
        "ip address add 172.17.0.1/16 dev docker0",
        "ip link set docker0 up",
        "ip link add lan0 type bridge",
        f"ip address add {ADDRESS}/24 dev lan0",
        "ip link set lan0 up",
        "iptables -A FORWARD -d 198.51.100.0/24 -j DROP",
        "iptables -t nat -A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE",
    ):
        must(command)
    bridge = "--without-bridge" not in sys.argv
    found: dict[str, object] = {"before": state(directory)}
    with dockerd.private_namespace(directory) as own:
        engine = dockerd.Dockerd(directory, own, with_bridge=bridge)
        try:
            engine.start()
            if bridge:
                found["published"] = fetch(serve(engine.docker_host, "hello", sys.stdin.buffer.read()))
            if "--until-killed" in sys.argv:
                print(
                    own.run("readlink", "/proc/self/ns/net").stdout.strip(),
                    Path("/proc/self/ns/net").readlink(),
                    flush=True,
                )
                signal.pause()
            found["during"] = state(directory)
            if bridge:
                port = outside()
                answers = (from_a_box(engine.docker_host, ADDRESS, port, 5) for _ in range(5))
                found["from a box"] = {
                    "the machine's address": next(filter(None, answers), ""),  # a busy machine may take longer
                    "the machine's loopback": from_a_box(engine.docker_host, "198.18.0.2", port, 3),
                }
        finally:
            engine.stop()
    found["after"] = state(directory)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
