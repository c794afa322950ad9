"""The log of the servers, in which no text of a client, a worker or a box can pass for a line of its own, and no secret
of a key or a token is shown."""

from __future__ import annotations

import logging
import os
import unicodedata

from ..formats import without_secrets
from ..ids import current_request

FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
MAX_MESSAGE = 20_000  # characters

# Control and formatting characters, among them those that turn the direction of text, and separators of lines.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


class Lines(logging.Formatter):
    """Writes each record as one line, in which `visible` shows what would not be seen. During a request its id stands
    before the message. The lines of a traceback follow, indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        message = visible(without_secrets(record.message[:MAX_MESSAGE]))
        request_id = current_request.get()
        record.message = f"{request_id}: {message}" if request_id else message
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:
        return _indented(super().formatException(ei))  # type: ignore[arg-type]

    def formatStack(self, stack_info: str) -> str:
        return _indented(super().formatStack(stack_info))


def visible(text: str) -> str:
    """The text with escapes such as `\\x1b` in place of characters that end a line, move or hide what is shown."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(char) if unicodedata.category(char) in _HIDDEN else char for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode()


def _indented(text: str) -> str:
    return "\n".join(f"  | {visible(line)}" for line in without_secrets(text).split("\n"))


def set_up(*, debug: bool) -> None:
    """Have the log go to stderr. gRPC has a log of its own there, for which each failed handshake of a stranger is
    information."""
    os.environ.setdefault("GRPC_VERBOSITY", "INFO" if debug else "ERROR")
    handler = logging.StreamHandler()
    handler.setFormatter(Lines(FORMAT))
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, handlers=[handler])
