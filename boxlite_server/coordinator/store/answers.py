"""Answers that are kept for repeated requests."""

from __future__ import annotations

import json
from typing import NamedTuple

from .table import Table, marks


class Answer(NamedTuple):
    """An answer, and what tells whether a request is the one that got it; times in Unix seconds."""

    request: str  # method, path and query
    body_size: int  # how much of the request's body was read
    body_sha256: str  # of that
    body_ended: bool  # whether that was all of it
    status: int
    headers: list[tuple[str, str]]
    body: bytes
    expires_at: float


_COLUMNS = ", ".join(Answer._fields)
_UPDATES = ", ".join(f"{column} = excluded.{column}" for column in Answer._fields)


class Answers(Table):
    """Methods over the table `answers`."""

    async def find_answer(self, owner: str, key: str, now: float) -> Answer | None:
        """The answer of that key, unless it has expired."""
        row = await self._read_one(
            f"SELECT {_COLUMNS} FROM answers WHERE owner = ? AND key = ? AND expires_at > ?", (owner, key, now)
        )
        if row is None:
            return None
        answer = Answer(*row)
        headers = [(name, value) for name, value in json.loads(row[5])]
        return answer._replace(body_ended=bool(answer.body_ended), headers=headers)

    async def put_answer(self, owner: str, key: str, answer: Answer) -> None:
        row = {**answer._asdict(), "body_ended": int(answer.body_ended), "headers": json.dumps(answer.headers)}
        await self._write(
            f"INSERT INTO answers (owner, key, {_COLUMNS}) VALUES (?, ?, {marks(row)}) "
            f"ON CONFLICT (owner, key) DO UPDATE SET {_UPDATES}",
            (owner, key, *row.values()),
        )

    async def purge_answers(self, now: float) -> None:
        """Forget what has expired."""
        await self._write("DELETE FROM answers WHERE expires_at <= ?", (now,))
