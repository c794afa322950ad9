"""The fenced blocks of README.md and docs/, and the commands of this product in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
SHOWN = frozenset({"text", "json", "ini"})  # languages of blocks that nobody types

# Where one begins: at the beginning of a line, or behind another command, a word such as sudo, or an assignment.
_BEGIN = r"(?:^|[;&|(]\s*|\b(?:sudo|exec)\s+|=\S+\s+)(?:[\w./]*/)?((?:boxlite|boxlite-server)\s)"


class Block(NamedTuple):
    page: str
    line: int
    language: str
    text: str

    @property
    def key(self) -> tuple[str, str]:
        """Page and first line, by which tables of tests name it."""
        return self.page, self.text.splitlines()[0]


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page. Fences stand at the beginning of a line and name a language."""
    name, language, begin, lines = page.relative_to(ROOT).as_posix(), "", 0, []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if not line.startswith("```"):
            lines.append(line)
        elif not begin:
            language, begin, lines = line.removeprefix("```"), number, []
        else:
            yield Block(name, begin, language, "\n".join(lines) + "\n")
            begin = 0
    assert not begin, f"{name}:{begin}: the block does not end"


ALL = [block for page in PAGES for block in blocks(page)]
TYPED = [block for block in ALL if block.language not in SHOWN]


def commands(block: Block) -> Iterator[list[str]]:
    """The commands of this product in a block of the shell, as words; what the shell would put in stays as it is."""
    text = block.text.replace("\\\n", " ").replace("docker compose run --rm -T coordinator ", "boxlite-server ")
    text = re.sub(r"\d?(?:>>?|<)\s*\S+", "", text)  # without redirections
    for begin in re.finditer(_BEGIN, text, re.MULTILINE):
        lexer = shlex.shlex(text[begin.start(1) :].partition("\n")[0], posix=True, punctuation_chars=";&|()")
        lexer.whitespace_split = True
        yield list(takewhile(lambda word: not set(word) <= set(";&|()"), lexer))
