"""Both runtimes, for the suites that every runtime must pass."""

from __future__ import annotations

from collections.abc import Iterator

import fake_runtime
import pytest
from fake_runtime import FakeRuntime
from sites import Site, docker_site

from boxlite_server.worker.runtime import BoxRef


@pytest.fixture(scope="session", params=["docker", "fake"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    if request.param == "fake":
        fake = FakeRuntime()
        yield Site(fake, fake_runtime.IMAGE, fake_runtime.BARE_IMAGE)
        fake.close()
        return
    yield from docker_site(request)


@pytest.fixture(scope="session")
def fake_site() -> Iterator[Site]:
    """The fake alone, for what does not depend on an engine."""
    fake = FakeRuntime()
    yield Site(fake, fake_runtime.IMAGE, fake_runtime.BARE_IMAGE)
    fake.close()


@pytest.fixture(scope="module")
def box(site: Site) -> Iterator[BoxRef]:
    """A running box that the tests of a module share."""
    ref = site.running_box()
    yield ref
    site.runtime.remove(ref, force=True)
