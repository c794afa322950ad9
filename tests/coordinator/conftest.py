"""What the tests of the coordinator share: databases, and stories about coordinators."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from support.coordinator_site import CoordinatorSite

Story = Callable[[CoordinatorSite], Coroutine[Any, Any, None]]


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Where a new database is to be."""
    if request.param == "sqlite":
        return tmp_path / "coordinator.db"
    url: str = request.getfixturevalue("postgresql").new_database()
    return url


@pytest.fixture
def tell(tmp_path: Path) -> Callable[[Story], None]:
    """Runs a story about a coordinator of its own, which knows no workers yet."""
    return CoordinatorSite(tmp_path / "c.db").run


@pytest.fixture
def tell_both(database: Path | str) -> Callable[[Story], None]:
    """Runs a story about two coordinators on one database, which know the worker `one`."""
    site = CoordinatorSite(database)
    return lambda story: site.run(story, site.one, pair=True)
