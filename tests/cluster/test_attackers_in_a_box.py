"""What a tenant comes to who attacks from within a box, by nothing but the REST API: the box and its worker keep what
is the kernel's, the host's and other tenants', and the worker and the boxes of others are well during and after each
attack."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from support.cluster import Cluster, call, wait_until
from support.lent_python import command
from support.sites import in_thread
from support.tenant import LENDING, Tenant
from support.world import CONNECT, HOST, METADATA, PORT, PRIVATE, PUBLIC, resolver, world

from boxlite_server.local import busybox, dockerd
from boxlite_server.local.machine import cannot_filter
from boxlite_server.worker.docker.engine import Engine

networked = pytest.mark.skipif(bool(cannot_filter()), reason=cannot_filter() or "-")

REFUSED = {"EPERM", "EACCES", "EROFS", "ENOENT"}


class Site(NamedTuple):
    """A worker with boxes of two tenants: one attacks, and `bystander` is a box of the other one."""

    cluster: Cluster
    attacker: Tenant
    other: Tenant
    bystander: str

    def must_be_well(self) -> None:
        """Worker and coordinator answer, and a command in the bystander's box works."""
        worker = self.cluster.workers[0]
        assert worker.running
        for path in ("/healthz", "/readyz"):
            assert call(worker.health_port, "GET", path)[0] == 200
        assert call(self.cluster.port, "GET", "/v1/health/ready")[0] == 200
        assert self.other.sh(self.bystander, "echo well") == "well\n"


@pytest.fixture(scope="module")
def site(new_shared_cluster: type[Cluster], test_image: str) -> Iterator[Site]:
    cluster = new_shared_cluster()
    cluster.start_with_keys("--security", "development", *LENDING)
    attacker, other = Tenant(cluster, "acme"), Tenant(cluster, "other")
    bystander = other.create(name="bystander", volumes=[])
    yield Site(cluster, attacker, other, bystander)
    other.remove(bystander)


@pytest.fixture(autouse=True)
def well(site: Site) -> Iterator[None]:
    """Each attack leaves worker, coordinator and the other tenant's box well, and makes no fault of the server."""
    yield
    site.must_be_well()
    for process in site.cluster.processes:
        assert "Traceback" not in process.log.read_text(errors="replace"), process.tail()


@pytest.fixture(scope="module")
def box(site: Site) -> Iterator[str]:
    with site.attacker.box() as box:
        yield box


# ---- against the kernel ----


def test_raw_sockets(site: Site, box: str) -> None:
    script = """
for family, kind in ((17, 3), (2, 1), (10, 58), (2, 255)):
    print(tried(lambda: socket.socket(family, socket.SOCK_RAW, kind)))
"""
    assert set(site.attacker.python(box, script)) == {"EPERM"}


def test_mounts_and_namespaces(site: Site, box: str) -> None:
    script = """
print(tried(lambda: libc.mount(b"none", b"/mnt", b"tmpfs", 0, None)))
print(tried(lambda: libc.mount(b"/", b"/mnt", None, 4096, None)))
print(tried(lambda: libc.mount(b"none", b"/proc/sys", None, 32 | 4096, None)))
print(tried(lambda: libc.mount(b"/dev/vda", b"/mnt", b"ext4", 0, None)))
print(tried(lambda: libc.umount2(b"/proc/sys", 0)))
print(tried(lambda: libc.pivot_root(b"/", b"/")))
for namespace in (0x10000000, 0x00020000, 0x40000000, 0x02000000):
    print(tried(lambda: libc.unshare(namespace)))
print(tried(lambda: libc.setns(os.open("/proc/1/ns/net", os.O_RDONLY), 0)))
"""
    assert set(site.attacker.python(box, script)) <= REFUSED


def test_ptrace(site: Site, box: str) -> None:
    """Neither the supervisor nor the keepers of commands can be traced, read or robbed of a descriptor."""
    script = """
pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
ours = [pid for pid in pids if open(f"/proc/{pid}/comm").read() == "init\\n"]
print(len(ours) > 1)
for pid in ours:
    for request in (16, 0x4206):
        print(tried(lambda: libc.ptrace(request, pid, 0, 0)))
    print(tried(lambda: open(f"/proc/{pid}/mem", "rb")))
    print(tried(lambda: os.open(f"/proc/{pid}/fd/0", os.O_RDONLY)))
    print(tried(lambda: os.readlink(f"/proc/{pid}/fd/0")))
    print(tried(lambda: libc.syscall(438, libc.syscall(434, pid, 0), 3, 0)))
"""
    several, *told = site.attacker.python(box, script)
    assert (several, set(told)) == ("True", {"EPERM", "EACCES"})


def test_writes_to_proc_and_sys(site: Site, box: str) -> None:
    script = """
files = "/proc/sysrq-trigger /proc/sys/kernel/core_pattern /proc/sys/kernel/pid_max /proc/sys/kernel/modprobe"
files += " /proc/sys/vm/panic_on_oom /proc/sys/vm/drop_caches /proc/sys/fs/binfmt_misc/register"
files += " /proc/irq/0/smp_affinity"
files += " /proc/sys/net/ipv4/conf/all/route_localnet /proc/bus/pci/00 /proc/kcore"
files += " /sys/kernel/uevent_helper /sys/power/state /sys/class/net/eth0/mtu /sys/module/loop/parameters/max_loop"
files += " /sys/fs/cgroup/memory/release_agent /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/cgroup.procs"
files += " /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max"
for path in files.split():
    print(tried(lambda: os.write(os.open(path, os.O_WRONLY), b"1") and None), path)
for path in ("/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/proc/scsi/scsi"):
    try:
        print("ENOENT" if not open(path, "rb").read(1) else "read", path)
    except OSError as exc:
        print(errno.errorcode[exc.errno], path)
print(tried(lambda: libc.syscall(103, 3, ctypes.create_string_buffer(100), 100)), "the kernel's log")
"""
    told = site.attacker.python(box, script)
    assert [line for line in told if line.split()[0] not in REFUSED | {"EISDIR", "EINVAL"}] == []


def test_device_nodes(site: Site, box: str) -> None:
    script = """
import stat
for kind, major, minor in ((stat.S_IFBLK, 8, 0), (stat.S_IFBLK, 254, 0), (stat.S_IFCHR, 1, 1), (stat.S_IFCHR, 10, 200)):
    print(tried(lambda: os.mknod("/tmp/node", kind | 0o600, os.makedev(major, minor))))
nodes = [os.path.join(where, name) for where, _, names in os.walk("/dev") for name in names]
print([node for node in nodes if stat.S_ISBLK(os.lstat(node).st_mode)])
"""
    *told, blocks = site.attacker.python(box, script)
    assert (set(told), blocks) == ({"EPERM"}, "[]")


def test_device_nodes_that_the_box_may_make_open_nothing(site: Site) -> None:
    """With MKNOD, which the weakest preset has, the control group of the box refuses them."""
    script = """
import stat
for kind, major, minor in ((stat.S_IFBLK, 8, 0), (stat.S_IFBLK, 254, 0), (stat.S_IFCHR, 1, 1), (stat.S_IFCHR, 1, 2)):
    os.mknod(f"/root/{major}.{minor}", kind | 0o600, os.makedev(major, minor))
    print(tried(lambda: os.open(f"/root/{major}.{minor}", os.O_RDONLY)))
"""
    with site.attacker.box(security="development") as weak:
        assert set(site.attacker.python(weak, script)) == {"EPERM"}


def test_keyrings(site: Site, box: str) -> None:
    if "x86_64" not in site.attacker.sh(box, "uname -m"):
        pytest.skip("the numbers of the system calls are those of x86-64")
    script = """
for ring in (-1, -2, -3, -4, -5):
    print(tried(lambda: libc.syscall(248, b"user", b"name", b"secret", 6, ring)))
    print(tried(lambda: libc.syscall(250, 0, ring, 1)))
print(tried(lambda: libc.syscall(249, b"user", b"name", None, -3)))
for call in (298, 321, 323):  # perf_event_open, bpf, userfaultfd
    print(tried(lambda: libc.syscall(call, 0, None, 0, -1, 0)))
"""
    assert set(site.attacker.python(box, script)) == {"EPERM"}


# ---- against the host's resources ----


def test_the_servers_come_before_boxes(site: Site, box: str) -> None:
    """All threads of worker and coordinator have more than the usual priority, commands have the usual one, which is
    that of the engine and of this test, and the kernel ends those first when memory runs out."""
    for process in site.cluster.processes:
        threads = [int(path.name) for path in Path(f"/proc/{process.pid}/task").iterdir()]
        assert {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads} == {-10}
    script = "print(os.getpriority(os.PRIO_PROCESS, 0), open('/proc/self/oom_score_adj').read().strip())"
    assert site.attacker.python(box, script) == [f"{os.getpriority(os.PRIO_PROCESS, 0)} 1000"]


def test_a_fork_bomb(site: Site) -> None:
    with site.attacker.box() as bomber:
        bomb = in_thread(
            lambda: site.attacker.run(bomber, "sh", "-c", "b() { b | b & }; b; wait", timeout_seconds=4),
        )
        while bomb.is_alive():
            site.must_be_well()
        again = {"command": "echo", "args": ["again"], "timeout_seconds": 30}
        wait_until(lambda: site.attacker.ask("POST", f"/{bomber}/run", again)[0] == 200, "the bomb is killed")
        assert site.attacker.sh(bomber, "echo again") == "again\n"


MEMORY_BOMBS = {
    "a process": "tail /dev/zero",
    "many processes": "for n in $(seq 30); do tail /dev/zero & done; wait",
    "shared memory": "for n in 1 2 3 4; do dd if=/dev/zero of=/dev/shm/$n bs=1M; done; tail /dev/zero",
    "pipes that nobody reads": "mkfifo p; sleep 9 < p & for n in $(seq 400); do yes > p & done; tail /dev/zero",
}


@pytest.mark.parametrize("kind", MEMORY_BOMBS)
def test_a_memory_bomb(site: Site, kind: str) -> None:
    with site.attacker.box() as bomber:
        bomb = in_thread(lambda: site.attacker.run(bomber, "sh", "-c", MEMORY_BOMBS[kind], timeout_seconds=10))
        while bomb.is_alive():
            site.must_be_well()
        assert site.attacker.sh(bomber, "rm -f /dev/shm/*; echo again") == "again\n"


def test_output_without_end(site: Site, box: str) -> None:
    """Of a command that nobody reads and of the main command, whose log the engine keeps."""
    with site.attacker.box(cmd=["yes", "and again"]) as noisy:
        execution = site.attacker.must("POST", f"/{noisy}/exec", {"command": "yes"})["execution_id"]
        bomb = in_thread(lambda: site.attacker.run(box, "sh", "-c", "yes", timeout_seconds=3))
        while bomb.is_alive():
            site.must_be_well()
        site.attacker.must("DELETE", f"/{noisy}/executions/{execution}")


@pytest.fixture(scope="module")
def small(new_shared_cluster: type[Cluster]) -> Iterator[Site]:
    """A worker whose home and engine are on one disk of 96 MiB; half of that is its reserve."""
    directory = Path(tempfile.mkdtemp(prefix="boxlite-"))  # short, for the sockets in it
    with dockerd.private_namespace(directory) as own:
        disk = directory / "data"
        disk.mkdir()
        own.must("mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(disk))
        own.must("mkdir", str(disk / "home"))
        engine = dockerd.Dockerd(directory, own)
        engine.start()
        busybox.import_image(engine.docker_host, "alpine:latest")
        cluster = new_shared_cluster()
        flags = ("--api-key", cluster.new_key("--worker"), "--reserve-disk", "48")
        cluster.start_coordinator()
        enter = ("nsenter", own.command()[2], "--")  # the mounts of the engine, and the machine's network
        cluster.start_worker(*flags, docker_host=engine.docker_host, home=disk / "home", within=enter)
        attacker, other = Tenant(cluster, "acme"), Tenant(cluster, "other")
        with other.box(volumes=[]) as bystander:
            yield Site(cluster, attacker, other, bystander)
        cluster.close()
        engine.stop()
    shutil.rmtree(directory)


# Slowly at the end, since this disk is a small one.
FILL = (
    "cd {}; dd if=/dev/zero of=0 bs=64k count=560; n=1; "
    "while dd if=/dev/zero of=$n bs=64k count=16; do n=$((n + 1)); usleep 150000; done"
)


@pytest.mark.parametrize("where", ["/", "/volume"])
def test_a_disk_fill(small: Site, where: str) -> None:
    """The box that fills the disk, or a volume on it, is stopped before others notice, and says why."""
    volume = call(small.cluster.port, "POST", "/v1/volumes", {}, headers=small.attacker.headers)[2]["id"]
    volumes = [{"managed_volume": volume, "guest_path": "/volume"}]
    with small.attacker.box(volumes=volumes, auto_resume=False) as filler:
        body = {"command": "sh", "args": ["-c", FILL.format(where)]}
        filling = in_thread(lambda: small.attacker.ask("POST", f"/{filler}/run", body))
        while filling.is_alive():
            small.must_be_well()
        wait_until(lambda: small.attacker.must("GET", f"/{filler}")["status"] == "stopped", "the box is stopped")
        wait_until(lambda: small.attacker.must("GET", f"/{filler}")["error_message"] is not None, "the reason is known")
        assert "disk of its host was nearly full" in small.attacker.must("GET", f"/{filler}")["error_message"]
        assert small.other.sh(small.bystander, "echo data > /file && cat /file") == "data\n"
    status = call(small.cluster.port, "DELETE", f"/v1/volumes/{volume}", headers=small.attacker.headers)[0]
    assert status == 204
    small.must_be_well()


# ---- against the network ----


@pytest.fixture(scope="module")
def there(site: Site) -> Iterator[int]:
    """A process in the network of the other hosts."""
    engine = Engine(site.cluster.docker_host)
    with world(engine.pid) as pid:
        yield pid
    engine.close()


@pytest.fixture(scope="module")
def online(site: Site, there: int) -> Iterator[str]:
    """A box that reaches the public internet."""
    with site.attacker.box() as box:
        assert reached(site, box, PUBLIC) == ["reached"]
        yield box


@pytest.fixture(scope="module")
def victim(site: Site, there: int) -> Iterator[str]:
    """A box of the other tenant that serves a word at port 80, which is published."""
    serve = ["sh", "-c", "while true; do nc -l -p 80 -e echo served; done"]
    with site.other.box(cmd=serve, ports=[{"guest_port": 80}]) as victim:
        yield victim


def reached(site: Site, box: str, *addresses: str, port: int = PORT) -> list[str]:
    return site.attacker.python(box, f"{CONNECT}\nfor a in {addresses!r}: print(reached(a, {port}))")


def own_address(tenant: Tenant, box: str) -> str:
    return tenant.sh(box, "hostname -i").strip()


def gateway(tenant: Tenant, box: str) -> str:
    return tenant.sh(box, "ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p'").strip()


@networked
def test_the_metadata_address(site: Site, online: str) -> None:
    assert set(reached(site, online, METADATA, PRIVATE)) == {"unreached"}


@networked
def test_another_box(site: Site, online: str, victim: str) -> None:
    assert reached(site, online, own_address(site.other, victim), port=80) == ["unreached"]
    (port,) = site.other.must("GET", f"/{victim}")["ports"]
    through_host = (gateway(site.attacker, online), *HOST)
    assert set(reached(site, online, *through_host, port=port["host_port"])) == {"unreached"}


@networked
def test_ports_of_the_host(site: Site, online: str) -> None:
    assert set(reached(site, online, gateway(site.attacker, online), *HOST)) == {"unreached"}


@networked
def test_ports_of_the_host_over_ipv6(site: Site, there: int) -> None:
    """By the addresses of the link, also for a box that may forge frames."""
    script = f"""{CONNECT}
card = bytes.fromhex([line.split()[3] for line in open("/proc/net/arp") if "eth0" in line][0].replace(":", ""))
link = bytes([0xFE, 0x80, *bytes(6), card[0] ^ 2, *card[1:3], 0xFF, 0xFE, *card[3:]])
print(reached((socket.inet_ntop(10, link), {PORT}, 0, socket.if_nametoindex("eth0")), 0, socket.AF_INET6))
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x86DD))
wire.bind(("eth0", 0))
wire.settimeout(1)
own = wire.getsockname()[4]
for to, address in ((card, link), (b"\\x33\\x33\\0\\0\\0\\1", socket.inet_pton(10, "ff02::1"))):
    ask = struct.pack(">IHBB", 6 << 28, 8, 58, 255) + socket.inet_pton(10, "fe80::2") + address
    wire.send(to + own + b"\\x86\\xdd" + ask + bytes([128, 0, 0, 0, 0, 1, 0, 1]))
try:
    while wire.recv(2000)[:6] != own:  # the bridge's multicast comes to all
        pass
    print("answered")
except TimeoutError:
    print("unanswered")
"""
    with site.attacker.box(security="development") as rogue:
        assert reached(site, rogue, gateway(site.attacker, rogue)) == ["unreached"]  # and its card is known
        assert site.attacker.python(rogue, script) == ["unreached", "unanswered"]


@networked
def test_arp_spoofing(site: Site, victim: str) -> None:
    """A box that may forge frames claims to be the other tenant's box, and the gateway; that one notices nothing, and
    nothing of what it says is heard."""
    card = site.other.sh(victim, "cat /sys/class/net/eth0/address").strip().replace(":", "")
    script = f"""
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
wire.bind(("eth0", 0))
own, card = wire.getsockname()[4], bytes.fromhex({card!r})
victim = socket.inet_aton({own_address(site.other, victim)!r})
gateway = socket.inet_aton({gateway(site.other, victim)!r})
heard, until = 0, time.monotonic() + 3
wire.settimeout(0.05)
while time.monotonic() < until:
    for source in (own, card):
        for sender, target in ((victim, gateway), (gateway, victim), (victim, victim), (gateway, gateway)):
            for kind in (1, 2):
                arp = struct.pack(">HHBBH", 1, 0x800, 6, 4, kind) + source + sender + b"\\xff" * 6 + target
                wire.send(b"\\xff" * 6 + source + b"\\x08\\x06" + arp)
    try:
        frame, about = wire.recvfrom(2000)
        heard += about[2] != socket.PACKET_OUTGOING and frame[6:12] == card
    except TimeoutError:
        pass
print(heard)
"""
    ask = command(f"{CONNECT}\nprint(reached({PUBLIC!r}, {PORT}))")
    heard: list[str] = []
    with site.attacker.box(security="development") as rogue:
        spoofing = in_thread(lambda: heard.extend(site.attacker.python(rogue, script)))
        while spoofing.is_alive():
            assert site.other.run(victim, *ask)["stdout"] == "reached\n"
    assert heard == ["0"]


@networked
def test_dns_rebinding(site: Site, online: str, there: int) -> None:
    """A name of the attacker's stands for a public address first, and for those of others afterwards."""
    addresses = (PUBLIC, METADATA, PRIVATE, gateway(site.attacker, online), *HOST)
    script = f"""{CONNECT}
open("/etc/resolv.conf", "w").write("nameserver {PUBLIC}\\noptions timeout:20 attempts:1\\n")
for _ in range({len(addresses)}):
    address = socket.gethostbyname("rebind.attacker.example")
    print(address, reached(address, {PORT}))
"""
    with resolver(there, *addresses):
        told = site.attacker.python(online, script)
    assert told == [f"{PUBLIC} reached", *(f"{address} unreached" for address in addresses[1:])]
