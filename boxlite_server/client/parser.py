"""The parser of the command line. An error is one line that says what to type instead; each help has examples."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, TypeAlias

from ..errors import BoxliteError
from . import connection, output, unserved
from .api import ApiClient

REFUSED, WRONG_USAGE, WRONG_USAGE_AS_DOCKER = 1, 2, 125

Act = Callable[[ApiClient, argparse.Namespace], int]
LocalAct = Callable[[argparse.Namespace], int]
Check = Callable[[argparse.Namespace], str | None]  # what is wrong with a combination of arguments; None: nothing
_Subparsers: TypeAlias = "argparse._SubParsersAction[Parser]"

# What users of other programs type, and the command here.
_KNOWN_ELSEWHERE = {
    "login": "auth login",
    "logout": "auth logout",
    "whoami": "auth whoami",
    "container": "list",
    "image": "images",
    "commit": "snapshot create",
    "save": "export",
    "load": "import",
}


class Parser(argparse.ArgumentParser):
    """`usage_code` is the exit code for wrong arguments."""

    def __init__(self, *args: Any, usage_code: int = WRONG_USAGE, **kwargs: Any) -> None:
        kwargs |= {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
        super().__init__(*args, **kwargs)
        self._usage_code = usage_code

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parse a command line. Raises SystemExit, as argparse does, also for a combination of arguments that the
        command's check refuses."""
        self._check_flags_in_front(sys.argv[1:] if argv is None else argv)
        args = self.parse_args(argv)
        if (flaw := args.check(args)) is not None:
            args.parser.error(flaw)
        return args

    def _check_flags_in_front(self, argv: Sequence[str]) -> None:
        """Refuse an unknown flag in front of the command: argparse would take its value for the command."""
        words = iter(argv)
        for word in words:
            flag, equals, _ = word.partition("=")
            if not flag.startswith("-"):
                return
            action = self._option_string_actions.get(flag)
            if action is None:
                self._refuse([word])
            if action.nargs is None and not equals:
                next(words, None)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        namespace, rest = super().parse_known_args(args, namespace)
        if rest:
            self._refuse(rest)
        return namespace, rest

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ").replace("the following arguments are required: ", "missing ")
        output.print_error(f"{message}{' See' if message.endswith('?') else '; see'} '{self.prog} --help'")
        self.exit(self._usage_code)

    def _refuse(self, words: list[str]) -> NoReturn:
        for word in words:
            if word.startswith("-") and word != "-":
                flag = word.partition("=")[0]
                if flag in unserved.FLAGS:
                    self._decline(flag, unserved.FLAGS[flag])
                known = [name for action in self._actions for name in action.option_strings]
                self.error(f"unknown flag '{flag}'{_instead(flag, known)}")
        self.error(f"unexpected argument '{words[0]}'")

    def _decline(self, what: str, reason: str) -> NoReturn:
        """Answer what upstream's command has and this one has not, with the exit code of a server's refusal."""
        output.print_error(f"{what}: {reason}")
        self.exit(REFUSED if self._usage_code == WRONG_USAGE else self._usage_code)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        known = [str(choice) for choice in action.choices]
        if isinstance(action, argparse._SubParsersAction):
            words = f"{self.prog} {value}"
            if reason := unserved.COMMANDS.get(words.removeprefix("boxlite ")):
                self._decline(words, reason)
            instead = _KNOWN_ELSEWHERE.get(value) if self.prog == "boxlite" else None
            hint = f"; did you mean '{instead}'?" if instead else _instead(value, known)
            raise argparse.ArgumentError(None, f"unknown command '{value}'{hint}")
        raise argparse.ArgumentError(action, f"'{value}' is none of {', '.join(known)}{_instead(value, known)}")


class Commands:
    """Adds commands to a parser. Each has a help with examples, and the options of all commands."""

    def __init__(self, parser: Parser, dest: str = "command") -> None:
        self._parsers: _Subparsers = parser.add_subparsers(dest=dest, metavar="COMMAND", required=True)

    def add(
        self,
        name: str,
        act: Act,
        text: str,
        *,
        examples: Sequence[str],
        aliases: Sequence[str] = (),
        check: Check = lambda args: None,
        failure: Callable[[BoxliteError], int] | None = None,
    ) -> Parser:
        """Add a command that speaks to a server. `failure` gives the exit code for an error, where it is not 1: such a
        command passes on exit codes of commands in boxes, and so is left with 125 for wrong arguments, as in docker."""

        def run(args: argparse.Namespace) -> int:
            api = connection.connect(args)
            try:
                return act(api, args)
            finally:
                api.close()

        sub = self.add_local(name, run, text, examples=examples, aliases=aliases, check=check)
        if failure is not None:
            sub._usage_code = WRONG_USAGE_AS_DOCKER
            sub.set_defaults(failure=failure)
        return sub

    def add_local(
        self,
        name: str,
        act: LocalAct,
        text: str,
        *,
        examples: Sequence[str],
        aliases: Sequence[str] = (),
        check: Check = lambda args: None,
    ) -> Parser:
        """Add a command that needs no server, or finds it by itself."""
        sub = self._add(name, text, examples, aliases)
        sub.set_defaults(run=act, check=check, parser=sub, failure=lambda error: 1)
        return sub

    def group(self, name: str, text: str, *, examples: Sequence[str]) -> Commands:
        """Add a command that has commands of its own."""
        return Commands(self._add(name, text, examples, ()), dest=f"{name}_command")

    def _add(self, name: str, text: str, examples: Sequence[str], aliases: Sequence[str]) -> Parser:
        sub = self._parsers.add_parser(
            name, aliases=aliases, help=text, description=text, epilog=shown_examples(examples)
        )
        add_global_options(sub, argparse.SUPPRESS)
        return sub


def shown_examples(examples: Iterable[str]) -> str:
    """The end of a help text: command lines as users type them, one in a line."""
    return "\n".join(["examples:", *(f"  {example}" for example in examples)])


def add_global_options(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Add the options of all commands. They take their values from the environment, unless `default` is SUPPRESS: then
    an option that is not given leaves alone what stands in front of the command."""

    def preset(variable: str) -> str | None:
        return default if default is not None else os.environ.get(variable) or None

    group = parser.add_argument_group("global options")
    group.add_argument(
        "--url",
        default=preset("BOXLITE_REST_URL"),
        help="call the server at this address [BOXLITE_REST_URL] "
        f"(default: that of the profile, else {connection.DEFAULT_URL})",
    )
    group.add_argument(
        "--profile",
        default=preset("BOXLITE_PROFILE"),
        metavar="NAME",
        help="take address, prefix and API key from this profile of 'boxlite auth login' [BOXLITE_PROFILE] "
        "(default: the profile 'default', if there is one)",
    )
    group.add_argument(
        "--path-prefix",
        default=preset("BOXLITE_REST_PATH_PREFIX"),
        metavar="PREFIX",
        help="put this prefix behind /v1 in the path of each request [BOXLITE_REST_PATH_PREFIX] "
        "(default: that of the profile, else none)",
    )
    group.add_argument(
        "--ca-cert",
        default=preset("BOXLITE_CA_CERT"),
        metavar="FILE",
        help="trust the authorities in this file, and no others, with an https address [BOXLITE_CA_CERT] "
        "(default: those of the host)",
    )
    group.add_argument(
        "--debug",
        action="store_true",
        default=default if default is not None else False,
        help="log requests and the causes of errors to stderr",
    )


def _instead(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
