"""What the engine gets to prepare a command from."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from boxlite_server.worker.commands import ExecSpec
from boxlite_server.worker.docker.engine import Engine


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        (ExecSpec(("sh",)), None),
        (ExecSpec(("sh",), tty=True), [24, 80]),
        (ExecSpec(("sh",), tty=True, cols=132, rows=40), [40, 132]),
    ],
)
def test_a_terminal_is_made_in_its_size(
    monkeypatch: pytest.MonkeyPatch, spec: ExecSpec, size: list[int] | None
) -> None:
    made: list[Any] = []

    def call(self: Engine, method: str, path: str, *, json: Any) -> Any:
        made.append((method, path, json.get("ConsoleSize")))
        return SimpleNamespace(check=lambda: SimpleNamespace(text=ANSWER))

    monkeypatch.setattr(Engine, "call", call)
    assert Engine().create_exec("some-box", spec, "ctrl-a") == "some-exec"
    assert made == [("POST", "/containers/some-box/exec", size)]


ANSWER = json.dumps({"Id": "some-exec"})


@pytest.mark.parametrize(("version", "sizes"), [("1.41", False), ("1.42", True), ("1.52", True)])
def test_engines_that_make_terminals_in_a_size(monkeypatch: pytest.MonkeyPatch, version: str, sizes: bool) -> None:
    monkeypatch.setattr(Engine, "api", SimpleNamespace(api_version=version))
    assert Engine().sizes_terminals is sizes
