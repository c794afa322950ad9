"""The table of answers that are replayed to repeated requests."""

from __future__ import annotations

import json
from typing import NamedTuple

from .table import Table, marks, reader


class Answer(NamedTuple):
    """An answer, and a digest of the request that it answered; times in Unix seconds."""

    request: str  # method, path and query
    body_size: int  # bytes of the request's body that were read
    body_sha256: str  # of these bytes
    body_ended: bool  # whether they were the whole body
    status: int
    headers: list[tuple[str, str]]
    body: bytes
    expires_at: float


_COLUMNS = ", ".join(Answer._fields)
_UPDATES = ", ".join(f"{column} = excluded.{column}" for column in Answer._fields)


def _headers(text: str) -> list[tuple[str, str]]:
    return [(name, value) for name, value in json.loads(text)]


_answer = reader(Answer, Answer._fields, body_ended=bool, headers=_headers)


class Answers(Table):
    """Methods over the table `answers`."""

    async def find_answer(self, owner: str, key: str, now: float) -> Answer | None:
        """The answer to the request with that Idempotency-Key, unless the answer has expired."""
        row = await self._read_one(
            f"SELECT {_COLUMNS} FROM answers WHERE owner = ? AND key = ? AND expires_at > ?", (owner, key, now)
        )
        return _answer(row) if row else None

    async def put_answer(self, owner: str, key: str, answer: Answer) -> None:
        row = {**answer._asdict(), "body_ended": int(answer.body_ended), "headers": json.dumps(answer.headers)}
        await self._write(
            f"INSERT INTO answers (owner, key, {_COLUMNS}) VALUES (?, ?, {marks(row)}) "
            f"ON CONFLICT (owner, key) DO UPDATE SET {_UPDATES}",
            (owner, key, *row.values()),
        )

    async def purge_answers(self, now: float) -> None:
        """Delete the answers that have expired."""
        await self._write("DELETE FROM answers WHERE expires_at <= ?", (now,))
