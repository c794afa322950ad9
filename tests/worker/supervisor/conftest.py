"""Containers that have the supervisor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.supervised_box import CONFINED, NewBox, Supervised, supervised_boxes

from boxlite_server.worker.supervisor.program import program


@pytest.fixture(scope="session")
def supervisor() -> Path:
    """The program for this machine."""
    found = program()
    assert found is not None, "the supervisor is not built: install the package, or run `python hatch_build.py`"
    return found


@pytest.fixture(scope="module")
def new_supervised(docker_host: str, test_image: str, supervisor: Path) -> Iterator[NewBox]:
    """Makes running containers that have the supervisor."""
    with supervised_boxes(docker_host, test_image, supervisor) as new:
        yield new


@pytest.fixture(scope="module", params=["root", "confined"])
def box(request: pytest.FixtureRequest, new_supervised: NewBox) -> Supervised:
    """A box of root, and a box of another user without any capability."""
    return new_supervised(**(CONFINED if request.param == "confined" else {}))
