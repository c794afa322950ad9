"""Where a database is: a path of SQLite's, or a URL of PostgreSQL's."""

from __future__ import annotations

import re
from pathlib import Path


def is_url(where: Path | str) -> bool:
    """Whether it names a PostgreSQL."""
    return isinstance(where, str) and where.startswith(("postgresql://", "postgres://"))


def shown(where: Path | str) -> str:
    """For people and logs: without the password that a URL may carry."""
    hidden = re.sub(r"(?<=://)([^/@:]*):[^/@]*@", r"\1:***@", str(where))
    return re.sub(r"(?<=[?&]password=)[^&]*", "***", hidden)
