"""The packet filter of a bridge, before a box on it is admitted and after."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from support.namespaces import Namespace

from boxlite_server.errors import EngineError
from boxlite_server.local.machine import cannot_filter
from boxlite_server.worker.kernel import nftables
from boxlite_server.worker.kernel.packet_filter import PacketFilter, Port, Rules

pytestmark = pytest.mark.skipif(bool(cannot_filter()), reason=cannot_filter() or "-")

BRIDGE, TABLE = "blx-test", "boxlite_test"
RULES = Rules("198.19.0.0/24")
OLD, NEW = "198.19.0.2", "198.19.0.3"
# Connects to a port that nobody listens at: the other side refuses at once, if the packet arrives there.
CONNECT = """
import socket, sys
with socket.socket() as connection:
    connection.settimeout(2)
    try:
        connection.connect((sys.argv[1], 9))
    except ConnectionRefusedError:
        print("arrived")
    except OSError:
        print("lost")
"""
CLAIM = """
import socket, sys
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3)
wire.bind(("eth0", 0))
source, claimed = bytes.fromhex(sys.argv[1]), socket.inet_aton(sys.argv[2])
wire.send(b"\\xff" * 6 + source + bytes.fromhex("08060001080006040002") + source + claimed + b"\\xff" * 6 + claimed)
"""

MANY_DESCRIPTORS = """
import os, resource, sys
from boxlite_server.worker.kernel.netns import NetworkNamespace
from boxlite_server.worker.kernel.packet_filter import PacketFilter, Port, Rules
bridge, table, subnet, *port = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
packet_filter, rules = PacketFilter(NetworkNamespace(os.getpid()), bridge, table), Rules(subnet)
packet_filter.ensure(rules, packet_filter.look())
opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(2000)]
assert not packet_filter.ensure(rules, packet_filter.look()), "library and program show the same"
packet_filter.admit([Port(int(port[0]), *port[1:])])
packet_filter.probe()
"""


class Network:
    """A host with a bridge, and two boxes on it."""

    def __init__(self, new: Callable[[], Namespace]) -> None:
        self.host, self.old, self.new = new(), new(), new()
        self.host.run("ip", "link", "add", BRIDGE, "type", "bridge")
        self.host.run("ip", "address", "add", "198.19.0.1/24", "dev", BRIDGE)
        self.host.run("ip", "link", "set", BRIDGE, "up")
        self.ports = [self._join(self.old, "vethold", OLD), self._join(self.new, "vethnew", NEW)]

    def _join(self, box: Namespace, name: str, address: str) -> Port:
        pid = str(box.pid)
        self.host.run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", pid)
        self.host.run("ip", "link", "set", name, "master", BRIDGE, "up")
        box.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
        box.run("ip", "link", "set", "eth0", "up")
        card = box.run("ip", "-o", "link", "show", "eth0").split("link/ether ")[1]
        index = int(self.host.run("ip", "-o", "link", "show", name).partition(":")[0])
        return Port(index, card.split()[0], address)

    def reaches(self, box: Namespace, address: str) -> str:
        return box.run(sys.executable, "-I", "-S", "-c", CONNECT, address).strip()


@pytest.fixture
def network() -> Iterator[Network]:
    with ExitStack() as stack:

        def new() -> Namespace:
            command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sh", "-c", "echo; exec sleep infinity"]
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            stack.callback(process.kill)
            assert process.stdout is not None
            process.stdout.readline()
            return Namespace(process.pid)

        yield Network(new)


@pytest.fixture
def packet_filter(network: Network) -> PacketFilter:
    made = PacketFilter(network.host, BRIDGE, TABLE)
    made.ensure(RULES, made.look())
    made.admit(network.ports[:1])
    return made


def test_boxes_reach_each_other_and_the_host_without_a_filter(network: Network) -> None:
    assert network.reaches(network.new, OLD) == network.reaches(network.new, "198.19.0.1") == "arrived"


def test_a_box_that_was_not_admitted_yet_reaches_nobody(network: Network, packet_filter: PacketFilter) -> None:
    assert network.reaches(network.new, OLD) == network.reaches(network.new, "198.19.0.1") == "lost"


def test_the_host_reaches_boxes_that_were_admitted_and_they_nobody(
    network: Network, packet_filter: PacketFilter
) -> None:
    assert network.reaches(network.host, NEW) == "lost"
    packet_filter.admit(network.ports)
    assert network.reaches(network.host, NEW) == network.reaches(network.host, OLD) == "arrived"
    assert network.reaches(network.new, OLD) == network.reaches(network.new, "198.19.0.1") == "lost"


@pytest.mark.parametrize("is_admitted", [False, True])
def test_nobody_claims_the_address_of_another_box(
    network: Network, packet_filter: PacketFilter, is_admitted: bool
) -> None:
    old, new = network.ports
    if is_admitted:
        packet_filter.admit([new])
    assert network.reaches(network.host, OLD) == "arrived"
    for card in (old.hardware_address, new.hardware_address):
        network.new.run(sys.executable, "-I", "-S", "-c", CLAIM, card.replace(":", ""), OLD)
    assert old.hardware_address in network.host.run("ip", "neigh", "show", OLD)
    assert "vethold" in network.host.run("bridge", "fdb", "show", "br", BRIDGE).partition(old.hardware_address)[2][:20]
    assert network.reaches(network.host, OLD) == "arrived"


def test_what_was_changed_is_put_back_with_all_boxes(network: Network, packet_filter: PacketFilter) -> None:
    assert not packet_filter.ensure(RULES, packet_filter.look())
    for command in ("flush ruleset", f"flush chain inet {TABLE} to_host", f"delete table bridge {TABLE}"):
        network.host.run("nft", command)
        assert packet_filter.ensure(RULES, packet_filter.look()), command
        assert network.reaches(network.host, OLD) == "arrived"
        assert network.reaches(network.old, "198.19.0.1") == "lost"


def test_tables_are_read_only_when_somebody_else_has_changed_something(
    network: Network, packet_filter: PacketFilter, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not packet_filter.ensure(RULES, packet_filter.look())
    commands: list[str] = []
    run = nftables.run
    monkeypatch.setattr(nftables, "run", lambda text, **how: (commands.append(text), run(text, **how))[1])
    packet_filter.admit(network.ports)
    assert not packet_filter.ensure(RULES, packet_filter.look())
    assert [text.split()[0] for text in commands] == ["add"]
    network.host.run("nft", "add table inet of_somebody_else")
    assert not packet_filter.ensure(RULES, packet_filter.look())
    assert [text.split()[0] for text in commands] == ["add", "list", "list"]


def test_a_bridge_that_was_made_anew_is_another_one(network: Network, packet_filter: PacketFilter) -> None:
    before = packet_filter.look().bridge
    network.host.run("ip", "link", "delete", BRIDGE)
    assert packet_filter.look().bridge == 0
    network.host.run("ip", "link", "add", BRIDGE, "type", "bridge")
    assert packet_filter.look().bridge not in (0, before)


def test_a_box_that_has_gone_before_it_was_admitted_is_none(network: Network, packet_filter: PacketFilter) -> None:
    network.host.run("ip", "link", "delete", "vethnew")
    packet_filter.admit(network.ports)
    assert "vethnew" not in network.host.run("nft", "list", "table", "bridge", TABLE)
    assert network.reaches(network.host, OLD) == "arrived"


def test_boxes_that_are_gone_are_forgotten(network: Network, packet_filter: PacketFilter) -> None:
    network.host.run("ip", "link", "delete", "vethold")
    packet_filter.forget_absent()
    assert "vethold" not in network.host.run("nft", "list", "table", "bridge", TABLE)


def test_a_probe_leaves_nothing(network: Network) -> None:
    PacketFilter(network.host, BRIDGE, TABLE).probe()
    assert network.host.run("nft", "list", "ruleset") == ""


def test_a_worker_with_very_many_open_descriptors_goes_on(network: Network) -> None:
    """In a process of its own, which the library would end."""
    inside = ["nsenter", f"--net=/proc/{network.host.pid}/ns/net", sys.executable, "-c", MANY_DESCRIPTORS]
    done = subprocess.run(
        [*inside, BRIDGE, TABLE, RULES.subnet, *map(str, network.ports[0])], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert network.reaches(network.host, OLD) == "arrived"
    assert network.reaches(network.old, "198.19.0.1") == "lost"


def test_a_complaint_of_nft_is_told(network: Network) -> None:
    with pytest.raises(EngineError, match="syntax error"):
        network.host.within(lambda: nftables.run("table of nothing"))
