"""`boxlite run -it` and `exec -it` as a person sees them: in a real terminal, which tmux is."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.cluster import Cluster, wait_until

from boxlite_server.errors import EngineError
from boxlite_server.local import machine


class Tmux:
    """A terminal of 80 by 24 that runs a shell, on a server of its own."""

    def __init__(self, directory: Path) -> None:
        self._socket = directory / "tmux"
        self._call("-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", "sh")

    def _call(self, *words: str) -> str:
        command = ["tmux", "-S", str(self._socket), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def type(self, text: str) -> None:
        """Type a line."""
        self._call("send-keys", "-l", text)
        self.press("Enter")

    def press(self, *keys: str) -> None:
        self._call("send-keys", *keys)

    def resize(self, columns: int, lines: int) -> None:
        self._call("resize-window", "-x", str(columns), "-y", str(lines))

    @property
    def screen(self) -> str:
        return self._call("capture-pane", "-p", "-S", "-1000").rstrip("\n")

    def until(self, pattern: str) -> None:
        """Wait until the last lines match."""
        try:
            wait_until(lambda: re.search(pattern + r"\s*\Z", self.screen) is not None, pattern, 30)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.screen}") from None

    def close(self) -> None:
        self._call("kill-server")


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[Tmux]:
    if not shutil.which("tmux"):
        try:
            machine.apt_install("tmux")
        except EngineError as error:
            pytest.skip(str(error))
    terminal = Tmux(tmp_path)
    try:
        terminal.type(f"D={shlex.quote(str(tmp_path))} PS1='HOST> '; clear")
        terminal.until("HOST>")
        yield terminal
    finally:
        terminal.close()


@pytest.mark.parametrize("how", ["run", "exec"])
def test_a_person_at_a_shell(cluster: Cluster, new_box: Callable[..., str], tmux: Tmux, how: str) -> None:
    tmux.type("stty -g >$D/before; stty size")
    tmux.until("24 80\nHOST>")
    words = ["run", "-it", "--rm", "--memory", "128", "alpine:latest", "sh"]
    if how == "exec":
        words = ["exec", "-it", new_box(), "--", "sh"]
    tmux.type(shlex.join([sys.executable, "-m", "boxlite_server.client", "--url", cluster.url, *words]))
    tmux.until("/ #")

    tmux.type("echo $((6*7)) on $(tty)")
    tmux.until(r"echo \$\(\(6\*7\)\) on \$\(tty\)\n42 on /dev/\S+\n/ #")  # the box's terminal echoes, ours does not
    tmux.type("stty size")
    tmux.until("stty size\n24 80\n/ #")

    # Of the command itself, so that it has the terminal when the key comes.
    tmux.type("sh -c 'echo begun; exec sleep 600'")
    tmux.until("sleep 600'\nbegun")
    tmux.press("C-c")
    tmux.until(r"begun\n\^C\n/ #")
    tmux.type("echo $?")
    tmux.until(r"130\n/ #")

    tmux.resize(101, 33)
    wait_until(lambda: typed_size(tmux) == "33 101", "the box has the new size")

    tmux.type("(exit 5)")
    tmux.until(r"\(exit 5\)\n/ #")
    tmux.press("C-d")
    tmux.until("HOST>")
    tmux.type("echo code $?")
    tmux.until("code 5\nHOST>")
    tmux.type("stty -g >$D/after; cmp $D/before $D/after && echo as before")
    tmux.until("as before\nHOST>")


def typed_size(tmux: Tmux) -> str:
    """What `stty size` in the box says."""
    tmux.type("clear; stty size")
    tmux.until(r"\d+ \d+\n/ #")
    return re.findall(r"\d+ \d+", tmux.screen)[-1]


def test_interrupt_reaches_a_command_that_does_not_read_its_input(
    cluster: Cluster, new_box: Callable[..., str], tmux: Tmux, tmp_path: Path
) -> None:
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(200 * 1024 * 1024)
    command = [sys.executable, "-m", "boxlite_server.client", "--url", cluster.url]
    command += ["exec", "-i", new_box(), "--", "sh", "-c", "echo ready; exec sleep 600"]
    tmux.type(f"{shlex.join(command)} <{big}; echo code $?")
    tmux.until("\nready")
    tmux.press("C-c")
    tmux.until("code 130\nHOST>")
