"""The page at /ui/, as people use it: in a browser, against a running cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser
from support.browser import Tab, chromium
from support.cluster import Cluster

IMAGE = "boxlite-test:latest"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def site(new_cluster: Callable[..., Cluster]) -> Cluster:
    """A cluster with keys, and with one worker."""
    cluster = new_cluster()
    cluster.start_with_keys()
    return cluster


@pytest.fixture(scope="module")
def key(site: Cluster) -> str:
    """The key of an operator."""
    scopes = (
        "box:read,box:write,box:exec,box:delete,snapshot:read,snapshot:write,snapshot:delete,image:read,image:write"
    )
    return site.new_key("--prefix", "acme", "--scope", f"{scopes},volume:read,volume:write,worker:admin")


@pytest.fixture
def tab(browser: Browser, site: Cluster) -> Iterator[Tab]:
    with browser.new_context(viewport={"width": 1280, "height": 800}) as context:
        yield Tab(context, site.url)
