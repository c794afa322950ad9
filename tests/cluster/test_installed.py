"""What a new user does on a machine with Docker: the wheel is installed, `boxlite-server dev` started, and what it
prints is done. No checkout and no compiler is at hand."""

from __future__ import annotations

import re
import shlex
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import wheel
from support.browser import Tab, chromium
from support.child import BOUND
from support.cluster import call, free_port

pytestmark = pytest.mark.timeout(600)  # packages are downloaded


@pytest.fixture(scope="module")
def programs(built_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the installed commands."""
    return wheel.install(built_wheel, tmp_path_factory.mktemp("installed") / "venv")


@pytest.fixture
def environment(programs: Path, docker_host: str, tmp_path: Path) -> dict[str, str]:
    """That of a user whose PATH has the commands, nothing of the checkout, and no compiler."""
    home = tmp_path / "home"
    home.mkdir()
    return {"PATH": f"{programs}:/usr/sbin:/usr/bin", "HOME": str(home), "DOCKER_HOST": docker_host, "CC": "/bin/false"}


@contextmanager
def dev(environment: Mapping[str, str], *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`boxlite-server dev`, and all it prints until it is ready; it must end well on Ctrl-C."""
    process = subprocess.Popen(
        [*BOUND, "boxlite-server", "dev", *flags], env=environment, cwd="/", stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process:
        try:
            shown = ""
            for line in process.stdout:
                shown += line
                if line.startswith("Ctrl-C"):
                    break
            yield process, shown
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_what_dev_prints_is_all_that_a_new_user_needs(environment: dict[str, str]) -> None:
    port = free_port()
    with dev(environment, "--port", str(port)) as (_, shown):
        (command,) = re.findall(r"^    (boxlite .*)$", shown, re.MULTILINE)
        done = subprocess.run(
            shlex.split(command), env=environment, cwd="/", capture_output=True, text=True, check=False, timeout=120
        )
        assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr
        addresses = re.findall(rf"http://127\.0\.0\.1:{port}(/\S+)", shown)
        assert addresses == ["/ui/", "/v1/", "/swagger-ui/"]
        assert [call(port, "GET", address)[0] for address in ("/ui/", "/swagger-ui/")] == [200, 200]
        (log,) = re.findall(r"^  Log +(\S+)$", shown, re.MULTILINE)
        assert "registered as" in Path(log).read_text()

        box = call(port, "POST", "/v1/boxes", {"image": "alpine:latest"})[2]["box_id"]
        ran = call(port, "POST", f"/v1/boxes/{box}/run", {"command": "echo", "args": ["over REST"]})[2]
        assert (ran["exit_code"], ran["stdout"]) == (0, "over REST\n")
        assert call(port, "GET", f"/v1/boxes/{box}")[2]["supervisor"] == "init"  # its program was in the wheel
        assert call(port, "DELETE", f"/v1/boxes/{box}?force=true")[0] == 204


def test_from_the_command_to_a_shell_in_the_browser(environment: dict[str, str]) -> None:
    """Only what the page itself offers is used, from the address that `dev` prints."""
    port = free_port()
    with dev(environment, "--port", str(port)) as (_, shown), chromium() as browser:
        (address,) = re.findall(rf"(http://127\.0\.0\.1:{port})/ui/", shown)
        with browser.new_context() as context:
            tab = Tab(context, address)
            page = tab.open()
            page.get_by_role("button", name="New box").click()
            page.get_by_label("Image").fill("alpine:latest")
            page.get_by_role("button", name="Create").click()
            page.get_by_role("link", name="Terminal").click()
            tab.until(r"[#$] ")
            tab.types("echo $((6 * 7))", r"\s42\s")
            assert tab.complaints == []
            page.get_by_role("button", name="Remove").click()
            page.get_by_role("dialog").get_by_role("button", name="Remove").click()
            page.get_by_role("heading", name="Boxes").wait_for()


def test_boxes_run_on_and_are_there_after_the_next_start(environment: dict[str, str]) -> None:
    port = free_port()
    with dev(environment, "--port", str(port)):
        box = call(port, "POST", "/v1/boxes", {"image": "alpine:latest", "start": True, "cmd": ["sleep", "600"]})[2]
    with dev(environment, "--port", str(port)):
        assert call(port, "GET", f"/v1/boxes/{box['box_id']}")[2]["status"] == "running"
        assert call(port, "DELETE", f"/v1/boxes/{box['box_id']}?force=true")[0] == 204


def test_dev_says_what_is_missing(environment: dict[str, str], tmp_path: Path) -> None:
    nowhere = {**environment, "DOCKER_HOST": f"unix://{tmp_path}/none.sock"}
    done = subprocess.run(["boxlite-server", "dev"], env=nowhere, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no engine answers at" in done.stderr and "what mends it: start it, or set DOCKER_HOST" in done.stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        flags = ["--port", str(taken.getsockname()[1])]
        done = subprocess.run(
            ["boxlite-server", "dev", *flags], env=environment, capture_output=True, text=True, check=False
        )
    assert done.returncode == 1
    assert "is taken" in done.stderr


def test_dev_ends_with_the_reason_when_one_of_its_processes_does(environment: dict[str, str], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "worker.json").write_text("{")
    flags = ["--port", str(free_port()), "--home", str(broken)]
    done = subprocess.run(
        ["boxlite-server", "dev", *flags], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "worker.json is damaged" in done.stderr
    assert done.stdout == ""
