"""The command line as a whole: help with examples that hold, and errors that say what to type instead."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable, Iterator

import pytest
from support.fake_server import FakeServer, error

from boxlite_server.client import cli, unserved
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
        ("network inbound web enabled", "PUT /v1/boxes/web/network/inbound"),
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


# How upstream's documentation has users type each flag: the words in front of it, and its value.
WITH_UPSTREAMS_FLAGS = {
    "--registry": "pull --registry ghcr.io alpine",
    "--config": "list --config boxlite.json",
    "--home": "info --home=/srv/boxlite",
    "--net-tx-kbps": "create --net-tx-kbps 100 alpine",
    "--net-rx-kbps": "create --net-rx-kbps 100 alpine",
    "--mount": "create --mount type=volume,source=data,target=/data alpine",
    "--listen": "network tunnel web 8080 --listen 127.0.0.1:8080",
    "--method": "auth login --method browser",
    "--no-browser": "auth login --no-browser",
    "--issuer": "auth login --issuer https://id.example",
    "--client-id": "auth login --client-id cli",
    "--audience": "auth login --audience boxes",
    "--callback-port": "auth login --callback-port 5555",
}


@pytest.mark.parametrize("flag", unserved.FLAGS)
@pytest.mark.parametrize("in_front", [False, True])
def test_a_flag_that_only_upstream_has_is_refused_with_the_reason(
    server: FakeServer, boxlite: Boxlite, capsys: Capture, flag: str, in_front: bool
) -> None:
    line = f"{flag} x ps" if in_front else WITH_UPSTREAMS_FLAGS[flag]
    with pytest.raises(SystemExit) as exit:
        boxlite(*line.split())
    assert exit.value.code == 1
    assert capsys.readouterr().err == f"Error: {flag}: {unserved.FLAGS[flag]}\n"
    assert not server.requests


@pytest.mark.parametrize("words", unserved.COMMANDS)
def test_a_command_that_only_upstream_has_is_refused_with_the_reason(
    server: FakeServer, boxlite: Boxlite, capsys: Capture, words: str
) -> None:
    with pytest.raises(SystemExit) as exit:
        boxlite(*words.split(), "web", "--path", "/data")
    assert exit.value.code == 1
    assert capsys.readouterr().err == f"Error: boxlite {words}: {unserved.COMMANDS[words]}\n"
    assert not server.requests


def test_run_ends_with_its_own_code_for_a_flag_that_only_upstream_has(boxlite: Boxlite, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as exit:
        boxlite("run", "--net-tx-kbps", "100", "alpine", "true")
    assert exit.value.code == 125
    assert "no server limits how fast" in capsys.readouterr().err


def test_reasons_name_commands_and_flags_that_there_are(boxlite: Boxlite) -> None:
    known = {" ".join(prog.split()[1:3]) for prog in ALL} | {prog.split()[1] for prog in ALL[1:]}
    for reason in (*unserved.FLAGS.values(), *unserved.COMMANDS.values()):
        for quoted in re.findall(r"'boxlite ([^']+)'", reason):
            command = quoted.split()
            assert {command[0], " ".join(command[:2])} & known, quoted


def test_nothing_that_is_served_is_refused_as_upstreams() -> None:
    served = {
        name for parser in parsers(cli.build_parser()) for action in parser._actions for name in action.option_strings
    }
    assert not served & unserved.FLAGS.keys()
    assert not {prog.removeprefix("boxlite ") for prog in ALL} & unserved.COMMANDS.keys()


def test_a_parser_has_the_same_rules_below_it() -> None:
    assert {type(parser) for parser in parsers(cli.build_parser())} == {Parser}
