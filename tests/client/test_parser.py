"""The command line as a whole: help with examples that hold, and errors that say what to type instead."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterator

import pytest
from support.fake_server import FakeServer, error

from boxlite_server.client import cli
from boxlite_server.client.parser import Parser

Boxlite = Callable[..., int]
Capture = pytest.CaptureFixture[str]


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in dict.fromkeys(action.choices.values()):
                yield from parsers(sub)


ALL = [parser.prog for parser in parsers(cli.build_parser())]


def examples(parser: argparse.ArgumentParser) -> list[str]:
    """The lines that the help shows as examples."""
    lines = parser.format_help().partition("\nexamples:\n")[2].splitlines()
    return [line.strip() for line in lines if line.startswith("  ")]


def typed(example: str) -> list[list[str]]:
    """The arguments of `boxlite` in an example, as the shell would hand them on. It may be called in a pipe."""
    lexer = shlex.shlex(example, posix=True, punctuation_chars="|<>")
    lexer.whitespace_split = True
    calls: list[list[str]] = [[]]
    words = iter(lexer)
    for word in words:
        if word == "|":
            calls.append([])
        elif word in ("<", ">"):
            next(words)
        else:
            calls[-1].append(word)
    return [call[1:] for call in calls if call[0] == "boxlite"]


@pytest.mark.parametrize("prog", ALL)
def test_each_help_has_examples_and_the_parser_takes_them(prog: str) -> None:
    (parser,) = [each for each in parsers(cli.build_parser()) if each.prog == prog]
    shown = examples(parser)
    assert shown, f"{prog} --help has no example"
    called = []
    for example in shown:
        assert typed(example), f"'{example}' does not call boxlite"
        called += [cli.build_parser().parse(arguments).parser.prog for arguments in typed(example)]
    assert any(name.startswith(prog) for name in called), f"the examples of {prog} are of others"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("lst", "unknown command 'lst'; did you mean 'list'? See 'boxlite --help'"),
        ("login", "unknown command 'login'; did you mean 'auth login'? See 'boxlite --help'"),
        ("commit web", "unknown command 'commit'; did you mean 'snapshot create'? See 'boxlite --help'"),
        ("top web", "unknown command 'top'; did you mean 'stats'? See 'boxlite --help'"),
        ("frobnicate", "unknown command 'frobnicate'; see 'boxlite --help'"),
        ("volume crate", "unknown command 'crate'; did you mean 'create'? See 'boxlite volume --help'"),
        ("ps --filtr name=web", "unknown flag '--filtr'; did you mean '--filter'? See 'boxlite list --help'"),
        ("run --nmae=web alpine", "unknown flag '--nmae'; did you mean '--name'? See 'boxlite run --help'"),
        ("--porfile x ps", "unknown flag '--porfile'; did you mean '--profile'? See 'boxlite --help'"),
        ("stats --strem web", "unknown flag '--strem'; did you mean '--stream'? See 'boxlite stats --help'"),
        ("rename web", "missing NAME; see 'boxlite rename --help'"),
        ("run", "missing IMAGE; see 'boxlite run --help'"),
        ("port web 80 90", "unexpected argument '90'; see 'boxlite port --help'"),
        ("ps --format jsn", "--format: 'jsn' is none of table, json, yaml; did you mean 'json'? See"),
        ("ps --filter nmae=web", "-f/--filter: 'nmae=web' is not KEY=VALUE with one of the keys ancestor, before"),
        ("create --cpus two alpine", "--cpus: 'two' is no number of 1 or more; see 'boxlite create --help'"),
        ("create -m lots alpine", "-m/--memory: 'lots' is no amount of memory; write 512m or 2g, or a number of MiB"),
        ("create --network host alpine", "--network/--net: 'host' is none of enabled, disabled, none, bridge"),
        ("logs --since yesterday web", "--since: 'yesterday' is no time; write 10m for ten minutes ago"),
        (
            "kill -s NOPE web",
            "-s/--signal: 'NOPE' is no signal; write a name such as HUP or SIGTERM, or a number such as 15",
        ),
        ("update web", "nothing to change: give a flag such as --memory 1g; see 'boxlite update --help'"),
        ("auth login --api-key secret", "unknown flag '--api-key'; did you mean '--api-key-stdin'?"),
    ],
)
def test_an_error_is_one_line_that_says_what_to_type(
    server: FakeServer, boxlite: Boxlite, capsys: Capture, line: str, said: str
) -> None:
    with pytest.raises(SystemExit):
        boxlite(*line.split())
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"Error: {said}")
    assert output.err.count("\n") == 1
    assert not server.requests


def test_commands_that_need_no_server_ask_for_none(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("BOXLITE_REST_URL", "nonsense")
    assert cli.main(["version"]) == 0
    assert cli.main(["completion", "bash"]) == 0


@pytest.mark.parametrize(
    ("line", "request_line"),
    [
        ("create --allow-net example.com alpine", "POST /v1/boxes"),
        ("create --rootfs /srv/root sh", "POST /v1/boxes"),
        ("update --inbound enabled web", "PUT /v1/boxes/web/network/inbound"),
        ("network tunnel web 8080", "POST /v1/boxes/web/network/tunnel?port=8080"),
    ],
)
def test_what_a_server_does_not_serve_is_refused_with_its_reason(
    server: FakeServer, boxlite: Boxlite, capsys: Capture, line: str, request_line: str
) -> None:
    method, _, path = request_line.partition(" ")
    server.on(method, path, (400, error("unsupported", "this server opens none")))
    assert boxlite(*line.split()) == 1
    assert server.lines == [request_line]
    assert capsys.readouterr().err == "Error: this server opens none\n"


def test_a_parser_has_the_same_rules_below_it() -> None:
    assert {type(parser) for parser in parsers(cli.build_parser())} == {Parser}
