"""Completion, as the shells see it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from boxlite_server.client import cli
from boxlite_server.client.commands.completion import SHELLS, script


def complete(tmp_path: Path, *words: str) -> list[str]:
    """What bash offers for the last word."""
    path = tmp_path / "completion.bash"
    path.write_text(script(cli.build_parser(), "bash"))
    line = ' COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _boxlite; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "-uc", f". {path};{line}", "bash", *words], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_commands_and_global_flags(tmp_path: Path) -> None:
    offered = complete(tmp_path, "boxlite", "")
    assert {"create", "run", "exec", "ls", "logs", "completion", "--url"} <= set(offered)
    assert "--tail" not in offered
    assert complete(tmp_path, "boxlite", "comp") == ["completion"]


def test_flags_of_a_command(tmp_path: Path) -> None:
    assert "--tail" in complete(tmp_path, "boxlite", "--debug", "logs", "-")
    assert complete(tmp_path, "boxlite", "run", "--ent") == ["--entrypoint"]
    assert complete(tmp_path, "boxlite", "logs", "--ent") == [""][1:]


def test_values(tmp_path: Path) -> None:
    assert complete(tmp_path, "boxlite", "list", "--format", "") == ["table", "json", "yaml"]
    assert complete(tmp_path, "boxlite", "run", "--network", "d") == ["disabled"]
    assert complete(tmp_path, "boxlite", "completion", "")[:3] == list(SHELLS)


def test_every_command_and_flag_is_in_every_script() -> None:
    parser = cli.build_parser()
    for shell in SHELLS:
        text = script(parser, shell)
        for word in ("create", "restart", "completion", "memory", "entrypoint", "tail"):
            assert word in text, (shell, word)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_can_read_it(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    path = tmp_path / "completion"
    path.write_text(capsys.readouterr().out)
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    subprocess.run([shell, "-n", str(path)], check=True)


def test_an_unknown_shell_is_refused() -> None:
    with pytest.raises(SystemExit):
        cli.main(["completion", "csh"])
