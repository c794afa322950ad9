"""The numbered scripts that create and upgrade the schema, with the same tables in both databases. There is no
downgrade."""

from __future__ import annotations

from importlib import resources

from .... import errors


def scripts(database: str) -> list[str]:
    """The scripts of a database (``sqlite`` or ``postgresql``) in order. The first N scripts make version N."""
    folder = resources.files(__package__) / database
    return [
        entry.read_text() for entry in sorted(folder.iterdir(), key=lambda entry: entry.name) if entry.name[0] != "."
    ]


def upgrade(database: str, version: int) -> list[str]:
    """The scripts that a database of that version lacks. Raises DatabaseError when a newer program wrote it."""
    known = scripts(database)
    if version > len(known):
        raise errors.DatabaseError(
            f"its schema {version} is newer than this program's {len(known)}; "
            "run the newer program, or go back to a copy of the database from before it"
        )
    return known[version:]
