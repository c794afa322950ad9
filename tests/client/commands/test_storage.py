"""The commands on images and volumes, and the flags for mounts, ports and capabilities."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import pytest
from support.fake_server import BOX, FakeServer, error

Boxlite = Callable[..., int]
Capture = pytest.CaptureFixture[str]

IMAGE = {
    "reference": "docker.io/library/alpine:latest",
    "repository": "docker.io/library/alpine",
    "tag": "latest",
    "id": "sha256:" + "9a3fbc2e7d51" * 5 + "0000",
    "cached_at": "2020-01-01T00:00:00Z",
    "size_bytes": 8192000,
}
OTHER = IMAGE | {"repository": "ghcr.io/me/tool", "tag": "", "id": "sha256:" + "b" * 64, "size_bytes": None}
VOLUME = {"id": "V0lume000001", "name": "data", "created_at": "2020-01-01T00:00:00Z", "size_bytes": None}


@pytest.mark.parametrize(
    ("flags", "fields"),
    [
        (
            "-v data:/data --volume data:/ro:ro -v /srv/x:/x:rw",
            {
                "volumes": [
                    {"managed_volume": "data", "guest_path": "/data", "read_only": False},
                    {"managed_volume": "data", "guest_path": "/ro", "read_only": True},
                    {"host_path": "/srv/x", "guest_path": "/x", "read_only": False},
                ]
            },
        ),
        (
            "-p 80 -p 8080:80 -p 0.0.0.0:8080:80/tcp -p [::1]::53/udp --publish :81",
            {
                "ports": [
                    {"guest_port": 80},
                    {"guest_port": 80, "host_port": 8080},
                    {"guest_port": 80, "host_port": 8080, "host_ip": "0.0.0.0", "protocol": "tcp"},
                    {"guest_port": 53, "host_ip": "::1", "protocol": "udp"},
                    {"guest_port": 81},
                ]
            },
        ),
        (
            "--cap-add SYS_PTRACE --cap-add cap_chown --cap-drop ALL",
            {"advanced": {"capabilities": {"add": ["SYS_PTRACE", "cap_chown"], "drop": ["ALL"]}}},
        ),
        ("--security development", {"security": "development"}),
        ("--cap-drop net_raw", {"advanced": {"capabilities": {"drop": ["net_raw"]}}}),
    ],
)
def test_what_the_flags_of_create_send(server: FakeServer, boxlite: Boxlite, flags: str, fields: object) -> None:
    server.on("POST", "/v1/boxes", (201, BOX))
    assert boxlite("create", *flags.split(), "alpine") == 0
    body = server.requests[0].body
    assert {key: body[key] for key in ("volumes", "ports", "advanced", "security") if key in body} == fields


@pytest.mark.parametrize(("flags", "mode"), [("", "disabled"), ("--network enabled", "enabled")])
def test_a_box_of_the_maximum_has_a_network_only_if_asked(
    server: FakeServer, boxlite: Boxlite, flags: str, mode: str
) -> None:
    server.on("POST", "/v1/boxes", (201, BOX))
    assert boxlite("create", "--security", "maximum", *flags.split(), "alpine") == 0
    assert server.requests[0].body["network"] == {"mode": mode}


@pytest.mark.parametrize(
    "flags",
    [
        "-v data",
        "-v /data",
        "-v :/data",
        "-v data:data",
        "-v data:/d:rox",
        "-v ./data:/d",
        "-v ~:/d",
        "-v a:/b:ro:c",
        "-p web",
        "-p 0",
        "-p 70000",
        "-p 80/sctp",
        "-p 1:2:3",
        "-p 65536:80",
    ],
)
def test_flags_that_mean_nothing(server: FakeServer, boxlite: Boxlite, flags: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as exit_:
        boxlite("create", *flags.split(), "alpine")
    assert exit_.value.code == 2
    assert flags.split()[1] in capsys.readouterr().err
    assert not server.requests


def test_images_in_each_shape(server: FakeServer, boxlite: Boxlite, capsys: Capture) -> None:
    server.on("GET", "/v1/images", (200, {"images": [IMAGE], "next_page_token": "a b"}))
    server.on("GET", "/v1/images?pageToken=a+b", (200, {"images": [OTHER], "next_page_token": None}))
    assert boxlite("images") == 0
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "CACHED", "SIZE"]
    assert first.split()[:3] == ["alpine", "latest", "9a3fbc2e7d51"]
    assert first.endswith("7.8 MiB")
    assert second.split()[:3] == ["ghcr.io/me/tool", "<none>", "b" * 12]
    assert boxlite("images", "-q") == 0
    assert capsys.readouterr().out.split() == [IMAGE["id"], OTHER["id"]]
    assert boxlite("images", "--format", "json") == 0
    assert json.loads(capsys.readouterr().out) == [IMAGE, OTHER]


def test_rmi_tries_each_image(server: FakeServer, boxlite: Boxlite, capsys: Capture) -> None:
    server.on("DELETE", "/v1/images/ghcr.io%2Fme%2Ftool%3A1", (204, None))
    server.on("DELETE", "/v1/images/used", (409, error("invalid_state", "image used is used by box web")))
    assert boxlite("rmi", "ghcr.io/me/tool:1", "gone", "used") == 1
    output = capsys.readouterr()
    assert output.out == "ghcr.io/me/tool:1\n"
    assert output.err == "Error: no such box\nError: image used is used by box web\n"
    assert boxlite("rmi", "--force", "gone") == 0


def lines(*events: object) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


@pytest.mark.parametrize("answer", [IMAGE, lines({"current_bytes": 1, "total_bytes": 9}, {"image": IMAGE})])
def test_pull(server: FakeServer, boxlite: Boxlite, capsys: Capture, answer: object) -> None:
    """Of a server that tells the progress, and of one that knows only the end."""
    server.on("POST", "/v1/images/pull", (200, answer))
    assert boxlite("pull", "alpine") == 0
    assert server.requests[0].body == {"reference": "alpine"}
    assert "application/x-ndjson" in server.requests[0].headers["accept"]
    shown = capsys.readouterr()
    assert shown.out == f"{IMAGE['reference']}  {IMAGE['id']}  7.8 MiB\n"
    assert shown.err == ""  # no terminal, no progress
    assert boxlite("pull", "-q", "alpine") == 0
    assert capsys.readouterr().out == f"{IMAGE['id']}\n"


def test_pull_shows_progress_in_a_terminal(
    server: FakeServer, boxlite: Boxlite, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    steps = [{"current_bytes": at << 20, "total_bytes": 4 << 20} for at in (1, 2, 4)]
    server.on("POST", "/v1/images/pull", (200, lines(*steps, {"image": IMAGE})))
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    assert boxlite("pull", "alpine") == 0
    assert "Pulling alpine" in terminal.getvalue()
    assert "100%  4.0 MiB / 4.0 MiB" in terminal.getvalue()


@pytest.mark.parametrize(
    ("status", "answer", "text"),
    [
        (422, error("image_pull_failed", "manifest unknown"), "manifest unknown"),
        (200, lines({"current_bytes": 1, "total_bytes": 9}, error("image_pull_failed", "no space")), "no space"),
        (200, lines({"current_bytes": 1, "total_bytes": 9}), "the server broke off"),
    ],
)
def test_pulls_that_fail(
    server: FakeServer, boxlite: Boxlite, capsys: Capture, status: int, answer: object, text: str
) -> None:
    server.on("POST", "/v1/images/pull", (status, answer))
    assert boxlite("pull", "alpine") == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"Error: {text}")


def test_volumes(server: FakeServer, boxlite: Boxlite, capsys: Capture) -> None:
    server.on("POST", "/v1/volumes", (201, VOLUME))
    assert boxlite("volume", "create") == 0
    assert boxlite("volume", "create", "--name", "data") == 0
    assert [seen.body for seen in server.requests] == [{}, {"name": "data"}]
    assert capsys.readouterr().out == f"{VOLUME['id']}\n" * 2
    server.on("GET", "/v1/volumes", (200, {"volumes": [VOLUME]}))
    assert boxlite("volume", "ls") == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["ID", "NAME", "CREATED"]
    assert row.split()[:2] == [VOLUME["id"], "data"]
    assert boxlite("volume", "list", "-q") == 0
    assert capsys.readouterr().out == f"{VOLUME['id']}\n"
    server.on("GET", "/v1/volumes/data", (200, VOLUME))
    assert boxlite("volume", "inspect", "data", "--format", "json") == 0
    assert json.loads(capsys.readouterr().out) == VOLUME
    assert boxlite("volume", "get", "data") == 0
    assert VOLUME["id"] in capsys.readouterr().out


def test_removal_goes_on_after_a_failure(server: FakeServer, boxlite: Boxlite, capsys: Capture) -> None:
    server.on("DELETE", "/v1/volumes/a?force=false", (409, error("invalid_state", "in use")))
    server.on("DELETE", "/v1/volumes/b?force=false", (204, None))
    assert boxlite("volume", "rm", "a", "b") == 1
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("b\n", "Error: in use\n")
    server.on("DELETE", "/v1/volumes/c?force=true", (204, None))
    assert boxlite("volume", "rm", "-f", "c") == 0


def test_the_server_may_be_named_behind_the_command(server: FakeServer, boxlite: Boxlite) -> None:
    server.on("GET", "/v1/acme/volumes", (200, {"volumes": []}))
    assert boxlite("volume", "ls", "--path-prefix", "acme") == 0
