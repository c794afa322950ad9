"""What users of docker type, with the installed `boxlite` command, against real processes and a real engine."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import tarfile
import termios
from collections.abc import Callable, Iterator
from datetime import datetime
from io import BytesIO
from pathlib import Path

import pytest
import yaml
from support.boxes import execute, start, state, status_of
from support.cluster import Cluster, wait_until

BOXLITE = str(Path(sys.executable).with_name("boxlite"))
DETACH = b"\x10\x11"


class Terminal:
    """A terminal of its own in which `boxlite` runs."""

    def __init__(self, environment: dict[str, str], *words: str) -> None:
        self.shown = b""
        self._child, self._terminal = pty.fork()
        if self._child == 0:
            os.execve(BOXLITE, [BOXLITE, *words], environment)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._terminal)

    def is_raw(self) -> bool:
        return not termios.tcgetattr(self._terminal)[3] & termios.ECHO

    def press(self, keys: bytes) -> None:
        os.write(self._terminal, keys)

    def until(self, text: bytes) -> None:
        while text not in self.shown:
            self.shown += os.read(self._terminal, 4096)

    def exit_code(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1])


Type = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def environment(cluster: Cluster, tmp_path: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("BOXLITE_")}
    return {**kept, "BOXLITE_REST_URL": cluster.url, "HOME": str(tmp_path)}


@pytest.fixture
def typed(environment: dict[str, str], tmp_path: Path) -> Type:
    """Runs a command line, given as one text or as words."""

    def run(*words: str, stdin: bytes = b"", **variables: str) -> subprocess.CompletedProcess[bytes]:
        line = words[0].split() if len(words) == 1 else words
        return subprocess.run(
            [BOXLITE, *line],
            input=stdin,
            capture_output=True,
            cwd=tmp_path,
            env=environment | variables,
            timeout=120,
            check=False,
        )

    return run


@pytest.fixture
def says(typed: Type) -> Callable[..., str]:
    """Runs a command line that has to succeed; its output."""

    def run(*words: str, **options: object) -> str:
        done = typed(*words, **options)
        assert (done.returncode, done.stderr) == (0, b"")
        return str(done.stdout.decode().rstrip("\n"))

    return run


Says = Callable[..., str]


@pytest.fixture
def web(says: Says, cluster: Cluster, test_image: str) -> Iterator[str]:
    """A running box with a shell that waits for input, and prints what it gets."""
    script = "while read word; do echo got $word; done; echo over; exit 7"
    says("run", "-d", "--name", "web", "-m", "128m", "-l", "team=blue", "-p", "80", test_image, "sh", "-c", script)
    yield "web"
    cluster.http("DELETE", "/v1/boxes/web?force=true")


def test_ps_with_filters_and_port(says: Says, web: str, test_image: str) -> None:
    other = says("create", "--network", "none", "-l", "team=red", test_image)
    try:
        assert says("ps -q --no-trunc") == says("ps -aq --filter label=team=blue")
        assert says("ps -aq --filter status=created") == other
        assert says("ps -q --filter status=created --filter label=team=blue") == ""
        assert says("ps", "-aq", "--filter", f"ancestor={test_image}").split() == [other, says("ps -q -f name=web")]
        assert says("ps", "-aq", "--filter", "since=web") == other
        (row,) = yaml.safe_load(says("ps --format yaml"))
        address = says("port web 80")
        assert re.fullmatch(r"127\.0\.0\.1:\d+", address)
        assert row["Ports"] == f"{address}->80/tcp"
        assert says("port web") == f"80/tcp -> {address}"
        assert f"{address}->80/tcp" in says("ps")
    finally:
        says("rm", other)


def test_the_command_of_a_box_is_shown(says: Says, web: str) -> None:
    (row,) = json.loads(says("ps --format json"))
    assert row["Command"].startswith("sh -c while read word")
    assert '"sh -c while read wo…"' in says("ps")
    (document,) = yaml.safe_load(says("inspect web --format yaml"))
    assert (document["Config"]["Cmd"][0], document["HostConfig"]["NetworkMode"]) == ("sh", "bridge")


def test_what_a_box_is_made_of(says: Says, typed: Type, tmp_path: Path, test_image: str) -> None:
    (tmp_path / "web.env").write_text("# for the box\nA=of file\nB=of file\nHOST_ONLY\n")
    line = ("run", "--rm", "--network", "none", "-m", "64m", "--env-file", "web.env", "-e", "B=of flag", test_image)
    done = typed(*line, "sh", "-c", "echo $A, $B, $HOST_ONLY; ls /sys/class/net", HOST_ONLY="inherited")
    assert done.returncode == 125  # docker's number for what the server refuses
    assert b"memory_mib" in done.stderr
    line = tuple("128m" if word == "64m" else word for word in line)
    script = "echo $A, $B, $HOST_ONLY; ls /sys/class/net"
    assert says(*line, "sh", "-c", script, HOST_ONLY="inherited") == "of file, of flag, inherited\nlo"


def test_attach_joins_the_main_command_and_leaves_its_input_open(
    typed: Type, says: Says, cluster: Cluster, web: str, environment: dict[str, str]
) -> None:
    with subprocess.Popen(
        [BOXLITE, "attach", web], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as attached:
        assert attached.stdin is not None
        assert attached.stdout is not None
        attached.stdin.write(b"one\n")
        attached.stdin.flush()
        assert attached.stdout.readline() == b"got one\n"
        assert typed("attach", web).returncode == 125  # another client is attached
        attached.stdin.close()  # which is no end of the command's input
        feeder = execute(cluster, web, "true")
        wait_until(lambda: state(cluster, web, feeder)["status"] == "completed", "another command has ended")
        assert status_of(cluster, web) == "running"
        attached.terminate()  # SIGTERM is passed on, and a shell ends by it
        assert attached.wait(30) == 143
    wait_until(lambda: status_of(cluster, web) == "stopped", "the box has stopped")
    refused = typed("attach", web)
    assert (refused.returncode, refused.stderr) == (
        125,
        b"Error: box 'web' is stopped; start it with 'boxlite start web'\n",
    )


def test_the_keys_that_leave_a_terminal(cluster: Cluster, web: str, environment: dict[str, str]) -> None:
    execution = execute(cluster, web, "echo ready; while read word; do echo got $word; done", tty=True)
    with Terminal(environment, "attach", web, execution) as terminal:
        terminal.until(b"ready")
        terminal.press(b"one\r")
        terminal.until(b"got one")
        terminal.press(DETACH[:1])
        terminal.press(b"two\r")  # Ctrl-P alone is a key like any other
        terminal.until(b"got \x10two")
        terminal.press(DETACH[:1])
        terminal.press(DETACH[1:])
        assert terminal.exit_code() == 0
    assert state(cluster, web, execution)["status"] == "running"
    assert cluster.http("DELETE", f"/v1/boxes/{web}/executions/{execution}")[0] == 204


def test_a_main_command_on_a_terminal_is_left_and_joined_again(
    cluster: Cluster, new_box: Callable[..., str], environment: dict[str, str]
) -> None:
    script = "stty -echo; echo ready; while read word; do echo got $word; done"
    box = new_box(tty=True, cmd=["sh", "-c", script])
    start(cluster, box)
    for word in (b"one", b"two"):
        with Terminal(environment, "attach", box) as terminal:
            wait_until(terminal.is_raw, "keys go to the box")
            terminal.press(word + b"\r")
            terminal.until(b"got " + word)
            assert word not in terminal.shown.replace(b"got " + word, b"")  # nobody echoes the keys
            terminal.press(DETACH)
            assert terminal.exit_code() == 0
    assert status_of(cluster, box) == "running"


def test_rename_and_update(says: Says, typed: Type, web: str) -> None:
    says("update -m 256m -l team=red -l tier=front --auto-stop 15m --no-auto-resume web")
    says("update --label-rm tier web")
    says("rename web front")
    try:
        (box,) = json.loads(says("inspect front"))
        assert (box["Name"], box["Memory"], box["Config"]["Labels"]) == ("front", 256 << 20, {"team": "red"})
        assert typed("update -m 64m front").returncode == 1
        assert says("ps -q --filter name=front") == box["Id"]
    finally:
        says("rename front web")


def test_wait_prints_the_exit_code(says: Says, web: str, environment: dict[str, str]) -> None:
    with subprocess.Popen([BOXLITE, "wait", web], stdout=subprocess.PIPE, env=environment) as waiting:
        says("kill web")
        assert waiting.communicate(timeout=60)[0] in (b"137\n", b"143\n")
    assert waiting.returncode == 0
    assert says("wait web") in ("137", "143")


def test_kill_sends_signals_to_the_main_command(says: Says, typed: Type, cluster: Cluster, test_image: str) -> None:
    script = "trap 'echo hup' HUP; trap 'echo usr1' USR1; echo ready; while :; do sleep 0.1; done"
    box = says("run", "-d", test_image, "sh", "-c", script)
    try:
        wait_until(lambda: "ready" in says("logs", box), "it has its handlers")
        assert says("kill", "-s", "HUP", box) == box
        wait_until(lambda: "hup" in says("logs", box), "the first signal came")
        says("kill", "--signal", "10", box)
        wait_until(lambda: "usr1" in says("logs", box), "the second signal came")
        assert status_of(cluster, box) == "running"
        assert cluster.http("GET", f"/v1/boxes/{box}/executions")[2]["executions"] == []
        says("kill", box)
        assert says("wait", box) == "137"
        for words in ((), ("-s", "HUP")):  # as docker, which kills no container at rest
            refused = typed("kill", *words, box)
            assert (refused.returncode, refused.stdout) == (1, b"")
            assert refused.stderr == f"Error: box '{box}' does not run; start it first\n".encode()
    finally:
        says("rm", "-f", box)


def test_a_signal_that_ends_the_main_command_reaches_the_attached_client(
    says: Says, test_image: str, environment: dict[str, str]
) -> None:
    box = says("run", "-d", test_image, "sh", "-c", "while echo on; do sleep 0.2; done")
    with subprocess.Popen([BOXLITE, "attach", "--no-stdin", box], stdout=subprocess.PIPE, env=environment) as attached:
        assert attached.stdout is not None
        assert attached.stdout.readline() == b"on\n"
        says("kill", "-s", "SIGTERM", box)
        attached.stdout.read()
        assert attached.wait(60) == 143
    assert says("wait", box) == "143"
    says("rm", "-f", box)


def test_logs_since_and_with_times(says: Says, cluster: Cluster, test_image: str) -> None:
    script = "echo one; sleep 1.2; echo two; sleep 60"
    box = says("run", "-d", test_image, "sh", "-c", script)
    try:
        wait_until(lambda: "two" in says("logs", box), "it has said so")
        times = {}
        for line in says("logs", "-t", box).splitlines():
            time, _, word = line.partition(" ")
            times[word] = datetime.fromisoformat(time)
        assert times["two"] > times["one"]
        assert says("logs", "--since", times["two"].isoformat(), box) == "two"
        assert says("logs", "--since", "1h", box) == "one\ntwo"
        assert says("logs", "-t", "-n", "1", box).endswith(" two")
        status, _, refused = cluster.http("GET", f"/v1/boxes/{box}/logs?since=yesterday")
        assert (status, "is not a time with its zone" in refused["error"]["message"]) == (400, True)
        assert says("kill", box) == box
        assert status_of(cluster, box) == "stopped"
        (found,) = json.loads(says("inspect", box))
        assert found["State"]["ExitCode"] in (137, 143)
    finally:
        says("rm", "-f", box)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_cp_keeps_owners_if_told_and_links_followed(says: Says, tmp_path: Path, web: str) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_text("text")
    (tmp_path / "tree" / "link").symlink_to("file")
    os.chown(tmp_path / "tree" / "file", 1234, 2345)
    says("cp tree web:/plain")
    says("cp -a tree web:/kept")
    says("cp -L --include-parent tree web:/")
    shown = says("exec", web, "--", "sh", "-c", "stat -c '%u %g' /plain/tree/file /kept/tree/file; ls -l /tree")
    owners, listing = shown.splitlines()[:2], shown.splitlines()[2:]
    assert owners == ["0 0", "1234 2345"]
    assert not any("->" in line for line in listing)
    says("cp web:/kept/tree down")
    says("cp -a web:/kept/tree down-kept")
    found = [(tmp_path / name / "tree" / "file").stat() for name in ("down", "down-kept")]
    assert [(each.st_uid, each.st_gid) for each in found] == [(os.geteuid(), os.getegid()), (1234, 2345)]


def test_volumes_and_images_by_name(says: Says, typed: Type, registry_image: str) -> None:
    volume = says("volume create habits")
    assert [each["id"] for each in yaml.safe_load(says("volume ls --format yaml")) if each["name"] == "habits"] == [
        volume
    ]
    assert says("volume rm habits") == "habits"
    says("pull", "-q", registry_image)
    assert says("rmi", registry_image) == registry_image
    gone = typed("rmi", registry_image)
    assert gone.returncode == 1
    assert gone.stderr.startswith(b"Error: ")
    assert says("rmi", "-f", registry_image) == registry_image


def test_stats_and_tar_streams(says: Says, typed: Type, web: str) -> None:
    assert json.loads(says("stats --no-stream --format json web"))["memory_bytes"] > 0
    assert yaml.safe_load(says("stats web --format yaml"))["memory_bytes"] > 0
    assert any(line.startswith("web ") for line in says("stats --no-stream").splitlines())
    says("exec", web, "--", "sh", "-c", "mkdir /out && echo data > /out/file")
    with tarfile.open(fileobj=BytesIO(typed("cp", "web:/out", "-").stdout)) as archive:
        assert sorted(archive.getnames()) == ["out", "out/file"]


@pytest.mark.parametrize(
    ("line", "code", "reason"),
    [
        ("run --allow-net example.com IMAGE true", 125, "'allow_net' is not supported by this server"),
        ("create --rootfs /srv/root", 1, "'rootfs_path' is not supported by this server"),
        ("network tunnel web 80", 1, "this server opens no tunnels; give 'ports'"),
        ("update --inbound enabled web", 1, "what may enter a box cannot be changed on this server"),
    ],
)
def test_what_upstream_has_and_this_server_not_is_refused_with_the_reason(
    typed: Type, web: str, test_image: str, line: str, code: int, reason: str
) -> None:
    done = typed(line.replace("IMAGE", test_image))
    assert done.returncode == code
    assert done.stdout == b""
    assert done.stderr.decode().startswith(f"Error: {reason}")
    assert done.stderr.count(b"\n") == 1
