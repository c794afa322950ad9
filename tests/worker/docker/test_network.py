"""The network of boxes: what they reach, what they do not, and that nobody can change that from within a box."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import IPv4Network
from typing import Any

import docker
import pytest
from support.lent_python import LENT, MOUNTS, attack
from support.namespaces import Namespace
from support.sites import Site, collect
from support.world import CONNECT, METADATA, PORT, PRIVATE, PUBLIC, world

from boxlite_server import ids
from boxlite_server.errors import UnsupportedError
from boxlite_server.local.machine import cannot_filter
from boxlite_server.worker.commands import ExecSpec
from boxlite_server.worker.docker.network import Reach
from boxlite_server.worker.docker.runtime import DockerRuntime
from boxlite_server.worker.host_access import Policy
from boxlite_server.worker.kernel import nftables
from boxlite_server.worker.presets import Preset
from boxlite_server.worker.runtime import BoxRef, BoxSpec, Owner, PortMapping

pytestmark = pytest.mark.skipif(bool(cannot_filter()), reason=cannot_filter() or "-")


@pytest.fixture(scope="module")
def owner() -> Owner:
    return Owner(ids.new_id(), ids.new_id())


@pytest.fixture(scope="module")
def target(docker_host: str, test_image: str, bare_image: str, owner: Owner) -> Iterator[Site]:
    """Boxes on a filtered network, in which the host's Python may be used."""
    policy = Policy(LENT, floor=Preset.DEVELOPMENT)
    runtime = DockerRuntime(lambda: owner, docker_host, policy, reach=Reach())
    yield Site(runtime, test_image, bare_image, LENT[0], owner=owner)
    for state in runtime.list_boxes():
        runtime.remove(state.box, force=True)
    runtime.close()


@pytest.fixture(scope="module")
def host(target: Site) -> Namespace:
    """The network namespace of the engine, which is the host as boxes see it."""
    return Namespace(pid_of(target))


def pid_of(target: Site) -> int:
    runtime: Any = target.runtime
    return int(runtime._engine.pid)


@pytest.fixture(scope="module", name="world")
def world_of_boxes(target: Site) -> Iterator[None]:
    with world(pid_of(target)):
        yield


@pytest.fixture(scope="module")
def box(target: Site, world: None) -> BoxRef:
    return target.running_box(network_enabled=True, mounts=MOUNTS, memory_mib=128)


@pytest.fixture(scope="module")
def rogue(target: Site, world: None) -> BoxRef:
    """A box that may forge packets."""
    return target.running_box(network_enabled=True, mounts=MOUNTS, memory_mib=128, security="development")


@pytest.fixture(scope="module")
def victim(target: Site) -> BoxRef:
    """A box that serves a word at port 80, which is published."""
    serve = "while true; do nc -l -p 80 -e echo served; done"
    return target.running_box(network_enabled=True, ports=(PortMapping(80),), cmd=("sh", "-c", serve))


def inspected(docker_host: str, box: BoxRef) -> dict[str, Any]:
    api = docker.APIClient(docker_host)
    try:
        return dict(api.inspect_container(f"boxlite-{box.box_id}-{box.generation}"))
    finally:
        api.close()


def endpoint(docker_host: str, box: BoxRef) -> dict[str, Any]:
    (found,) = inspected(docker_host, box)["NetworkSettings"]["Networks"].values()
    return dict(found)


def reached(target: Site, box: BoxRef, address: str, port: int = PORT) -> str:
    return attack(target.runtime, box, f"{CONNECT}\nprint(reached({address!r}, {port}))")


def published(target: Site, box: BoxRef) -> bytes:
    """What the published port says; the engine's proxy accepts before the service in the box does."""
    (port,) = target.runtime.inspect(box).ports
    said = b""
    while not said:
        with socket.create_connection((port.host_ip, port.host_port), 60) as connection:
            said = connection.recv(100)
    return said


def sh(target: Site, box: BoxRef, script: str) -> str:
    out, err, _ = collect(target.runtime.spawn(box, ExecSpec(("sh", "-c", script))))
    return (out + err).decode()


def test_a_box_reaches_the_public_internet(target: Site, box: BoxRef) -> None:
    assert reached(target, box, PUBLIC) == "reached"


@pytest.mark.parametrize("address", [PRIVATE, METADATA])
def test_private_addresses_and_the_clouds_metadata_are_out_of_reach(target: Site, box: BoxRef, address: str) -> None:
    assert reached(target, box, address) == "unreached"


def test_the_host_is_out_of_reach(target: Site, box: BoxRef, docker_host: str, host: Namespace) -> None:
    gateway = endpoint(docker_host, box)["Gateway"]
    for address in (gateway, "198.18.1.1", "11.22.33.1", "10.9.9.1"):
        assert reached(target, box, address) == "unreached", address
    assert host.run("ip", "-4", "address").count("inet ") >= 4


def test_the_host_is_out_of_reach_over_ipv6(target: Site, rogue: BoxRef, docker_host: str) -> None:
    """Also for a box that gives itself an address of the link, which takes NET_ADMIN, or the frame itself."""
    script = f"""{CONNECT}
print(reached(("fe80::1", {PORT}, 0, socket.if_nametoindex("eth0")), 0, socket.AF_INET6))
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3)
wire.bind(("eth0", 0))
own = wire.getsockname()[4]
packet = struct.pack(">IHBB", 6 << 28, 8, 58, 255) + socket.inet_pton(10, "fe80::2") + socket.inet_pton(10, "ff02::1")
packet += bytes([128, 0, 0, 0, 0, 1, 0, 1])
wire.send(b"\\x33\\x33\\0\\0\\0\\1" + own + b"\\x86\\xdd" + packet)
print("sent")
"""
    before = dropped(target, "bridge", "from_boxes")
    assert attack(target.runtime, rogue, script).splitlines() == ["unreached", "sent"]
    assert dropped(target, "bridge", "from_boxes") > before


def dropped(target: Site, family: str, chain: str) -> int:
    """How many packets a chain of the filter has dropped."""
    runtime: Any = target.runtime
    table = f"boxlite_{runtime.network._tag}"
    shown = Namespace(pid_of(target)).run("nft", "list", "chain", family, table, chain)
    return sum(int(line.split("packets ")[1].split()[0]) for line in shown.splitlines() if "packets" in line)


def test_another_box_is_out_of_reach(target: Site, box: BoxRef, victim: BoxRef, docker_host: str) -> None:
    assert published(target, victim) == b"served\n"
    assert reached(target, box, endpoint(docker_host, victim)["IPAddress"], 80) == "unreached"
    (port,) = target.runtime.inspect(victim).ports
    for address in (endpoint(docker_host, box)["Gateway"], "198.18.1.1"):
        assert reached(target, box, address, port.host_port) == "unreached"


def test_a_box_that_forges_addresses_takes_nobodys_place(
    target: Site, rogue: BoxRef, victim: BoxRef, docker_host: str, host: Namespace
) -> None:
    there = endpoint(docker_host, victim)
    script = f"""
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3)
wire.bind(("eth0", 0))
own, card = wire.getsockname()[4], bytes.fromhex({there["MacAddress"].replace(":", "")!r})
victim, gateway = socket.inet_aton({there["IPAddress"]!r}), socket.inet_aton({there["Gateway"]!r})
for source in (own, card):
    for sender in (victim, gateway):
        for kind in (1, 2):
            arp = struct.pack(">HHBBH", 1, 0x800, 6, 4, kind) + source + sender + bytes(6) + gateway
            wire.send(b"\\xff" * 6 + source + b"\\x08\\x06" + arp)
    packet = struct.pack(">BBHHHBBH", 0x45, 0, 28, 1, 0, 64, 17, 0) + victim + gateway
    packet += struct.pack(">HHHH", 9, 9, 8, 0)
    wire.send(b"\\xff" * 6 + source + b"\\x08\\x00" + packet)
    wire.send(card + source + b"\\x08\\x00" + packet)
print("sent")
"""
    before = dropped(target, "bridge", "from_boxes")
    assert attack(target.runtime, rogue, script) == "sent"
    assert dropped(target, "bridge", "from_boxes") >= before + 12
    known = [line for line in host.run("ip", "neigh").splitlines() if line.startswith(f"{there['IPAddress']} ")]
    assert all(there["MacAddress"] in line or "lladdr" not in line for line in known)
    assert published(target, victim) == b"served\n"


def test_names_are_resolved_by_the_engine(target: Site, box: BoxRef) -> None:
    name = f"boxlite-{box.box_id}-{box.generation}"
    assert "127.0.0.11" in sh(target, box, "cat /etc/resolv.conf")
    assert name in attack(target.runtime, box, f"print({name!r}, socket.gethostbyname({name!r}))")


def test_a_filter_that_somebody_removed_is_put_back_before_the_next_start(
    target: Site, box: BoxRef, host: Namespace
) -> None:
    runtime: Any = target.runtime
    table = f"boxlite_{runtime.network._tag}"
    host.run("nft", "delete", "table", "inet", table)
    host.run("nft", "flush", "chain", "bridge", table, "between_ports")
    later = target.running_box(network_enabled=True)
    assert reached(target, box, PRIVATE) == "unreached"
    assert reached(target, box, PUBLIC) == "reached"
    target.runtime.remove(later, force=True)
    host.run("nft", "delete", "table", "bridge", table)
    runtime.network.check()
    assert "veth" in host.run("nft", "list", "set", "bridge", table, "ports")
    assert reached(target, box, PUBLIC) == "reached"


def test_a_worker_that_starts_again_lets_its_boxes_speak(
    target: Site, box: BoxRef, docker_host: str, owner: Owner, host: Namespace
) -> None:
    again = DockerRuntime(lambda: owner, docker_host, reach=Reach())
    host.run("nft", "delete", "table", "bridge", f"boxlite_{again.network._tag}")
    again.network.check()
    again.close()
    assert reached(target, box, PUBLIC) == "reached"


def test_a_private_network_can_be_opened(docker_host: str, test_image: str, world: None) -> None:
    owner = Owner(ids.new_id(), ids.new_id())
    reach = Reach(allowed=(IPv4Network("10.9.9.0/24"),), coordinator=PUBLIC)
    runtime = DockerRuntime(lambda: owner, docker_host, Policy(LENT), reach=reach)
    site = Site(runtime, test_image, test_image, LENT[0])
    box = site.running_box(network_enabled=True, mounts=MOUNTS, memory_mib=128)
    assert reached(site, box, PRIVATE) == "reached"
    assert reached(site, box, METADATA) == "unreached"
    assert reached(site, box, PUBLIC) == "unreached"  # the coordinator's address
    runtime.remove(box, force=True)
    runtime.close()


def test_a_box_of_an_earlier_version_is_moved_to_the_filtered_network(
    docker_host: str, test_image: str, world: None
) -> None:
    owner = Owner(ids.new_id(), ids.new_id())
    former, later = (DockerRuntime(lambda: owner, docker_host, Policy(LENT), reach=reach) for reach in (None, Reach()))
    site = Site(former, test_image, test_image, LENT[0])
    box = site.running_box(network_enabled=True, mounts=MOUNTS, memory_mib=128)
    assert reached(site, box, PRIVATE) == "reached"
    former.stop(box, 0)
    later.start(box)
    assert endpoint(docker_host, box)["IPAddress"].startswith("198.19.")
    site.runtime = later
    assert [reached(site, box, address) for address in (PRIVATE, PUBLIC)] == ["unreached", "reached"]
    later.stop(box, 0)
    former.start(box)
    site.runtime = former
    assert reached(site, box, PRIVATE) == "reached"
    former.remove(box, force=True)
    for runtime in (former, later):
        runtime.close()


def test_a_worker_that_cannot_filter_takes_no_box_with_a_network(
    docker_host: str, test_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nftables, "_LIBRARY", "libnosuch.so.1")
    nftables._library.cache_clear()
    owner = Owner(ids.new_id(), ids.new_id())
    runtime = DockerRuntime(lambda: owner, docker_host, reach=Reach())
    assert runtime.network.state.startswith("refused: the packet filter cannot be put in place: libnosuch.so.1")
    with pytest.raises(UnsupportedError, match="--unfiltered-network"):
        runtime.create(BoxRef(ids.new_id(), 1), BoxSpec(test_image))
    alone = BoxRef(ids.new_id(), 1)
    runtime.create(alone, BoxSpec(test_image, network_enabled=False))
    runtime.remove(alone, force=True)
    open_to_all = DockerRuntime(lambda: owner, docker_host)
    assert open_to_all.network.state == "unfiltered"
    for each in (runtime, open_to_all):
        each.close()


def test_without_the_filter_boxes_reach_each_other(docker_host: str, test_image: str) -> None:
    owner = Owner(ids.new_id(), ids.new_id())
    runtime = DockerRuntime(lambda: owner, docker_host, Policy(LENT))
    site = Site(runtime, test_image, test_image, LENT[0])
    box = site.running_box(network_enabled=True, mounts=MOUNTS, memory_mib=128)
    serve = "while true; do nc -l -p 80 -e echo served; done"
    other = site.running_box(network_enabled=True, ports=(PortMapping(80),), cmd=("sh", "-c", serve))
    assert published(site, other) == b"served\n"
    assert reached(site, box, endpoint(docker_host, other)["IPAddress"], 80) == "served\n"
    for each in (box, other):
        runtime.remove(each, force=True)
    runtime.close()
