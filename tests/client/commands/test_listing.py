"""`list` with its filters and columns, `inspect` and `port`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from support.fake_server import BOX, FakeServer

Boxlite = Callable[..., int]
Capture = pytest.CaptureFixture[str]

PORTS = [
    {"guest_port": 443, "protocol": "tcp", "host_ip": "0.0.0.0", "host_port": 8443, "address": "10.0.0.5:8443"},
    {"guest_port": 80, "protocol": "tcp", "host_ip": "127.0.0.1", "host_port": 49153, "address": "127.0.0.1:49153"},
    {"guest_port": 53, "protocol": "udp", "host_ip": "127.0.0.1", "host_port": 49154, "address": "127.0.0.1:49154"},
]


def box(number: int, name: str | None, status: str = "running", **fields: Any) -> dict[str, Any]:
    created = {"box_id": f"Box{number:09}", "name": name, "created_at": f"2026-01-0{number}T00:00:00Z"}
    return BOX | created | {"status": status, "labels": {}} | fields


BOXES = [
    box(1, "web", labels={"team": "blue", "tier": "front"}, ports=PORTS, cmd=["nginx", "-g", "daemon off;\n"]),
    box(2, "web-old", "stopped", exit_code=137, labels={"team": "blue"}, entrypoint=["sh", "-c"], cmd=["exit 137"]),
    box(3, "db", image="docker.io/library/postgres:16", labels={"team": "red"}, network_mode="disabled"),
    box(4, None, "configured", labels={"tier": ""}, ports=[{**PORTS[0], "address": None}]),
    box(5, "gone", "stopped", exit_code=0, network_mode="enabled"),
]


@pytest.fixture
def boxes(server: FakeServer) -> FakeServer:
    server.on("GET", "/v1/boxes", (200, {"boxes": BOXES}))
    return server


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ("", ["db", "web"]),
        ("-a", ["gone", "", "db", "web-old", "web"]),
        ("-n 2", ["gone", ""]),
        ("-l", ["gone"]),
        ("-f name=web", ["web"]),
        ("-a --filter name=web", ["web-old", "web"]),
        ("--filter name=web --filter name=db", ["db", "web"]),
        ("-a --filter name=^web$", ["web"]),
        ("-a --filter name=^/web", ["web-old", "web"]),
        ("--filter status=stopped", ["gone", "web-old"]),
        ("--filter status=exited --filter status=created", ["gone", "", "web-old"]),
        ("--filter exited=137", ["web-old"]),
        ("-a --filter label=team=blue", ["web-old", "web"]),
        ("-a --filter label=team=blue --filter label=tier", ["web"]),
        ("-a --filter label=tier", ["", "web"]),
        ("-a --filter label=tier=", [""]),
        ("--filter ancestor=postgres:16", ["db"]),
        ("--filter ancestor=postgres", []),
        ("--filter ancestor=alpine", ["web"]),
        ("-a --filter id=Box000000002", ["web-old"]),
        ("-a --filter before=db", ["web-old", "web"]),
        ("-a --filter since=Box000000003 --filter status=stopped", ["gone"]),
        ("-a --filter network=none", ["db"]),
        ("-a --filter network=bridge --filter network=none", ["gone", "db"]),
        ("-a --filter publish=443", ["", "web"]),
        ("-a --filter publish=53/udp", ["web"]),
        ("-a --filter publish=80/udp --filter publish=81/tcp", []),
    ],
)
def test_filters_are_those_of_docker(
    boxes: FakeServer, boxlite: Boxlite, capsys: Capture, flags: str, names: list[str]
) -> None:
    assert boxlite("ps", "--format", "json", *flags.split()) == 0
    assert [row["Names"] for row in json.loads(capsys.readouterr().out)] == names


def test_a_filter_by_a_box_that_is_not_there(boxes: FakeServer, boxlite: Boxlite, capsys: Capture) -> None:
    assert boxlite("ps", "--filter", "since=nosuch") == 1
    assert capsys.readouterr().err == "Error: --filter: there is no box 'nosuch'\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name", "is not KEY=VALUE with one of the keys ancestor, before,"),
        ("name=", "is not KEY=VALUE"),
        ("size=3", "is not KEY=VALUE"),
        ("exited=x", "an exit code is a number"),
        ("status=runing", "the statuses are configured, created, dead, exited,"),
        ("network=host", "the networks are bridge, disabled, enabled, none"),
        ("publish=http", "is no port; write 80 or 53/udp"),
        ("name=[", "is no regular expression"),
    ],
)
def test_filters_that_mean_nothing(boxes: FakeServer, boxlite: Boxlite, capsys: Capture, text: str, said: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        boxlite("ps", "--filter", text)
    error = capsys.readouterr().err
    assert f"'{text}'" in error or "'http'" in error
    assert said in error
    assert not boxes.requests


def test_the_table_has_the_columns_of_docker(boxes: FakeServer, boxlite: Boxlite, capsys: Capture) -> None:
    assert boxlite("ps", "-a") == 0
    header, *rows = capsys.readouterr().out.splitlines()
    titles = ("ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES")
    assert header.split() == list(titles)
    starts = [header.index(title) for title in titles]
    cells = [[row[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)] for row in rows]
    web = next(row for row in cells if row[-1] == "web")
    assert web[2] == '"nginx -g daemon off;"'
    assert web[4:6] == ["running", "127.0.0.1:49154->53/udp, 127.0.0.1:49153->80/tcp, 10.0.0.5:8443->443/tcp"]
    assert next(row for row in cells if row[-1] == "web-old")[2:3] == ['"sh -c exit 137"']
    assert next(row for row in cells if row[-1] == "")[5] == ""  # a port that is not open


def test_long_commands_are_cut_unless_told_otherwise(server: FakeServer, boxlite: Boxlite, capsys: Capture) -> None:
    server.on("GET", "/v1/boxes", (200, {"boxes": [box(1, "web", cmd=["echo", "x" * 50])]}))
    assert boxlite("ps") == 0
    assert f'"echo {"x" * 14}…"' in capsys.readouterr().out
    assert boxlite("ps", "--no-trunc") == 0
    assert f'"echo {"x" * 50}"' in capsys.readouterr().out


def test_json_and_yaml_say_the_same(boxes: FakeServer, boxlite: Boxlite, capsys: Capture) -> None:
    boxes.on("GET", "/v1/boxes/web", (200, BOXES[0]))
    for command in (("ps", "-a"), ("inspect", "web"), ("info",)):
        assert boxlite(*command, "--format", "json") == 0
        document = json.loads(capsys.readouterr().out)
        assert boxlite(*command, "--format", "yaml") == 0
        assert yaml.safe_load(capsys.readouterr().out) == document


def test_inspect_shows_what_a_box_was_made_of(server: FakeServer, boxlite: Boxlite, capsys: Capture) -> None:
    made_of = {
        "entrypoint": ["sh"],
        "cmd": None,
        "env": {"A": "1=2", "HIDDEN": None},
        "volumes": [
            {"managed_volume": "data", "host_path": None, "guest_path": "/data", "read_only": False},
            {"managed_volume": None, "host_path": "/srv/x", "guest_path": "/x", "read_only": True},
        ],
        "working_dir": "/tmp",
        "user": "1:2",
        "tty": True,
        "network_mode": "disabled",
        "advanced": {"capabilities": {"add": ["SYS_PTRACE"], "drop": []}},
    }
    server.on("GET", "/v1/boxes/web", (200, box(1, "web", **made_of)))
    assert boxlite("inspect", "web") == 0
    (document,) = json.loads(capsys.readouterr().out)
    assert document["Config"] == {
        "Image": "alpine:latest",
        "Labels": {},
        "Env": ["A=1=2", "HIDDEN"],
        "Cmd": None,
        "Entrypoint": ["sh"],
        "WorkingDir": "/tmp",
        "User": "1:2",
        "Tty": True,
    }
    assert document["HostConfig"] == {"NetworkMode": "none", "CapAdd": ["SYS_PTRACE"], "CapDrop": []}
    assert document["Mounts"] == [
        {"Type": "volume", "Name": "data", "Destination": "/data", "RW": True},
        {"Type": "bind", "Source": "/srv/x", "Destination": "/x", "RW": False},
    ]


def test_port_as_in_docker(server: FakeServer, boxlite: Boxlite, capsys: Capture) -> None:
    server.on("GET", "/v1/boxes/web", (200, BOXES[0]))
    assert boxlite("port", "web") == 0
    assert capsys.readouterr().out.splitlines() == [
        "443/tcp -> 10.0.0.5:8443",
        "80/tcp -> 127.0.0.1:49153",
        "53/udp -> 127.0.0.1:49154",
    ]
    for asked, address in (("80", "127.0.0.1:49153"), ("443/tcp", "10.0.0.5:8443"), ("53/udp", "127.0.0.1:49154")):
        assert boxlite("port", "web", asked) == 0
        assert capsys.readouterr().out == f"{address}\n"
    assert boxlite("port", "web", "53") == 1
    assert capsys.readouterr().err == "Error: box 'web' has no published port 53/tcp\n"


def test_port_of_a_box_that_does_not_run(server: FakeServer, boxlite: Boxlite, capsys: Capture) -> None:
    server.on("GET", "/v1/boxes/idle", (200, BOXES[3]))
    assert boxlite("port", "idle") == 0
    assert capsys.readouterr().out == ""
    assert boxlite("port", "idle", "443") == 1
    assert capsys.readouterr().err == "Error: box 'idle' has no published port 443/tcp; the box is configured\n"


@pytest.mark.parametrize("port", ["web", "80/sctp", "80/"])
def test_ports_that_are_none(server: FakeServer, boxlite: Boxlite, port: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        boxlite("port", "web", port)
