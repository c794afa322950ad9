"""What the engine gets to make a container from."""

from __future__ import annotations

import json

import pytest

from boxlite_server.worker.docker.config import container_config
from boxlite_server.worker.runtime import BoxRef, BoxSpec, Mount, Owner, PortMapping

BOX, OWNER = BoxRef("box1", 2), Owner("cluster", "worker")
FULL = BoxSpec(
    image="some:image",
    cpus=3,
    memory_mib=700,
    env={"A": "b", "EMPTY": ""},
    working_dir="/w",
    entrypoint=("/e", "x"),
    cmd=("c", "d e"),
    user="u:g",
    network_enabled=True,
    tty=True,
    hostname="web",
    mounts=(Mount("/data", volume_id="v1"), Mount("/host", host_path="/srv", read_only=True)),
    ports=(PortMapping(80), PortMapping(80, 8080, "tcp", "0.0.0.0"), PortMapping(53, 5353, "udp")),
    cap_add=("SYS_PTRACE",),
    cap_drop=("ALL",),
)
OF_FULL = (
    '{"Hostname": "web", "ExposedPorts": {"80/tcp": {}, "53/udp": {}}, "User": "u:g", "Tty": true, '
    '"OpenStdin": true, "StdinOnce": true, "AttachStdin": true, "AttachStdout": true, "AttachStderr": true, '
    '"Env": ["A=b", "EMPTY="], "Cmd": ["c", "d e"], "Image": "some:image", "NetworkDisabled": false, '
    '"Entrypoint": ["/e", "x"], "WorkingDir": "/w", "Healthcheck": {"Test": ["NONE"]}, '
    '"HostConfig": {"Memory": 734003200, "MemorySwap": 734003200, '
    '"ShmSize": 367001600, '
    '"NetworkMode": "bridge", "LogConfig": {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "2"}}, '
    '"Init": true, "CpuPeriod": 20000, "CpuQuota": 60000, "Mounts": [{"Type": "volume", "Source": "boxlite-v1", '
    '"Target": "/data", "ReadOnly": false}, {"Type": "bind", "Source": "/srv", "Target": "/host", '
    '"ReadOnly": true}], "PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}, {"HostIp": "0.0.0.0", '
    '"HostPort": "8080"}], "53/udp": [{"HostIp": "127.0.0.1", "HostPort": "5353"}]}, "PidsLimit": 512, '
    '"CapAdd": ["SYS_PTRACE"], '
    '"CapDrop": ["ALL"], "CpuShares": 384, "OomScoreAdj": 1000, '
    '"Sysctls": {"net.ipv4.ip_unprivileged_port_start": "0"}, '
    '"SecurityOpt": ["no-new-privileges"], "Ulimits": [{"Name": "nofile", "Soft": 16384, "Hard": 16384}, '
    '{"Name": "core", "Soft": 0, "Hard": 0}], "ConsoleSize": [24, 80]}, '
    '"Labels": {"boxlite.cluster": "cluster", "boxlite.worker": "worker", '
    '"boxlite.box": "box1", "boxlite.generation": "2", "boxlite.image": "some:image"}}'
)
OF_BARE = (
    '{"ExposedPorts": {}, "Tty": false, "OpenStdin": true, "StdinOnce": true, "AttachStdin": true, '
    '"AttachStdout": true, "AttachStderr": true, "Env": [], "Cmd": ["tail", "-f", "/dev/null"], '
    '"Image": "some:image", "NetworkDisabled": false, "Healthcheck": {"Test": ["NONE"]}, '
    '"HostConfig": {"Memory": 536870912, "MemorySwap": 536870912, '
    '"ShmSize": 268435456, '
    '"NetworkMode": "none", "LogConfig": {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "2"}}, '
    '"Init": true, "CpuPeriod": 20000, "CpuQuota": 20000, "Mounts": [], "PortBindings": {}, "PidsLimit": 512, '
    '"CapAdd": ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID"], "CapDrop": ["ALL"], '
    '"CpuShares": 128, "OomScoreAdj": 1000, "Sysctls": {"net.ipv4.ip_unprivileged_port_start": "0"}, '
    '"SecurityOpt": ["no-new-privileges"], '
    '"Ulimits": [{"Name": "nofile", "Soft": 16384, "Hard": 16384}, {"Name": "core", "Soft": 0, "Hard": 0}]}, '
    '"Labels": {"boxlite.cluster": "cluster", "boxlite.worker": "worker", "boxlite.box": "box1", '
    '"boxlite.generation": "2", "boxlite.image": "some:image"}}'
)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [(FULL, OF_FULL), (BoxSpec("some:image", network_enabled=False), OF_BARE)],
    ids=["full", "bare"],
)
def test_the_whole_configuration(spec: BoxSpec, expected: str) -> None:
    made = json.dumps(container_config(BOX, spec, {"Config": None}, OWNER))
    assert json.loads(made) == json.loads(expected)


@pytest.mark.parametrize("image", [{"Config": {"Cmd": ["sh"]}}, {"Config": {"Entrypoint": ["sh"]}}])
def test_an_image_with_a_command_keeps_it(image: dict[str, object]) -> None:
    assert not {"Cmd", "Entrypoint"} & container_config(BOX, BoxSpec("some:image"), image, OWNER).keys()
