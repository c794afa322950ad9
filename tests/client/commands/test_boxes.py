"""The commands on boxes: what they send, what they print, how they fail."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from support.fake_server import BOX, FakeServer, error

from boxlite_server.client.commands import stats

Boxlite = Callable[..., int]
ID = BOX["box_id"]


def test_create_sends_every_flag_and_prints_the_id(
    server: FakeServer, boxlite: Boxlite, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INHERITED", "from here")
    monkeypatch.delenv("UNSET", raising=False)
    server.on("POST", "/v1/boxes", (201, BOX))
    flags = "--name web -e A=1=2 --env INHERITED -e UNSET -w /tmp --entrypoint sh -u 1:2 --cpus 2 --memory 512"
    more = "--disk-size 3 --network disabled --label k=v --label empty= --rm"
    assert boxlite("create", *flags.split(), *more.split(), "alpine:latest", "ls", "-l", "--debug") == 0
    assert capsys.readouterr().out == f"{ID}\n"
    assert server.requests[0].body == {
        "image": "alpine:latest",
        "network": {"mode": "disabled"},
        "detach": True,
        "name": "web",
        "env": {"A": "1=2", "INHERITED": "from here"},
        "working_dir": "/tmp",
        "entrypoint": ["sh"],
        "user": "1:2",
        "cpus": 2,
        "memory_mib": 512,
        "disk_size_gb": 3,
        "labels": {"k": "v", "empty": ""},
        "cmd": ["ls", "-l", "--debug"],
        "auto_remove": True,
    }


def test_create_of_an_image_alone_sends_nothing_it_was_not_told(server: FakeServer, boxlite: Boxlite) -> None:
    server.on("POST", "/v1/boxes", (201, BOX))
    assert boxlite("create", "alpine:latest") == 0
    assert server.requests[0].body == {"image": "alpine:latest", "network": {"mode": "enabled"}, "detach": True}


@pytest.mark.parametrize(
    ("flags", "sent"),
    [
        ("-m 512m", {"memory_mib": 512}),
        ("-m 2G", {"memory_mib": 2048}),
        ("--memory 1.5gib", {"memory_mib": 1536}),
        ("-m 131073k", {"memory_mib": 129}),
        ("-m 268435456b", {"memory_mib": 256}),
        ("-m 300", {"memory_mib": 300}),
        ("-l team=blue -l bare -l a=b=c", {"labels": {"team": "blue", "bare": "", "a": "b=c"}}),
        ("--network none", {"network": {"mode": "disabled"}}),
        ("--net none", {"network": {"mode": "disabled"}}),
        ("--network bridge", {"network": {"mode": "enabled"}}),
        ("--allow-net a.example --allow-net b", {"network": {"mode": "enabled", "allow_net": ["a.example", "b"]}}),
        ("--inbound enabled", {"network": {"outbound": {"mode": "enabled"}, "inbound": {"mode": "enabled"}}}),
    ],
)
def test_what_dockers_users_type(server: FakeServer, boxlite: Boxlite, flags: str, sent: dict[str, object]) -> None:
    server.on("POST", "/v1/boxes", (201, BOX))
    assert boxlite("create", *flags.split(), "alpine") == 0
    assert sent.items() <= server.requests[0].body.items()


@pytest.mark.parametrize("words", [["ls", "-l"], ["--", "ls", "-l"]])
def test_two_dashes_in_front_of_a_command_are_no_part_of_it(
    server: FakeServer, boxlite: Boxlite, words: list[str]
) -> None:
    server.on("POST", "/v1/boxes", (201, BOX))
    assert boxlite("create", "alpine", *words) == 0
    assert server.requests[0].body["cmd"] == ["ls", "-l"]


def test_a_root_file_system_takes_the_place_of_the_image(server: FakeServer, boxlite: Boxlite) -> None:
    server.on("POST", "/v1/boxes", (201, BOX))
    assert boxlite("create", "--rootfs", "/srv/root", "sh") == 0
    body = server.requests[0].body
    assert (body["rootfs_path"], body["cmd"], "image" in body) == ("/srv/root", ["sh"], False)


def test_environment_files_as_docker_reads_them(
    server: FakeServer, boxlite: Boxlite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INHERITED", "from here")
    monkeypatch.delenv("UNSET", raising=False)
    one, two = tmp_path / "one.env", tmp_path / "two.env"
    one.write_text('\ufeff# a comment\n\n  A=1=2\nQUOTED="kept"\nSPACE= x \nINHERITED\nUNSET\nBOTH=one\n', "utf-8")
    two.write_text("BOTH=two\nFLAG=file")
    server.on("POST", "/v1/boxes", (201, BOX))
    flags = ["--env-file", str(one), "-e", "FLAG=flag", "--env-file", str(two)]
    assert boxlite("create", *flags, "alpine") == 0
    assert server.requests[0].body["env"] == {
        "A": "1=2",
        "QUOTED": '"kept"',
        "SPACE": " x ",
        "INHERITED": "from here",
        "BOTH": "two",
        "FLAG": "flag",
    }


@pytest.mark.parametrize(
    ("text", "said"), [(b"A B=1\n", "line 1 is not KEY=VALUE"), (b"=1", "line 1"), (b"\xff", "utf-8")]
)
def test_environment_files_that_cannot_be_used(
    server: FakeServer, boxlite: Boxlite, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: bytes, said: str
) -> None:
    file = tmp_path / "bad.env"
    file.write_bytes(text)
    assert boxlite("exec", "--env-file", str(file), "web", "true") == 125
    assert said in capsys.readouterr().err
    assert boxlite("create", "--env-file", str(tmp_path / "nosuch"), "alpine") == 1
    assert "nosuch: No such file or directory" in capsys.readouterr().err
    assert not server.requests


@pytest.mark.parametrize(
    ("signal", "number"),
    [
        ("HUP", 1),
        ("SIGHUP", 1),
        ("sigterm", 15),
        ("10", 10),
        ("CLD", 17),
        ("SYS", 31),
        ("RTMIN+3", 37),
        ("SIGRTMAX-1", 63),
    ],
)
def test_kill_sends_a_signal_by_name_or_number(
    server: FakeServer, boxlite: Boxlite, capsys: pytest.CaptureFixture[str], signal: str, number: int
) -> None:
    server.on("POST", "/v1/boxes/web/signal", (204, b""))
    assert boxlite("kill", "-s", signal, "web") == 0
    assert [seen.body for seen in server.requests] == [{"signal": number}]
    assert capsys.readouterr().out == "web\n"


def test_kill_kills_and_waits_for_the_end(
    server: FakeServer, boxlite: Boxlite, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = {"status": "stopped", "exit_code": 137}
    server.on("POST", "/v1/boxes/web/signal", (204, b""))
    server.on("POST", "/v1/boxes/short/signal", (204, b""))
    path = "/v1/boxes/web/wait?until=stopped&timeout=60"
    server.on("GET", path, (200, {"reached": False, "box": BOX}), (200, {"reached": True, "box": BOX | stopped}))
    assert boxlite("kill", "web", "gone", "short") == 1  # "short" is removed when it stops
    assert [seen.body for seen in server.requests if seen.method == "POST"] == [{"signal": 9}] * 3
    assert server.lines.count(f"GET {path}") == 2
    output = capsys.readouterr()
    assert (output.out, output.err) == ("web\nshort\n", "Error: no such box\n")


@pytest.mark.parametrize("text", ["BOGUS", "SIG", "0", "65", "-1", "9.0", "", "KILLALL"])
def test_what_is_no_signal_is_sent_to_nobody(
    server: FakeServer, boxlite: Boxlite, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        boxlite("kill", f"--signal={text}", "web")
    assert f"'{text}' is no signal; write a name such as HUP" in capsys.readouterr().err
    assert not server.requests


def test_rename_and_update_change_what_they_are_told(server: FakeServer, boxlite: Boxlite) -> None:
    server.on("PATCH", "/v1/boxes/web", (200, BOX))
    server.on("GET", "/v1/boxes/web", (200, BOX))
    assert boxlite("rename", "web", "web-2") == 0
    assert boxlite("update", "--cpus", "2", "-m", "1g", "-l", "a=b", "--auto-stop", "15m", "web") == 0
    assert boxlite("update", "--no-auto-resume", "--auto-delete", "0", "web") == 0
    assert boxlite("update", "-l", "new", "--label-rm", "team", "web") == 0
    assert [seen.body for seen in server.requests if seen.method == "PATCH"] == [
        {"name": "web-2"},
        {"cpus": 2, "memory_mib": 1024, "labels": {"team": "a", "a": "b"}, "auto_stop": 900},
        {"auto_delete": 0, "auto_resume": False},
        {"labels": {"new": ""}},
    ]


def test_wait_asks_until_the_box_has_stopped(
    server: FakeServer, boxlite: Boxlite, capsys: pytest.CaptureFixture[str]
) -> None:
    path = "/v1/boxes/web/wait?until=stopped&timeout=60"
    stopped = BOX | {"status": "stopped", "exit_code": 3}
    server.on("GET", path, (200, {"reached": False, "box": BOX}), (200, {"reached": True, "box": stopped}))
    server.on("GET", path.replace("web", "short"), (200, {"reached": True}))
    assert boxlite("wait", "web", "gone", "short") == 1
    output = capsys.readouterr()
    assert output.out == "3\n"
    assert output.err == "Error: no such box\nError: box 'short' was removed, and its exit code with it\n"
    assert server.lines[:2] == [f"GET {path}"] * 2


@pytest.mark.parametrize("where", ["before", "after"])
def test_global_options_stand_before_or_after_the_command(
    server: FakeServer, boxlite: Boxlite, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOXLITE_REST_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("BOXLITE_REST_PATH_PREFIX", "overridden")
    server.on("GET", "/api/v1/us/team%201/boxes", (200, {"boxes": []}))
    options = ["--url", f"{server.url}/api/", "--path-prefix", "us/team 1"]
    assert boxlite(*options, "list") == 0 if where == "before" else boxlite("list", *options) == 0
    assert server.lines == ["GET /api/v1/us/team%201/boxes"]


def test_environment_gives_key_and_prefix(
    server: FakeServer, boxlite: Boxlite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOXLITE_API_KEY", "s3cret")
    monkeypatch.setenv("BOXLITE_REST_PATH_PREFIX", "acme")
    server.on("GET", "/v1/acme/boxes", (200, {"boxes": []}))
    assert boxlite("ls") == 0
    assert server.requests[0].headers["authorization"] == "Bearer s3cret"


def test_without_a_key_nothing_is_authorized(server: FakeServer, boxlite: Boxlite) -> None:
    server.on("GET", "/v1/boxes", (200, {"boxes": []}))
    assert boxlite("ps") == 0
    assert "authorization" not in server.requests[0].headers


def _boxes() -> dict[str, object]:
    stopped = BOX | {"box_id": "Stopped12345", "name": None, "status": "stopped", "created_at": "2026-01-03T00:00:00Z"}
    return {"boxes": [BOX, stopped], "next_page_token": None}


def test_list_shows_active_boxes_in_columns(
    server: FakeServer, boxlite: Boxlite, capsys: pytest.CaptureFixture[str]
) -> None:
    server.on("GET", "/v1/boxes", (200, _boxes()))
    assert boxlite("list") == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"]
    assert row.split()[:2] == [ID, "alpine:latest"]
    assert header.index("STATUS") == row.index("running")
    assert header.index("NAMES") == row.index("web")


def test_list_all_quiet_prints_ids_newest_first(
    server: FakeServer, boxlite: Boxlite, capsys: pytest.CaptureFixture[str]
) -> None:
    server.on("GET", "/v1/boxes", (200, _boxes()))
    assert boxlite("ls", "-aq") == 0
    assert capsys.readouterr().out == f"Stopped12345\n{ID}\n"


def test_list_follows_pages_on_one_connection(
    server: FakeServer, boxlite: Boxlite, capsys: pytest.CaptureFixture[str]
) -> None:
    server.on("GET", "/v1/boxes", (200, {"boxes": [BOX], "next_page_token": "a/b"}))
    server.on("GET", "/v1/boxes?pageToken=a%2Fb", (200, {"boxes": [BOX | {"box_id": "Second"}]}))
    assert boxlite("list", "--format", "json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["ID"] for row in rows] == [ID, "Second"]
    assert rows[0] == {
        "ID": ID,
        "Image": "alpine:latest",
        "Command": "",
        "Status": "running",
        "CreatedAt": "2026-01-01T00:00:00Z",
        "Ports": "",
        "Names": "web",
    }
    assert server.connections == 1


def test_inspect_prints_what_it_finds_and_reports_the_rest(
    server: FakeServer, boxlite: Boxlite, capsys: pytest.CaptureFixture[str]
) -> None:
    server.on("GET", "/v1/boxes/web", (200, BOX))
    assert boxlite("inspect", "gone", "web") == 1
    output = capsys.readouterr()
    (document,) = json.loads(output.out)
    assert document["Id"] == ID
    assert document["State"] == {
        "Status": "running",
        "Running": True,
        "Pid": 4242,
        "ExitCode": 0,
        "StartedAt": None,
    }
    assert document["Memory"] == 512 * 1024 * 1024
    assert document["Config"]["Labels"] == {"team": "a"}
    assert output.err == "Error: no such box\n"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{.State.Status}}", "running"),
        ("{{ .Name }}={{.ID}}", f"web={ID}"),
        ("{{json .Config.Labels}}", '{"team": "a"}'),
        ("{{.memory_mib}} {{.State.Running}} {{.exit_code}}", "512 true <nil>"),
    ],
)
def test_inspect_fills_a_template(
    server: FakeServer, boxlite: Boxlite, capsys: pytest.CaptureFixture[str], template: str, text: str
) -> None:
    server.on("GET", "/v1/boxes/web", (200, BOX))
    assert boxlite("inspect", "-f", template, "web") == 0
    assert capsys.readouterr().out == f"{text}\n"


@pytest.mark.parametrize("template", ["{{.Nope}}", "{{range .Config}}", "{{.Name}} }}"])
def test_inspect_refuses_a_template_it_cannot_fill(
    server: FakeServer, boxlite: Boxlite, capsys: pytest.CaptureFixture[str], template: str
) -> None:
    server.on("GET", "/v1/boxes/web", (200, BOX))
    assert boxlite("inspect", "-f", template, "web") == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("Error: template")


def test_inspect_latest(server: FakeServer, boxlite: Boxlite, capsys: pytest.CaptureFixture[str]) -> None:
    server.on("GET", "/v1/boxes", (200, _boxes()), (200, {"boxes": []}))
    server.on("GET", "/v1/boxes/Stopped12345", (200, BOX | {"box_id": "Stopped12345"}))
    assert boxlite("inspect", "--latest", "--format", "{{.Id}}") == 0
    assert capsys.readouterr().out == "Stopped12345\n"
    assert boxlite("inspect", "-l") == 1
    assert capsys.readouterr().err == "Error: no boxes to inspect\n"


def test_every_target_is_tried(server: FakeServer, boxlite: Boxlite, capsys: pytest.CaptureFixture[str]) -> None:
    for box in ("a", "c"):
        server.on("POST", f"/v1/boxes/{box}/start", (200, BOX))
    server.on("POST", "/v1/boxes/b/start", (409, error("invalid_state", "box 'b' is being removed")))
    assert boxlite("start", "a", "b", "c") == 1
    output = capsys.readouterr()
    assert output.out == "a\nc\n"
    assert output.err == "Error: box 'b' is being removed\n"


def test_stop_and_restart_pass_the_time_on(server: FakeServer, boxlite: Boxlite) -> None:
    server.on("POST", "/v1/boxes/web/stop", (200, BOX))
    server.on("POST", "/v1/boxes/web/start", (200, BOX))
    assert boxlite("stop", "web") == 0
    assert boxlite("stop", "-t", "1.5", "web") == 0
    assert boxlite("restart", "--timeout", "0", "web") == 0
    assert [seen.body for seen in server.requests] == [None, {"timeout_seconds": 1.5}, {"timeout_seconds": 0}, None]
    assert server.lines[2:] == ["POST /v1/boxes/web/stop", "POST /v1/boxes/web/start"]


def test_restart_does_not_start_what_did_not_stop(server: FakeServer, boxlite: Boxlite) -> None:
    server.on("POST", "/v1/boxes/web/stop", (503, error("upstream_unavailable", "the worker is away")))
    assert boxlite("restart", "web") == 1
    assert server.lines == ["POST /v1/boxes/web/stop"]


def test_rm_says_force_both_ways(server: FakeServer, boxlite: Boxlite, capsys: pytest.CaptureFixture[str]) -> None:
    server.on("DELETE", "/v1/boxes/web?force=false", (204, None))
    server.on("DELETE", "/v1/boxes/a%2Fb?force=true", (204, None))
    assert boxlite("rm", "web") == 0
    assert boxlite("rm", "--force", "a/b") == 0
    assert capsys.readouterr().out == "web\na/b\n"


def test_rm_all_asks_first(server: FakeServer, popen: Callable[..., subprocess.Popen[bytes]]) -> None:
    server.on("GET", "/v1/boxes", (200, {"boxes": [BOX]}))
    server.on("DELETE", f"/v1/boxes/{ID}?force=false", (204, None))
    refused = popen("rm", "--all")
    assert refused.communicate(b"n\n")[0] == b""
    assert refused.returncode == 1
    assert len(server.requests) == 1
    accepted = popen("rm", "--all")
    assert accepted.communicate(b"y\n")[0] == f"{ID}\n".encode()
    assert accepted.returncode == 0


def test_rm_all_by_force_asks_nothing(server: FakeServer, boxlite: Boxlite) -> None:
    server.on("GET", "/v1/boxes", (200, {"boxes": [BOX]}))
    server.on("DELETE", f"/v1/boxes/{ID}?force=true", (204, None))
    assert boxlite("rm", "-af") == 0


def test_info_counts(server: FakeServer, boxlite: Boxlite, capsys: pytest.CaptureFixture[str]) -> None:
    server.on("GET", "/v1/boxes", (200, _boxes()))
    assert boxlite("info") == 0
    assert "boxesTotal: 2\nboxesRunning: 1\nboxesStopped: 1\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("status", "body", "text"),
    [
        (409, error("already_exists", "box 'web' already exists"), "box 'web' already exists"),
        (409, {"error": {"message": "taken", "type": "X", "code": 409}}, "taken"),
        (400, {"message": "flat,\nin two lines", "code": "invalid_argument"}, "flat, in two lines"),
        (502, b"<html>\nBad gateway", "<html>"),
        (500, b"", "the server answered 500 Internal Server Error"),
        (500, ["?"], '["?"]'),
        (200, b"hello", "the server's answer is not a JSON object; is --url a BoxLite server?"),
    ],
)
def test_an_error_is_one_line(
    server: FakeServer, boxlite: Boxlite, capsys: pytest.CaptureFixture[str], status: int, body: object, text: str
) -> None:
    server.on("POST", "/v1/boxes", (status, body))
    assert boxlite("create", "alpine") == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == f"Error: {text}\n"


def test_unreachable_server(server: FakeServer, boxlite: Boxlite, capsys: pytest.CaptureFixture[str]) -> None:
    assert boxlite("--url", "http://127.0.0.1:1", "ls") == 1
    assert capsys.readouterr().err == (
        "Error: cannot reach http://127.0.0.1:1: Connection refused; "
        "is the coordinator running? set --url or BOXLITE_REST_URL\n"
    )
    assert boxlite("--url", "http://127.0.0.1:1", "run", "alpine") == 125


@pytest.mark.parametrize(
    "line",
    [
        "",
        "nonsense",
        "create",
        "create --cpus 0 alpine",
        "create --memory 1x alpine",
        "create --memory 0m alpine",
        "create --label =value alpine",
        "create --network maybe alpine",
        "list -q --format json",
        "list --format xml",
        "inspect",
        "inspect --latest web",
        "inspect -f xml web",
        "rm",
        "rm -a web",
        "stop -t -1 web",
        "--url ftp://x ls",
        "--url http://x:port ls",
    ],
)
def test_wrong_usage_exits_2(server: FakeServer, boxlite: Boxlite, line: str) -> None:
    with pytest.raises(SystemExit) as exit_:
        boxlite(*line.split())
    assert exit_.value.code == 2
    assert not server.requests


@pytest.mark.parametrize(
    "line",
    [
        "exec web",
        "exec web --",
        "exec web -it -- sh",
        "exec -i -d web -- sh",
        "run -i -d alpine",
        "run --rm --auto-stop 5 alpine",
        "run --nmae web alpine",
        "run",
        "--url ftp://x run alpine",
        "attach",
    ],
)
def test_wrong_usage_where_exit_codes_are_those_of_commands_exits_125(
    server: FakeServer, boxlite: Boxlite, line: str
) -> None:
    with pytest.raises(SystemExit) as exit_:
        boxlite(*line.split())
    assert exit_.value.code == 125
    assert not server.requests


def test_output_into_a_closed_pipe_is_quiet(server: FakeServer, popen: Callable[..., subprocess.Popen[bytes]]) -> None:
    server.on("GET", "/v1/boxes", (200, {"boxes": [BOX] * 5000}))
    process = popen("list")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait() == 141


@pytest.mark.parametrize(
    ("flags", "sent"),
    [
        ("--auto-stop 90", {"auto_stop": 90}),
        ("--auto-stop 15m --auto-delete 7d", {"auto_stop": 900, "auto_delete": 604800}),
        ("--auto-stop 0 --auto-delete 0s", {"auto_stop": 0, "auto_delete": 0}),
        ("--auto-stop 1h30m --auto-delete 1d12h", {"auto_stop": 5400, "auto_delete": 129600}),
        ("--no-auto-resume --auto-delete 2h", {"auto_resume": False, "auto_delete": 7200}),
    ],
)
def test_lifetimes_are_sent_in_seconds(
    server: FakeServer, boxlite: Boxlite, flags: str, sent: dict[str, object]
) -> None:
    server.on("POST", "/v1/boxes", (201, BOX))
    assert boxlite("create", *flags.split(), "alpine:latest") == 0
    assert sent.items() <= server.requests[0].body.items()


@pytest.mark.parametrize(
    "flags",
    [
        "--auto-stop 5x",
        "--auto-stop 1h5",
        "--auto-stop 5m1h",
        "--auto-stop -1",
        "--auto-delete m",
        "--rm --auto-delete 5",
    ],
)
def test_lifetimes_that_cannot_be(server: FakeServer, boxlite: Boxlite, flags: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        boxlite("create", *flags.split(), "alpine:latest")
    assert server.requests == []


METRICS = {
    "commands_executed_total": 3,
    "exec_errors_total": 1,
    "bytes_sent_total": 0,
    "bytes_received_total": 1536,
    "cpu_percent": 12.34,
    "memory_bytes": 5 << 20,
    "network_bytes_sent": None,
    "network_bytes_received": None,
}


def test_stats_as_a_table_and_as_json(server: FakeServer, boxlite: Boxlite, capsys: pytest.CaptureFixture[str]) -> None:
    server.on("GET", "/v1/boxes/web", (200, BOX))
    server.on("GET", f"/v1/boxes/{ID}/metrics", (200, METRICS))
    assert boxlite("stats", "web") == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["BOX", "CPU", "%", "MEMORY"]
    assert row.split()[:2] == ["web", "12.3"]
    assert "5.0 MiB" in row
    assert "1.5 KiB" in row
    assert row.split().count("-") == 2
    assert boxlite("stats", "web", "--format", "json") == 0
    assert json.loads(capsys.readouterr().out) == METRICS


def test_stats_of_all_boxes_that_run(server: FakeServer, boxlite: Boxlite, capsys: pytest.CaptureFixture[str]) -> None:
    server.on("GET", "/v1/boxes", (200, _boxes()))
    server.on("GET", f"/v1/boxes/{ID}/metrics", (200, METRICS))
    assert boxlite("stats", "--no-stream") == 0
    _, row = capsys.readouterr().out.splitlines()
    assert row.split()[:2] == ["web", "12.3"]
    assert boxlite("stats", "--no-stream", "--format", "yaml") == 0
    assert yaml.safe_load(capsys.readouterr().out) == [{"box_id": ID, "name": "web", **METRICS}]
    with pytest.raises(SystemExit, match="2"):
        boxlite("stats", "--no-stream", "--stream")


def test_stats_stream_until_the_box_is_gone(
    server: FakeServer, boxlite: Boxlite, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats, "STREAM_SECONDS", 0)
    server.on("GET", "/v1/boxes/web", (200, BOX))
    gone = (404, error("not_found", "box not found: web"))
    server.on("GET", f"/v1/boxes/{ID}/metrics", (200, METRICS), (200, METRICS), gone)
    assert boxlite("stats", "-s", "web", "--format", "json") == 1
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [METRICS, METRICS]
