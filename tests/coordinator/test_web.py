"""The files of the page, as a browser fetches them from a coordinator."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from typing import Any

import pytest
from support.cluster import Cluster
from support.keys import KEY
from support.vendored import PACKAGES, digest

from boxlite_server.coordinator.web import assets

MAX_FIRST_LOAD = 300 * 1024


@pytest.fixture(scope="module")
def lonely(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A coordinator that asks for a key, without workers."""
    cluster = Cluster(tmp_path_factory.mktemp("page"), "unix:///nowhere", api_key=KEY)
    cluster.start_coordinator()
    yield cluster
    cluster.close()


def ask(cluster: Cluster, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], Any]:
    """Ask as a browser does that has no key."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return cluster.http(method, path, headers={"Authorization": "", **sent})


def test_a_browser_is_led_to_the_page_and_others_to_the_operations(lonely: Cluster) -> None:
    status, headers, _ = ask(lonely, "/", Accept="text/html,application/xhtml+xml,*/*;q=0.8")
    assert (status, headers["location"], headers["vary"]) == (307, "ui/", "Accept")
    status, headers, _ = ask(lonely, "/", Accept="*/*")
    assert (status, headers["location"], headers["vary"]) == (307, "/swagger-ui/", "Accept")
    assert ask(lonely, "/ui")[1]["location"] == "ui/"


def test_the_page_comes_without_a_key(lonely: Cluster) -> None:
    status, headers, body = ask(lonely, "/ui/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert b'src="app.js"' in body
    for name in re.findall(r'(?:src|href)="([\w./-]+\.\w+)"', body.decode()):
        if not name.startswith(".."):
            assert ask(lonely, f"/ui/{name}")[0] == 200, name


def test_the_page_may_load_and_ask_nothing_but_its_server(lonely: Cluster) -> None:
    for path in ("/ui/", "/ui/app.js", "/ui/vendor/xterm.mjs", "/ui/style.css"):
        headers = ask(lonely, path)[1]
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
        assert policy["require-trusted-types-for"] == "'script'"
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


def test_a_browser_that_has_a_file_is_sent_none(lonely: Cluster) -> None:
    _, headers, body = ask(lonely, "/ui/app.js")
    assert headers["cache-control"] == "no-cache"
    status, again, nothing = ask(lonely, "/ui/app.js", If_None_Match=headers["etag"])
    assert (status, nothing, again["etag"]) == (304, b"", headers["etag"])
    assert "content-security-policy" in again
    assert ask(lonely, "/ui/app.js", If_None_Match='W/"another"')[2] == body


def test_files_are_sent_compressed_to_who_takes_that(lonely: Cluster) -> None:
    plain = ask(lonely, "/ui/style.css")
    packed = ask(lonely, "/ui/style.css", Accept_Encoding="gzip, deflate, br")
    assert "content-encoding" not in plain[1]
    assert (packed[1]["content-encoding"], packed[1]["vary"]) == ("gzip", "Accept-Encoding")
    assert gzip.decompress(packed[2]) == plain[2]


@pytest.mark.parametrize("path", ["/ui/nosuch.js", "/ui/../app.py", "/ui/%2e%2e/assets.py", "/ui/vendor/"])
def test_the_page_has_no_other_files(lonely: Cluster, path: str) -> None:
    assert ask(lonely, path)[0] in (401, 404)


def test_the_page_takes_no_other_methods(lonely: Cluster) -> None:
    assert ask(lonely, "/ui/", "HEAD")[::2] == (200, b"")
    status, headers, body = ask(lonely, "/ui/", "POST")
    assert (status, set(headers["allow"].split(", "))) == (405, {"GET", "HEAD"})
    assert body["error"]["type"] == "UnsupportedError"


def test_all_of_the_page_is_small() -> None:
    """The terminal included, which is loaded when it is opened first."""
    assert sum(len(asset.compressed) for asset in assets.assets().values()) < MAX_FIRST_LOAD


def test_nothing_in_the_page_takes_text_for_markup() -> None:
    for name, asset in assets.assets().items():
        if name.endswith(".js"):
            found = re.findall(
                rb"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", asset.content
            )
            assert not found, name


def test_nothing_in_the_page_names_another_site() -> None:
    for name, asset in assets.assets().items():
        if not name.startswith("vendor/"):
            found = set(re.findall(rb"https?://[\w.-]+", asset.content))
            assert found <= {b"http://www.w3.org"}, name  # the name of SVG, which nobody fetches


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_what_others_have_written_is_as_they_released_it(package: Any) -> None:
    for taken in package.files:
        assert digest(taken.path.read_bytes()) == taken.sha256, taken.path
