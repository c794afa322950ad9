"""What root of a box, who may be anybody, tries against the kernel, the worker and the other boxes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docker
import pytest
from support.lent_python import LENT, MOUNTS, attack
from support.sites import Site, collect

from boxlite_server import ids
from boxlite_server.errors import InvalidStateError, UnsupportedError
from boxlite_server.worker.commands import ExecSpec
from boxlite_server.worker.docker.isolation import Isolator
from boxlite_server.worker.docker.runtime import DockerRuntime
from boxlite_server.worker.host_access import Policy
from boxlite_server.worker.presets import Preset
from boxlite_server.worker.runtime import BoxRef, BoxSpec, Owner
from boxlite_server.worker.supervisor.links import Links
from boxlite_server.worker.supervisor.program import program

SEVERAL = 128  # MiB; Python needs more than the box of other tests has


@pytest.fixture(scope="module")
def target(
    docker_host: str, test_image: str, bare_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """Supervised boxes in which the host's Python may be used."""
    home = tmp_path_factory.mktemp("home")
    built = program()
    assert built is not None, "the supervisor is not built; `make build` does that"
    owner = Owner(ids.new_id(), ids.new_id())
    policy = Policy(LENT, floor=Preset.DEVELOPMENT)
    runtime = DockerRuntime(lambda: owner, docker_host, policy, links=Links(home / "boxes", built))
    yield Site(runtime, test_image, bare_image, home, owner=owner)
    for state in runtime.list_boxes():
        runtime.remove(state.box, force=True)
    runtime.close()


@pytest.fixture(scope="module")
def box(target: Site) -> BoxRef:
    return target.running_box(mounts=MOUNTS, memory_mib=SEVERAL)


@pytest.fixture(scope="module")
def neighbour(target: Site) -> BoxRef:
    return target.running_box()


def sh(target: Site, box: BoxRef, script: str, user: str = "") -> str:
    out, err, _ = collect(target.runtime.spawn(box, ExecSpec(("sh", "-c", script), user=user)))
    return (out + err).decode()


def config_of(docker_host: str, box: BoxRef) -> dict[str, Any]:
    api = docker.APIClient(docker_host)
    try:
        return dict(api.inspect_container(f"boxlite-{box.box_id}-{box.generation}")["HostConfig"])
    finally:
        api.close()


def test_raw_sockets_cannot_be_opened(target: Site, box: BoxRef) -> None:
    script = """
print(tried(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3)))
print(tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)))
print(tried(lambda: socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)))
"""
    assert set(attack(target.runtime, box, script).splitlines()) == {"EPERM"}


def test_nothing_can_be_mounted_and_no_namespace_made(target: Site, box: BoxRef) -> None:
    script = """
print(tried(lambda: libc.mount(b"none", b"/mnt", b"tmpfs", 0, None)))
print(tried(lambda: libc.mount(b"none", b"/proc/sys", None, 32 | 4096, None)))
print(tried(lambda: libc.umount2(b"/proc/sys", 0)))
print(tried(lambda: libc.unshare(0x10000000)))
print(tried(lambda: libc.unshare(0x00020000)))
print(tried(lambda: libc.setns(os.open("/proc/1/ns/net", os.O_RDONLY), 0)))
"""
    assert set(attack(target.runtime, box, script).splitlines()) <= {"EPERM", "EACCES"}


def test_the_supervisor_can_be_neither_traced_nor_read(target: Site, box: BoxRef) -> None:
    script = """
print(tried(lambda: libc.ptrace(16, 1, 0, 0)))
print(tried(lambda: libc.ptrace(0x4206, 1, 0, 0)))
print(tried(lambda: open("/proc/1/mem", "rb")))
print(tried(lambda: os.open("/proc/1/fd/0", os.O_RDONLY)))
area = ctypes.create_string_buffer(8)
areas = (ctypes.c_size_t * 2)(ctypes.addressof(area), 8)
print(tried(lambda: libc.syscall(310, 1, areas, 1, areas, 1, 0)))
"""
    assert set(attack(target.runtime, box, script).splitlines()) <= {"EPERM", "EACCES"}


@pytest.mark.parametrize(
    "path",
    [
        "/proc/sysrq-trigger",
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/pid_max",
        "/proc/sys/vm/panic_on_oom",
        "/proc/sys/kernel/modprobe",
        "/sys/kernel/uevent_helper",
        "/sys/fs/cgroup/memory/release_agent",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/cgroup.procs",
    ],
)
def test_the_kernels_files_cannot_be_written(target: Site, box: BoxRef, path: str) -> None:
    told = attack(target.runtime, box, f"print(tried(lambda: open({path!r}, 'w')))")
    assert told in ("EROFS", "EACCES", "EPERM", "ENOENT")


def test_the_kernels_secrets_are_hidden(target: Site, box: BoxRef) -> None:
    assert sh(target, box, "cat /proc/kcore /proc/keys /proc/timer_list 2>/dev/null | wc -c") == "0\n"


def test_no_device_can_be_made_and_none_of_the_hosts_is_there(target: Site, box: BoxRef) -> None:
    script = """
import stat
print(tried(lambda: os.mknod("/tmp/disk", stat.S_IFBLK | 0o600, os.makedev(8, 0))))
print(tried(lambda: os.mknod("/tmp/mem", stat.S_IFCHR | 0o600, os.makedev(1, 1))))
print([name for name in os.listdir("/dev") if stat.S_ISBLK(os.lstat("/dev/" + name).st_mode)])
"""
    assert attack(target.runtime, box, script).splitlines() == ["EPERM", "EPERM", "[]"]


def test_keyrings_of_the_host_are_out_of_reach(target: Site, box: BoxRef) -> None:
    if "x86_64" not in sh(target, box, "uname -m"):
        pytest.skip("the numbers of the system calls are those of x86-64")
    script = """
print(tried(lambda: libc.syscall(248, b"user", b"name", b"secret", 6, -3)))
print(tried(lambda: libc.syscall(250, 0, -3, 1)))
print(tried(lambda: libc.syscall(321, 0, None, 0)))
print(tried(lambda: libc.syscall(298, None, 0, -1, -1, 0)))
"""
    assert set(attack(target.runtime, box, script).splitlines()) == {"EPERM"}


def test_a_set_user_id_program_gives_nobody_the_rights_of_root(target: Site, box: BoxRef) -> None:
    """The host's program keeps the rights that it gets; those of busybox give them away."""
    assert sh(target, box, "cp /usr/bin/id /home/box/id && chmod 4755 /home/box/id") == ""
    assert sh(target, box, "/home/box/id -u; grep NoNewPrivs /proc/self/status", user="1000:1000").split() == [
        *("1000", "NoNewPrivs:", "1")
    ]


def test_a_low_port_can_be_opened_without_a_capability(target: Site, box: BoxRef) -> None:
    assert "143" in sh(target, box, "timeout 2 nc -l -p 80; echo $?", user="1000")  # it listened until then


def test_a_process_has_limited_open_files_and_leaves_no_core(target: Site, box: BoxRef) -> None:
    assert sh(target, box, "ulimit -Hn; ulimit -Hc").split() == ["16384", "0"]


def test_a_fork_bomb_ends_at_the_limit_of_its_box(target: Site, neighbour: BoxRef) -> None:
    bomber = target.running_box(mounts=MOUNTS, memory_mib=1024)
    script = """
started, refused = [], ""
while not refused and len(started) < 2000:
    try:
        pid = os.fork()
    except OSError as exc:
        refused = errno.errorcode[exc.errno]
        break
    if pid == 0:
        signal.pause()
        os._exit(0)
    started.append(pid)
print(refused, len(started) < 512, flush=True)
for pid in started:
    os.kill(pid, signal.SIGKILL)
"""
    assert attack(target.runtime, bomber, script) == "EAGAIN True"
    assert sh(target, neighbour, "echo well") == "well\n"
    assert sh(target, bomber, "echo again") == "again\n"
    target.runtime.remove(bomber, force=True)


def test_a_memory_bomb_ends_alone(target: Site, box: BoxRef, neighbour: BoxRef) -> None:
    command = ExecSpec(("sh", "-c", "dd if=/dev/zero of=/dev/null bs=1024M count=1"))
    assert collect(target.runtime.spawn(box, command))[2] != 0
    assert sh(target, neighbour, "echo well") == "well\n"
    assert sh(target, box, "echo again") == "again\n"


def test_memory_includes_swap_and_logs_are_bounded(target: Site, box: BoxRef, docker_host: str) -> None:
    config = config_of(docker_host, box)
    assert config["Memory"] == config["MemorySwap"] == SEVERAL * 1024 * 1024
    assert config["LogConfig"]["Config"] == {"max-size": "10m", "max-file": "2"}
    assert not config["Privileged"]
    assert config["PidsLimit"] == 512


def test_a_box_of_the_maximum_can_write_in_memory_alone(target: Site) -> None:
    box = target.running_box(security="maximum")
    assert "Read-only" in sh(target, box, "touch /file")
    assert "Read-only" in sh(target, box, "touch /root/file")
    assert sh(target, box, "cp /bin/busybox /tmp/echo && /tmp/echo hello && touch /run/x /var/tmp/x") == "hello\n"
    target.runtime.remove(box, force=True)


def test_a_box_for_development_has_what_the_engine_gives(target: Site) -> None:
    box = target.running_box(security="development", mounts=MOUNTS, memory_mib=SEVERAL)
    assert attack(target.runtime, box, "print(tried(lambda: socket.socket(17, 3, 3)))") == "done"
    target.runtime.remove(box, force=True)


def test_a_runtime_that_the_engine_lacks_is_refused(docker_host: str, test_image: str) -> None:
    runtime = DockerRuntime(lambda: Owner("c", "w"), docker_host, Policy(runtime="no-such"))
    with pytest.raises(UnsupportedError, match="no runtime 'no-such'"):
        runtime.create(BoxRef(ids.new_id(), 1), BoxSpec(test_image))
    runtime.close()


@pytest.mark.parametrize("options", [[], ["name=seccomp,profile=unconfined"]])
def test_an_engine_without_seccomp_gets_boxes_for_development_alone(options: list[str]) -> None:
    info = {"SecurityOptions": options, "Runtimes": {"runc": {}}}
    engine: Any = SimpleNamespace(api=SimpleNamespace(info=lambda: info))
    isolator = Isolator(engine, Policy())
    with pytest.raises(UnsupportedError, match="seccomp"):
        isolator.admit(BoxSpec("some:image", security="standard"))
    isolator.admit(BoxSpec("some:image", security="development"))


@pytest.mark.parametrize(
    ("file", "info", "weight"),
    [
        ("system.slice/io.weight", {"CgroupVersion": "2"}, 11),
        ("docker/io.bfq.weight", {"CgroupVersion": "2"}, 11),
        ("blkio/blkio.weight", {"CgroupVersion": "1"}, 11),
        ("blkio/blkio.weight", {}, 11),  # an engine before 20.10
        ("docker/io.max", {"CgroupVersion": "2"}, None),  # the kernel has no weights, and the container would not start
        ("blkio/blkio.bfq.weight", {"CgroupVersion": "1"}, None),
        ("blkio/blkio.weight", {"CgroupVersion": "2"}, None),
        ("system.slice/io.weight", {"CgroupVersion": "2", "Warnings": ["WARNING: No io.weight support"]}, None),
    ],
)
def test_a_box_weighs_little_on_disks_where_the_kernel_has_weights(
    tmp_path: Path, file: str, info: dict[str, Any], weight: int | None
) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).touch()
    engine: Any = SimpleNamespace(api=SimpleNamespace(info=lambda: info))
    for policy, expected in ((Policy(), weight), (Policy(runtime="runsc"), None)):
        config: dict[str, Any] = {"HostConfig": {}}
        Isolator(engine, policy, tmp_path).apply(config)
        assert config["HostConfig"].get("BlkioWeight") == expected


def test_an_upload_to_a_place_that_is_read_only_is_refused(target: Site) -> None:
    box = target.running_box(security="maximum")
    files = target.runtime.files(box)
    with pytest.raises(InvalidStateError, match="read-only"):
        files.put("/root", [bytes(1024)])
    target.runtime.remove(box, force=True)
