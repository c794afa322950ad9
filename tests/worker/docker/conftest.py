"""The tests of this folder look at Docker Engine itself."""

from __future__ import annotations

import pytest
from support.sites import Site


@pytest.fixture(scope="module")
def site(docker_alone: Site) -> Site:
    """The suites of all runtimes have a site for each runtime; here there is the one on Docker Engine."""
    return docker_alone
