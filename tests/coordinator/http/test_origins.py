"""Pages of other web sites, and names that are no names of this server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.cluster import Cluster
from support.keys import KEY

from boxlite_server.cli import types
from boxlite_server.coordinator.http import origins
from boxlite_server.coordinator.http.origins import Origins, own_names

EVIL = "https://evil.example"
FRIEND = "https://app.example.com"
EVERYWHERE = [
    ("GET", "/v1/boxes"),
    ("GET", "/v1/health"),
    ("GET", "/swagger-ui/"),
    ("POST", "/v1/boxes/x/stop"),
    ("POST", "/v1/boxes/x/start"),
    ("DELETE", "/v1/boxes/x?force=true"),
    ("PUT", "/v1/boxes/x/files?path=/a"),
    ("POST", "/v1/oauth/tokens"),
]


@pytest.fixture(scope="module")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Cluster]]:
    """Coordinators without workers, by what their operator chose."""
    nowhere = "unix:///nowhere"
    found = {
        "keyless": Cluster(tmp_path_factory.mktemp("keyless"), nowhere),
        "named": Cluster(tmp_path_factory.mktemp("named"), nowhere),
        "keyed": Cluster(tmp_path_factory.mktemp("keyed"), nowhere, api_key=KEY),
        "open": Cluster(tmp_path_factory.mktemp("open"), nowhere),
    }
    found["keyless"].start_coordinator()
    found["named"].start_coordinator("--allow-origin", FRIEND, "--allow-host", "Boxes.example.com")
    found["keyed"].start_coordinator("--allow-origin", FRIEND, "--allow-origin", "http://localhost:3000")
    found["open"].start_coordinator("--host", "0.0.0.0", "--no-auth", "--allow-origin", "*")
    yield found
    for cluster in found.values():
        cluster.close()


def status(cluster: Cluster, method: str = "GET", path: str = "/v1/boxes", **headers: str) -> int:
    return ask(cluster, method, path, **headers)[0]


def ask(cluster: Cluster, method: str, path: str, **headers: str) -> tuple[int, dict[str, str], Any]:
    return cluster.http(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})


def handshake(cluster: Cluster, **headers: str) -> int:
    """The status of a refused WebSocket handshake; 404 when only the box is missing."""
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Version": "13"}
    key = {"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ=="}
    return status(cluster, "GET", "/v1/boxes/x/attach", **upgrade, **key, **headers)


@pytest.mark.parametrize(("method", "path"), EVERYWHERE)
@pytest.mark.parametrize("kind", ["keyless", "keyed"])
def test_a_page_of_another_site_is_refused(clusters: dict[str, Cluster], kind: str, method: str, path: str) -> None:
    for origin in (EVIL, "null", "http://localhost:1", "file://", "http://evil.example:8200", ""):
        code, headers, body = ask(clusters[kind], method, path, Origin=origin)
        assert (code, body["error"]["code"]) == (403, "permission_denied"), origin
        assert "access-control-allow-origin" not in headers


def test_a_websocket_of_another_sites_page_is_refused(clusters: dict[str, Cluster]) -> None:
    for kind in ("keyless", "keyed"):
        assert handshake(clusters[kind], Origin=EVIL) == 403
        assert handshake(clusters[kind], Origin="null") == 403
        assert handshake(clusters[kind], Origin=clusters[kind].url) == 404
        assert handshake(clusters[kind]) == 404
    assert handshake(clusters["keyed"], Origin=FRIEND) == 404


def test_the_coordinators_own_pages_may_use_it(clusters: dict[str, Cluster]) -> None:
    for kind in ("keyless", "keyed"):
        cluster = clusters[kind]
        assert status(cluster, Origin=cluster.url, Sec_Fetch_Site="same-origin") == 200
        assert status(cluster, "POST", "/v1/boxes/x/stop", Origin=cluster.url) == 404
    # Behind a proxy that adds TLS and keeps the name.
    assert status(clusters["keyed"], Host="boxes.example.com", Origin="https://boxes.example.com") == 200
    assert status(clusters["keyed"], Host="boxes.example.com:443", Origin="https://boxes.example.com") == 200
    assert status(clusters["keyed"], Host="boxes.example.com", Origin="https://boxes.example.com:444") == 403


def test_what_another_sites_page_fetches_without_an_origin_is_refused(clusters: dict[str, Cluster]) -> None:
    for kind in ("keyless", "keyed"):
        for site in ("cross-site", "same-site"):
            assert status(clusters[kind], Sec_Fetch_Site=site, Sec_Fetch_Mode="no-cors") == 403
            assert status(clusters[kind], "POST", "/v1/boxes/x/stop", Sec_Fetch_Site=site) == 403
            link = {"Sec_Fetch_Site": site, "Sec_Fetch_Mode": "navigate"}
            assert status(clusters[kind], "GET", "/swagger-ui/", **link) == 200
            assert status(clusters[kind], "POST", "/v1/boxes/x/stop", **link) == 403
        assert status(clusters[kind], Sec_Fetch_Site="none") == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "10.1.2.3",
        "evil.example:8200",
        "[::2]:8200",
        "a@localhost",
        "",
        "localhost:x",
        "0.0.0.0",
    ],
)
def test_a_name_that_is_not_the_coordinators_is_refused_without_a_key(clusters: dict[str, Cluster], host: str) -> None:
    for path in ("/v1/boxes", "/v1/health", "/swagger-ui/"):
        code, _, body = ask(clusters["keyless"], "GET", path, Host=host)
        assert (code, body["error"]["code"]) == (403, "permission_denied")
    # What a rebound name makes of the page's origin.
    assert status(clusters["keyless"], Host=host, Origin=f"http://{host}") == 403
    assert handshake(clusters["keyless"], Host=host, Origin=f"http://{host}") == 403


@pytest.mark.parametrize(
    "host", ["localhost", "LocalHost:8200", "localhost.", "127.0.0.1", "127.4.5.6:1", "[::1]:8200", "[::1]"]
)
def test_loopback_has_many_names(clusters: dict[str, Cluster], host: str) -> None:
    for kind in clusters:
        assert status(clusters[kind], Host=host) == 200


def test_the_operator_names_hosts(clusters: dict[str, Cluster]) -> None:
    assert status(clusters["named"], Host="boxes.example.com:8200") == 200
    assert status(clusters["named"], Host="example.com") == 403
    assert status(clusters["keyed"], Host="anything.example") == 200
    # Bound to all addresses: any address is the coordinator's, and a name still is not.
    assert status(clusters["open"], Host="10.1.2.3:8200") == 200
    assert status(clusters["open"], Host="evil.example") == 403


def test_a_name_in_the_hosts_file_is_the_coordinators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost coordinator # dev\n10.0.0.1 other\n\n# 127.0.0.1 no\n::1 six\nx y\n")
    monkeypatch.setattr(origins, "_HOSTS_FILE", hosts)
    assert set(own_names()) >= {"localhost", "coordinator", "six"}
    assert not set(own_names()) & {"other", "no", "y", "dev"}
    assert Origins(set(own_names()))._is_served("coordinator:8200")


def test_an_allowed_site_gets_what_its_browser_asks_for(clusters: dict[str, Cluster]) -> None:
    asked = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization,content-type"}
    for kind in ("named", "keyed"):
        # A preflight carries no credential.
        code, headers, body = ask(clusters[kind], "OPTIONS", "/v1/boxes", Origin=FRIEND, Authorization="", **asked)
        assert (code, body) == (204, b"")
        assert headers["access-control-allow-origin"] == FRIEND
        assert headers["access-control-allow-headers"] == "authorization,content-type"
        assert {"POST", "DELETE", "PATCH"} <= set(headers["access-control-allow-methods"].split(", "))
        assert int(headers["access-control-max-age"]) > 0
        assert headers["vary"] == "Origin"
        for path, expected in (("/v1/boxes", 200), ("/v1/boxes/x", 404)):
            code, headers, _ = ask(clusters[kind], "GET", path, Origin=FRIEND)
            assert (code, headers["access-control-allow-origin"]) == (expected, FRIEND)
            assert "X-Boxlite-Execution-Id" in headers["access-control-expose-headers"]
            assert "X-Request-Id" in headers["access-control-expose-headers"]
        code, headers, _ = ask(clusters[kind], "OPTIONS", "/v1/boxes", Origin=EVIL, **asked)
        assert code == 403
        assert "access-control-allow-origin" not in headers
        assert ask(clusters[kind], "GET", "/v1/boxes")[1]["vary"] == "Origin"
    code, headers, _ = ask(clusters["keyed"], "GET", "/v1/boxes", Origin=FRIEND, Authorization="")
    assert (code, headers["access-control-allow-origin"]) == (401, FRIEND)
    assert status(clusters["keyed"], Origin="http://localhost:3000") == 200
    assert status(clusters["keyed"], Origin="http://localhost:3001") == 403


def test_all_sites_may_be_allowed(clusters: dict[str, Cluster]) -> None:
    for origin in (EVIL, "null"):
        code, headers, _ = ask(clusters["open"], "GET", "/v1/boxes", Origin=origin, Sec_Fetch_Site="cross-site")
        assert (code, headers["access-control-allow-origin"]) == (200, "*")
    assert handshake(clusters["open"], Origin=EVIL) == 404


@pytest.mark.parametrize(
    ("text", "origin"),
    [("https://A.example:443/", "https://a.example"), ("*", "*"), ("http://[::1]:3000", "http://[::1]:3000")],
)
def test_origins_are_written_as_browsers_write_them(text: str, origin: str) -> None:
    assert types.origin(text) == origin


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "example.com",
        "https://",
        "https://a/b",
        "https://a?b",
        "https://u@a",
        "https://a:0",
        "https://a:99999",
    ],
)
def test_what_is_no_origin_is_refused(text: str) -> None:
    with pytest.raises(types.argparse.ArgumentTypeError):
        types.origin(text)
