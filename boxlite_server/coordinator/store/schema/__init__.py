"""The numbered scripts that make the schema: forward only, the same tables in both databases."""

from __future__ import annotations

from importlib import resources

from .... import errors


def scripts(database: str) -> list[str]:
    """The texts of a database's scripts in their order: version N is what the first N make."""
    folder = resources.files(__package__) / database
    return [
        entry.read_text() for entry in sorted(folder.iterdir(), key=lambda entry: entry.name) if entry.name[0] != "."
    ]


def refuse_newer(version: int, known: int) -> None:
    """A newer program's database is not ours to change, nor to guess at."""
    if version > known:
        raise errors.DatabaseError(
            f"its schema {version} is newer than this program's {known}; "
            "run the newer program, or go back to a copy of the database from before it"
        )
