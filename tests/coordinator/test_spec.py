"""The spec of a box: requests, what the database holds, and what workers get."""

from __future__ import annotations

import dataclasses
import json

import pytest

from boxlite_server.coordinator.host_access import Mount, Port
from boxlite_server.coordinator.limits import Policy
from boxlite_server.coordinator.spec import Spec

# Texts as earlier versions have stored them.
FULL_TEXT = (
    '{"name": "web", "image": "nginx:1", "cpus": 2, "memory_mib": 256, "env": {"B": "\\u00fc", "A": "\\u0000x"}, '
    '"working_dir": "/srv", "entrypoint": ["sh", "-c"], "cmd": ["run"], "user": "1000", "network": "enabled", '
    '"tty": true, "mounts": [{"volume": "data", "host_path": null, "guest_path": "/data", "read_only": false, '
    '"volume_id": "v1"}, {"volume": null, "host_path": "/srv/x", "guest_path": "/x", "read_only": true}], '
    '"ports": [{"guest_port": 80, "host_port": 0, "protocol": "tcp", "host_ip": "127.0.0.1"}, '
    '{"guest_port": 53, "host_port": 53, "protocol": "udp", "host_ip": "::"}], '
    '"cap_add": ["NET_ADMIN", "CHOWN"], "cap_drop": ["ALL"], "labels": {"z": "1", "a": "2"}, "detach": false, '
    '"auto_remove": true, "auto_stop": 30, "auto_delete": 0, "auto_resume": false}'
)
PLAIN_TEXT = (
    '{"name": null, "image": "alpine:latest", "cpus": 1, "memory_mib": 512, "env": {}, "working_dir": "", '
    '"entrypoint": [], "cmd": [], "user": "", "network": "enabled", "tty": false, "mounts": [], "ports": [], '
    '"cap_add": [], "cap_drop": [], "labels": {}, "detach": true, "auto_remove": false, "auto_stop": 0, '
    '"auto_delete": 0, "auto_resume": true}'
)
# From before there were mounts, ports, capabilities, `detach`, `auto_stop` and `auto_delete`.
FIRST_TEXT = (
    '{"name": null, "image": "alpine:latest", "cpus": 1, "memory_mib": 512, "env": {}, "working_dir": "", '
    '"entrypoint": [], "cmd": [], "user": "", "network": "enabled", "tty": false, "labels": {}, '
    '"auto_remove": false, "auto_resume": true}'
)
FULL = Spec(
    name="web",
    image="nginx:1",
    cpus=2,
    memory_mib=256,
    env={"B": "ü", "A": "\0x"},
    working_dir="/srv",
    entrypoint=("sh", "-c"),
    cmd=("run",),
    user="1000",
    tty=True,
    mounts=(Mount("data", None, "/data", False, "v1"), Mount(None, "/srv/x", "/x", True)),
    ports=(Port(80, 0, "tcp", "127.0.0.1"), Port(53, 53, "udp", "::")),
    cap_add=("NET_ADMIN", "CHOWN"),
    cap_drop=("ALL",),
    labels={"z": "1", "a": "2"},
    detach=False,
    auto_remove=True,
    auto_stop=30,
    auto_resume=False,
)
REQUEST = {
    "name": "web",
    "image": "nginx:1",
    "cpus": 2,
    "memory_mib": 256,
    "env": {"B": "ü", "A": "\0x"},
    "working_dir": "/srv",
    "entrypoint": ["sh", "-c"],
    "cmd": ["run"],
    "user": "1000",
    "tty": True,
    "volumes": [
        {"managed_volume": "data", "guest_path": "/data"},
        {"host_path": "/srv/x", "guest_path": "/x/", "read_only": True},
    ],
    "ports": [{"guest_port": 80}, {"guest_port": 53, "host_port": 53, "protocol": "udp", "host_ip": "::"}],
    "advanced": {"capabilities": {"add": ["net_admin", "CAP_CHOWN"], "drop": ["all"]}},
    "labels": {"z": "1", "a": "2"},
    "detach": False,
    "auto_remove": True,
    "auto_pause": 30,
    "auto_delete": 0,
    "auto_resume": False,
}
STORED = {FULL_TEXT: FULL, PLAIN_TEXT: Spec(), FIRST_TEXT: Spec()}


@pytest.mark.parametrize("text", STORED)
def test_what_earlier_versions_stored_is_read_and_written_back_as_it_was(text: str) -> None:
    spec = Spec.of_json(json.loads(text))
    assert spec == STORED[text]
    assert json.dumps(spec.to_json()) == text


def test_a_setting_that_a_stored_spec_did_not_have_is_kept_once_it_is_given() -> None:
    first = Spec.of_json(json.loads(FIRST_TEXT))
    changed = dataclasses.replace(first, auto_stop=5, mounts=(Mount("data", None, "/data", False, "v1"),))
    assert Spec.of_json(changed.to_json()) == Spec(auto_stop=5, mounts=changed.mounts)


def test_a_setting_of_a_later_version_is_left_out() -> None:
    assert Spec.of_json({**json.loads(PLAIN_TEXT), "color": "blue"}) == Spec()


def test_a_request_is_the_same_as_the_stored_spec_whose_volumes_were_looked_up() -> None:
    asked = Spec.of_request(REQUEST, Policy(default_auto_stop=60, default_auto_delete=7))
    assert asked.is_same(FULL)
    assert FULL.is_same(asked)
    assert asked != FULL
    assert not asked.is_same(dataclasses.replace(FULL, cmd=("other",)))
    assert not asked.is_same(dataclasses.replace(FULL, mounts=FULL.mounts[:1]))


def test_a_spec_can_be_asked_for_again_but_for_its_mounts() -> None:
    again = Spec.of_request(FULL.to_request(), Policy(default_auto_stop=60, default_auto_delete=7))
    assert again == dataclasses.replace(FULL, mounts=())


def test_a_worker_gets_all_of_it() -> None:
    message = FULL.to_proto("AbCdEf123456")
    assert dict(message.env) == FULL.env
    assert (message.image, message.cpus, message.memory_mib, message.user) == ("nginx:1", 2, 256, "1000")
    assert (list(message.entrypoint), list(message.cmd), message.working_dir) == (["sh", "-c"], ["run"], "/srv")
    assert (message.hostname, message.tty, message.network_enabled) == ("web", True, True)
    assert [(m.volume_id, m.host_path, m.guest_path, m.read_only) for m in message.mounts] == [
        ("v1", "", "/data", False),
        ("", "/srv/x", "/x", True),
    ]
    assert [(p.guest_port, p.host_port, p.protocol, p.host_ip) for p in message.ports] == list(FULL.ports)
    assert (list(message.cap_add), list(message.cap_drop)) == (["NET_ADMIN", "CHOWN"], ["ALL"])
    assert Spec(name="a_b").to_proto("x").hostname == "a-b"
    assert Spec().to_proto("AbCdEf123456").hostname == "AbCdEf123456"


@pytest.mark.parametrize(
    ("sent", "cmd"),
    [(["--", "sleep", "300"], ("sleep", "300")), (["sh", "--"], ("sh", "--")), (["--"], ()), (None, ())],
)
def test_a_leading_separator_is_no_word_of_the_command(sent: list[str] | None, cmd: tuple[str, ...]) -> None:
    assert Spec.of_request({"cmd": sent}, Policy()).cmd == cmd
