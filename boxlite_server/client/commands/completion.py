"""Completion scripts for bash, zsh and fish. They are made from the parser, so they always match the command."""

from __future__ import annotations

import argparse
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ..parser import Commands

SHELLS = ("bash", "zsh", "fish")


class Flag(NamedTuple):
    names: tuple[str, ...]
    help: str
    takes_value: bool
    choices: tuple[str, ...]


class Place(NamedTuple):
    """A position in the command line: the words before it, and the commands, flags and values that may follow."""

    words: tuple[str, ...]
    commands: tuple[tuple[str, str], ...]  # with their help
    flags: tuple[Flag, ...]
    choices: tuple[str, ...]  # of its first argument

    @property
    def path(self) -> str:
        return " ".join(self.words)

    @property
    def all_words(self) -> str:
        names = [name for name, _ in self.commands] + [name for flag in self.flags for name in flag.names]
        return " ".join([*self.choices, *names])


def add_to(commands: Commands, parser: Callable[[], ArgumentParser]) -> None:
    """Add the command for the parser that `parser` builds, of which the command is itself a part."""

    def complete(args: Namespace) -> int:
        print(script(parser(), args.shell), end="")
        return 0

    sub = commands.add_local(
        "completion",
        complete,
        "Print the completion script of a shell",
        examples=("boxlite completion bash > ~/.local/share/bash-completion/completions/boxlite",),
    )
    sub.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))


def script(parser: ArgumentParser, shell: str) -> str:
    """The script for `shell` that completes the command of `parser`."""
    places = list(_places(parser, ()))
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](parser.prog, places)


def _places(parser: ArgumentParser, words: tuple[str, ...]) -> Iterator[Place]:
    commands: list[tuple[str, str]] = []
    below: list[Place] = []
    flags: list[Flag] = []
    choices: tuple[str, ...] = ()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, sub in action.choices.items():
                commands.append((name, helps.get(name) or sub.description or ""))
                below += _places(sub, (*words, name))
        elif action.option_strings:
            takes_value = action.nargs != 0
            flags.append(Flag(tuple(action.option_strings), action.help or "", takes_value, _choices(action)))
        else:
            choices = choices or _choices(action)
    yield Place(words, tuple(commands), tuple(flags), choices)
    yield from below


def _choices(action: argparse.Action) -> tuple[str, ...]:
    return tuple(map(str, action.choices or ()))


def _valued(places: list[Place]) -> Iterator[tuple[str, Flag]]:
    """Yield path and flag for each flag that takes one of a few values."""
    for place in places:
        for flag in place.flags:
            if flag.choices:
                yield place.path, flag


def _cases(places: list[Place], indent: str) -> str:
    """The code that bash and zsh share: it sets `words` according to `path` and `prev`."""
    lines = ['case "$path $prev" in']
    for path, flag in _valued(places):
        pattern = "|".join(f'"{path} {name}"' for name in flag.names)
        lines.append(f'    {pattern}) words="{" ".join(flag.choices)}" ;;')
    lines += ["    *)", '        case "$path" in']
    lines += [f'            "{place.path}") words="{place.all_words}" ;;' for place in places]
    lines += ["        esac ;;", "esac"]
    return "\n".join(indent + line for line in lines)


def _paths(places: list[Place]) -> str:
    return "|".join(f'"{place.path}"' for place in places if place.words)


def _bash(prog: str, places: list[Place]) -> str:
    return f"""# bash completion of {prog}: source <({prog} completion bash)
_{prog}() {{
    local word words="" path="" prev="${{COMP_WORDS[COMP_CWORD-1]}}" cur="${{COMP_WORDS[COMP_CWORD]}}"
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "${{path:+$path }}$word" in
            {_paths(places)}) path="${{path:+$path }}$word" ;;
        esac
    done
{_cases(places, "    ")}
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
}}
complete -o default -F _{prog} {prog}
"""


def _zsh(prog: str, places: list[Place]) -> str:
    return f"""#compdef {prog}
# zsh completion of {prog}: source <({prog} completion zsh), or a file _{prog} in $fpath
_{prog}() {{
    local word path_="" found="" prev="${{words[CURRENT-1]}}"
    for word in "${{(@)words[2,CURRENT-1]}}"; do
        case "${{path_:+$path_ }}$word" in
            ({_paths(places)}) path_="${{path_:+$path_ }}$word" ;;
        esac
    done
{_cases(places, "    ").replace("$path", "$path_").replace("words=", "found=")}
    compadd -- ${{=found}}
    [[ -n "$found" ]] || _files
}}
if [[ "$funcstack[1]" = _{prog} ]]; then
    _{prog} "$@"
else
    compdef _{prog} {prog}
fi
"""


def _fish(prog: str, places: list[Place]) -> str:
    known = " ".join(_quoted(place.path) for place in places if place.words)
    lines = [
        f"# fish completion of {prog}: {prog} completion fish | source",
        f"function __{prog}_at",
        "    set -l path",
        "    for word in (commandline -opc)[2..-1]",
        f'        if contains -- (string join -- " " $path $word) {known}',
        "            set -a path $word",
        "        end",
        "    end",
        '    test "$path" = "$argv"',
        "end",
    ]
    for place in places:
        start = f"complete -c {prog} -n {_quoted(f'__{prog}_at {place.path}'.strip())}"
        lines += [f"{start} -f -a {name} -d {_quoted(text)}" for name, text in place.commands]
        if place.choices:
            lines.append(f"{start} -f -a {_quoted(' '.join(place.choices))}")
        for flag in place.flags:
            names = " ".join(f"-l {n[2:]}" if n.startswith("--") else f"-s {n[1:]}" for n in flag.names)
            value = f" -x -a {_quoted(' '.join(flag.choices))}" if flag.choices else " -r" if flag.takes_value else ""
            lines.append(f"{start} {names}{value} -d {_quoted(flag.help)}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
