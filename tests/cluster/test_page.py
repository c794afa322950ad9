"""The page at /ui/, as people use it: in a browser, against a running cluster whose users have keys."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Route, expect
from support import vendored
from support.browser import Tab, chromium
from support.cluster import Cluster, wait_until

IMAGE = "boxlite-test:latest"
PNG = bytes.fromhex(  # one red pixel
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cfc0000003010100c9fe92ef"
    "0000000049454e44ae426082"
)
MARKUP = "<img src=x onerror=alert(1)><b>bold</b>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def site(new_shared_cluster: Callable[..., Cluster]) -> Cluster:
    """A cluster with keys, and with one worker."""
    cluster = new_shared_cluster()
    cluster.start_with_keys()
    return cluster


@pytest.fixture(scope="module")
def key(site: Cluster) -> str:
    """The key of an operator, who also has the prefix acme."""
    from boxlite_server.coordinator.tenants import scopes

    return site.new_key("--prefix", "acme", "--scope", ",".join(scopes.CLIENT))


@pytest.fixture(scope="module")
def ask(site: Cluster, key: str) -> Callable[..., Any]:
    """Asks the API as the operator, and answers with the body of a success."""

    def ask(method: str, path: str, body: Any = None) -> Any:
        status, _, answer = site.http(method, f"/v1/{path}", body, headers={"Authorization": f"Bearer {key}"})
        assert status < 400, answer
        return answer

    return ask


@pytest.fixture(scope="module")
def box(ask: Callable[..., Any]) -> str:
    """The id of a running box, whose main command speaks now and then."""
    script = f"echo '{MARKUP}'; while sleep 1; do echo tick; done"
    labels = {"team": MARKUP}
    wanted = {"name": "web", "image": IMAGE, "cmd": ["sh", "-c", script], "labels": labels, "start": True}
    return str(ask("POST", "boxes", wanted)["box_id"])


@contextmanager
def _tab(browser: Browser, site: Cluster, **options: Any) -> Iterator[Tab]:
    """A tab of a browser that nobody has used. What is shown may not come from elsewhere, and has no faults."""
    with browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options}) as context:
        tab = Tab(context, site.url)
        yield tab
        foreign = [url for url in tab.asked if not re.match(rf"(http|ws)://127\.0\.0\.1:{site.port}/", url)]
        assert not foreign
        assert not tab.complaints


@pytest.fixture
def stranger(browser: Browser, site: Cluster) -> Iterator[Tab]:
    """A tab in which nobody is signed in."""
    with _tab(browser, site) as tab:
        yield tab


@pytest.fixture
def tab(browser: Browser, site: Cluster, key: str) -> Iterator[Tab]:
    """A tab in which the operator is signed in."""
    with _tab(browser, site) as tab:
        tab.sign_in(key)
        yield tab


def test_a_person_signs_in_and_out(stranger: Tab, key: str) -> None:
    page = stranger.open()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.get_by_label("API key").fill(f"{key[:-1]}x")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_text("not valid")).to_be_visible()
    assert [text for text in stranger.complaints if "401" not in text] == []
    stranger.complaints.clear()
    stranger.sign_in(key)
    expect(page.get_by_role("heading", name="Boxes")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="Boxes")).to_be_visible()
    other = page.context.new_page()
    other.goto(page.url)
    expect(other.get_by_role("heading", name="Sign in")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert not page.evaluate("sessionStorage.length + localStorage.length + document.cookie.length")
    assert not [url for url in stranger.asked if key in url]


def test_a_key_shows_what_it_may_do_and_no_more(stranger: Tab, site: Cluster, box: str) -> None:
    reader = site.new_key("--prefix", "acme", "--scope", "box:read")
    stranger.sign_in(reader)
    page = stranger.open(f"#/boxes/{box}")
    expect(page.get_by_role("heading", name="web")).to_be_visible()
    expect(page.get_by_role("navigation", name="Main").get_by_role("link")).to_have_text(["Boxes"])
    expect(page.get_by_role("navigation", name="Box").get_by_role("link")).to_have_text(["Overview", "Logs"])
    expect(page.get_by_role("button", name="Stop")).to_have_count(0)
    expect(page.get_by_role("button", name="Change")).to_have_count(0)


def test_from_the_form_to_a_command_in_the_terminal(tab: Tab, ask: Callable[..., Any]) -> None:
    page = tab.open()
    page.get_by_role("button", name="New box").click()
    page.get_by_label("Image").fill(IMAGE)
    page.get_by_label("Name").fill("made")
    page.get_by_label("Memory").fill("128")
    page.get_by_text("More settings").click()
    page.get_by_label("Environment").fill("GREETING=hello\nOTHER=a=b")
    page.get_by_label("Labels").fill("team=blue, job=nightly")
    page.get_by_role("button", name="Create").click()
    row = page.get_by_role("row").filter(has_text="made")
    expect(row).to_contain_text("running")
    row.get_by_role("link", name="Terminal").click()
    tab.until(r"[#$] ")
    tab.types('echo "$GREETING $OTHER $((6 * 7))"', "hello a=b 42")
    made = ask("GET", "boxes/made")
    assert (made["memory_mib"], made["labels"]) == (128, {"team": "blue", "job": "nightly"})
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".bar .badge")).to_have_text("stopped")
    page.get_by_role("button", name="Remove").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    expect(page.get_by_role("heading", name="Boxes")).to_be_visible()
    expect(page.get_by_role("row").filter(has_text="made")).to_have_count(0)


def test_a_running_box_gets_another_size_name_and_labels(tab: Tab, ask: Callable[..., Any]) -> None:
    labels = {"team": "blue, green", "old": ""}
    wanted = {"name": "small", "image": IMAGE, "memory_mib": 128, "labels": labels, "start": True}
    made = ask("POST", "boxes", wanted)["box_id"]
    page = tab.open(f"#/boxes/{made}")
    page.get_by_role("button", name="Change").press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_label("Name")).to_be_focused()
    page.keyboard.press("Control+a")
    page.keyboard.type("larger")
    dialog.get_by_label("Memory in MiB").fill("1000000")
    expect(dialog.get_by_label("Labels")).to_have_value("team=blue, green\nold=")
    dialog.get_by_label("Labels").fill("team=blue, green\nnew=a=b")
    dialog.get_by_role("button", name="Save").click()
    expect(dialog.get_by_role("alert")).not_to_be_empty()
    assert ask("GET", f"boxes/{made}")["name"] == "small"
    dialog.get_by_label("Memory in MiB").fill("256")
    dialog.get_by_label("Stop when idle for").fill("3600")
    dialog.get_by_role("button", name="Save").press("Enter")
    expect(page.get_by_role("heading", name="larger")).to_be_visible()
    expect(page.get_by_role("button", name="Change")).to_be_focused()
    expect(page.locator(".facts")).to_contain_text("new=a=b")
    expect(page.locator(".gauges")).to_contain_text(re.compile(r"of 256\sMiB"))
    box = ask("GET", "boxes/larger")
    assert (box["status"], box["memory_mib"], box["auto_stop"]) == ("running", 256, 3600)
    assert box["labels"] == {"team": "blue, green", "new": "a=b"}
    ask("DELETE", f"boxes/{made}?force=true")
    tab.complaints.clear()  # the console has the 429, and perhaps a 404 of the removed box


def test_an_open_server_asks_for_no_key(browser: Browser, cluster: Cluster, new_box: Callable[..., str]) -> None:
    with _tab(browser, cluster) as tab:
        page = tab.open(f"#/boxes/{new_box(start=True)}/terminal")
        tab.until(r"[#$] ")
        tab.types("echo $((6 * 7))", r"\s42\s")
        expect(page.get_by_role("button", name="Sign out")).to_have_count(0)
        assert not [url for url in tab.asked if "ticket" in url]


def test_why_a_box_is_not_placed(tab: Tab) -> None:
    page = tab.open()
    page.get_by_role("button", name="New box").click()
    page.get_by_label("Image").fill(IMAGE)
    page.get_by_label("Memory").fill("1000000")
    page.get_by_role("button", name="Create").click()
    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("1 lacks memory")
    tab.complaints.clear()  # the console has the 503


def test_a_terminal_comes_back_without_loss(tab: Tab, box: str, site: Cluster) -> None:
    page = tab.open(f"#/boxes/{box}/terminal")
    tab.until(r"[#$] ")
    tab.types("clear; for i in $(seq 1 20); do echo line-$i; sleep 0.2; done; echo d''one", "line-5")
    assert site.coordinator is not None
    site.coordinator.restart()
    tab.until(r"done\s", 60)
    lines = "".join(rf"line-{number}\s+" for number in range(1, 21))
    tab.until(rf"(?<!-20\n)line-1\s[\s\S]*{lines[len('line-1') + 3 :]}done")
    assert len(re.findall(r"line-\d+\s", tab.screen)) == 20
    tab.complaints[:] = [text for text in tab.complaints if "ERR_CONNECTION" not in text and "WebSocket" not in text]
    page.reload()
    tab.until(r"line-20\s+done")
    assert len(re.findall(r"line-\d+\s", tab.screen)) == 20
    tab.types("echo af''ter", "after")
    page.get_by_role("link", name="Overview").click()
    commands = page.get_by_role("region", name="Commands")
    expect(commands.get_by_role("row").filter(has_text="running").filter(has_text="sh")).not_to_have_count(0)
    page.get_by_role("link", name="Terminal").click()
    tab.until("after")
    assert page.get_by_role("button", name=re.compile(r"^Shell \d")).count() == 1


def test_the_terminal_keeps_up_with_yes_and_a_storm_of_sizes(tab: Tab, box: str) -> None:
    page = tab.open(f"#/boxes/{box}/terminal")
    tab.until(r"[#$] ")
    tab.types("yes", r"y\s+y\s+y\s+y")
    for turn in range(30):
        page.set_viewport_size({"width": 700 + 20 * turn, "height": 500 + 10 * turn})
    page.keyboard.press("Control+c")
    tab.types("echo en''ough", "enough")
    tab.until(r"enough\s+\S* ?[#$]\s*$")
    rows = page.locator(".xterm-rows > div").count()
    tab.types("stty size", rf"\b{rows} \d+\s")


def test_the_terminal_is_left_by_the_keyboard(tab: Tab, box: str) -> None:
    page = tab.open(f"#/boxes/{box}/terminal")
    tab.until(r"[#$] ")
    page.keyboard.press("Tab")  # goes to the shell
    expect(page.locator(".xterm-helper-textarea")).to_be_focused()
    page.keyboard.press("Control+F6")
    expect(page.get_by_role("button", name=re.compile(r"^Shell \d")).first).to_be_focused()


def test_files_are_uploaded_viewed_and_downloaded(tab: Tab, box: str) -> None:
    page = tab.open(f"#/boxes/{box}/files?%2Ftmp")
    files = [
        {"name": "näme <b>.txt", "mimeType": "text/plain", "buffer": f"first line\n{MARKUP}\n".encode()},
        {"name": "dot.png", "mimeType": "image/png", "buffer": PNG},
    ]
    page.get_by_label("Files to upload").set_input_files(files)
    page.get_by_role("button", name="näme <b>.txt", exact=True).click()
    expect(page.get_by_role("region", name="Content")).to_have_text(f"first line\n{MARKUP}\n")
    page.get_by_role("button", name="dot.png", exact=True).click()
    page.wait_for_function("() => document.querySelector('.viewer img')?.naturalWidth === 1")
    with page.expect_download() as downloading:
        page.get_by_role("button", name="Download näme <b>.txt").click()
    assert Path(downloading.value.path()).read_bytes() == files[0]["buffer"]
    page.get_by_role("navigation", name="Directory").get_by_role("link", name="/", exact=True).click()
    expect(page.get_by_role("link", name="tmp/")).to_be_visible()
    with page.expect_download() as downloading:
        page.get_by_role("button", name="Download tmp").click()
    listed = subprocess.run(["tar", "-tf", downloading.value.path()], check=True, capture_output=True, text=True)
    assert "dot.png" in listed.stdout


def test_links_and_empty_files_are_viewed(tab: Tab, box: str, ask: Callable[..., Any]) -> None:
    script = "mkdir -p /srv/links/in; cd /srv/links; : >empty; ln -s empty nothing; ln -s in inside; seq 300000 >long"
    ask("POST", f"boxes/{box}/run", {"command": "sh", "args": ["-c", script]})
    page = tab.open(f"#/boxes/{box}/files?%2Fsrv%2Flinks")
    page.get_by_role("button", name="nothing", exact=True).click()
    expect(page.locator(".viewer")).to_contain_text("/srv/links/nothing")
    expect(page.get_by_role("region", name="Content")).to_have_text("")
    page.get_by_role("button", name="long", exact=True).click()
    expect(page.locator(".viewer")).to_contain_text("the first 1.0 MiB")
    page.get_by_role("button", name="inside", exact=True).click()
    expect(page.get_by_role("navigation", name="Directory")).to_contain_text("inside")
    tab.complaints.clear()  # the console has the 416 of an empty file, and the 400 of a link to a directory


def test_logs_come_as_they_are_written_and_markup_stays_text(tab: Tab, box: str) -> None:
    page = tab.open(f"#/boxes/{box}/logs")
    log = page.get_by_role("log")
    expect(log).to_contain_text(MARKUP)
    before = log.inner_text().count("tick")
    page.wait_for_function(
        "count => document.querySelector('.log').innerText.split('tick').length > count + 2", arg=before
    )
    page.get_by_role("link", name="Overview").click()
    expect(page.locator(".facts")).to_contain_text(f"team={MARKUP}")
    expect(page.locator(".facts")).to_contain_text("while sleep 1; do echo tick; done")
    expect(page.locator(".gauges")).to_contain_text(re.compile(r"Memory [\d.]+\s[KM]iB of 512\sMiB"))
    assert page.locator("main img, main b").count() == 0


def test_a_box_is_started_and_shows_where_its_ports_are(tab: Tab, ask: Callable[..., Any]) -> None:
    ports = [{"guest_port": 8080}, {"guest_port": 53, "protocol": "udp"}]
    made = ask("POST", "boxes", {"name": "served", "image": IMAGE, "cmd": ["sleep", "600"], "ports": ports})["box_id"]
    page = tab.open(f"#/boxes/{made}")
    table = page.get_by_role("table", name="Ports")
    expect(table.get_by_role("row").filter(has_text="8080/tcp")).to_contain_text("while it runs")
    page.get_by_role("button", name="Start").click()
    expect(page.locator(".bar .badge")).to_have_text("running")
    for port in ask("GET", f"boxes/{made}")["ports"]:
        row = table.get_by_role("row").filter(has_text=f"{port['guest_port']}/{port['protocol']}")
        expect(row).to_contain_text(port["address"])
    ask("DELETE", f"boxes/{made}?force=true")
    tab.complaints.clear()  # the console may have a 404 of the removed box


def test_a_snapshot_is_taken_and_removed(tab: Tab, box: str) -> None:
    page = tab.open(f"#/boxes/{box}/snapshots")
    page.get_by_label("Name").fill("clean")
    page.get_by_role("button", name="Take a snapshot").click()
    row = page.get_by_role("row").filter(has_text="clean")
    expect(row).to_be_visible()
    row.get_by_role("button", name="Remove").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    expect(row).to_have_count(0)


def test_a_box_is_restored_from_a_snapshot(tab: Tab, ask: Callable[..., Any]) -> None:
    box = ask("POST", "boxes", {"name": "restored", "image": IMAGE, "start": True})["box_id"]

    def said(script: str) -> str:
        return str(ask("POST", f"boxes/{box}/run", {"command": "sh", "args": ["-c", script]})["stdout"])

    said("echo former > /tmp/state")
    ask("POST", f"boxes/{box}/stop")
    page = tab.open(f"#/boxes/{box}/snapshots")
    page.get_by_label("Name").fill("former")
    page.get_by_role("button", name="Take a snapshot").click()
    expect(page.get_by_role("row").filter(has_text="former")).to_be_visible()
    said("echo present > /tmp/state")  # which starts the box
    ask("POST", f"boxes/{box}/stop")
    page.get_by_role("button", name="Restore former").click()
    page.get_by_role("dialog").get_by_role("button", name="Restore").click()
    expect(page.get_by_role("status")).to_contain_text("The disk of restored is that of former.")
    assert said("cat /tmp/state") == "former\n"
    ask("DELETE", f"boxes/{box}?force=true")


def test_a_volume_is_made_and_removed_and_images_are_listed(tab: Tab) -> None:
    page = tab.open("#/volumes")
    page.get_by_label("Name").fill("data")
    page.get_by_role("button", name="Create a volume").click()
    row = page.get_by_role("row").filter(has_text="data")
    row.get_by_role("button", name="Remove").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    expect(row).to_have_count(0)
    page.get_by_role("link", name="Images").click()
    expect(page.get_by_role("row").filter(has_text="boxlite-test:latest")).to_be_visible()


def test_an_operator_sees_keys_quotas_and_the_audit(tab: Tab, key: str, ask: Callable[..., Any]) -> None:
    page = tab.open("#/admin/keys")
    expect(page.get_by_role("row").filter(has_text=key.split("_")[1])).to_contain_text("active")
    page.get_by_role("link", name="Quotas").click()
    page.get_by_role("button", name="Set quotas").click()
    page.get_by_label("Prefix", exact=True).last.fill("blue")
    page.get_by_label("Running boxes").fill("7")
    page.get_by_role("button", name="Set", exact=True).click()
    row = page.get_by_role("row").filter(has_text="blue")
    expect(row.get_by_role("cell", name="7")).to_be_visible()
    row.get_by_role("button", name="Remove").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    expect(row).to_have_count(0)
    wait_until(lambda: ask("GET", "admin/audit?action=setQuotas")["lines"] != [], "the line of the audit is written")
    page.get_by_role("link", name="Audit").click()
    page.get_by_label("Operation").fill("setQuotas")
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_role("row").filter(has_text="/v1/admin/quotas/blue").first).to_be_visible()


def test_an_operator_makes_a_key_that_is_shown_once_and_revokes_it(tab: Tab, ask: Callable[..., Any]) -> None:
    page = tab.open("#/admin/keys")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="New key").press("Enter")
    form = page.get_by_role("form", name="New key")
    expect(form.get_by_label("Name")).to_be_focused()
    page.keyboard.type("night <b>jobs</b>")
    expect(form.get_by_label("Prefix")).to_have_value("acme")
    for scope in ("box:delete", "box:write"):
        form.get_by_label(scope, exact=True).uncheck()
    form.get_by_label("Ends after").select_option("7 days")
    page.get_by_role("button", name="Make the key").press("Enter")
    secret = page.get_by_role("textbox", name="The key night <b>jobs</b>")
    text = secret.input_value()
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_text("Copied.")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == text
    listed = {key["name"]: key for key in ask("GET", "admin/keys")["keys"]}["night <b>jobs</b>"]
    assert (listed["prefix"], listed["id"]) == ("acme", text.split("_")[1])
    assert {"box:read", "box:exec"} <= set(listed["scopes"]) and "box:delete" not in listed["scopes"]
    assert "worker:admin" not in listed["scopes"] and listed["expires_at"]
    page.reload()
    row = page.get_by_role("row").filter(has_text="night <b>jobs</b>")
    expect(row).to_contain_text("active")
    assert text not in page.content() and page.locator("input.secret").count() == 0
    row.get_by_role("button", name="Revoke").press("Enter")
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    expect(row).to_contain_text("active")
    expect(row.get_by_role("button", name="Revoke")).to_be_focused()
    row.get_by_role("button", name="Revoke").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    expect(row).to_contain_text("revoked")
    expect(row.get_by_role("button", name="Revoke")).to_have_count(0)


def test_changes_made_elsewhere_show_at_once(tab: Tab, ask: Callable[..., Any]) -> None:
    page = tab.open()
    made = ask("POST", "boxes", {"name": "elsewhere", "image": IMAGE})["box_id"]
    row = page.get_by_role("row").filter(has_text="elsewhere")
    expect(row).to_contain_text("configured")
    ask("POST", f"boxes/{made}/start")
    expect(row).to_contain_text("running")
    ask("DELETE", f"boxes/{made}?force=true")
    expect(row).to_have_count(0)
    tab.complaints.clear()  # the console may have a 404: the page read a box while it was removed


def test_ten_thousand_boxes_scroll(tab: Tab) -> None:
    boxes = [
        {
            **{"box_id": f"Box{number:09}", "name": f"box-{number:05}", "status": "stopped", "image": "alpine:latest"},
            **{"cpus": 1, "memory_mib": 512, "created_at": "2026-01-01T00:00:00Z", "labels": {}, "worker": "one"},
        }
        for number in range(10_000)
    ]

    def pages(route: Route) -> None:
        first = int((re.search(r"pageToken=(\d+)", route.request.url) or [0, "0"])[1])
        token = str(first + 1000) if first < 9000 else None
        route.fulfill(json={"boxes": boxes[first : first + 1000], "next_page_token": token})

    page = tab.page
    page.route("**/v1/boxes?*", pages)
    tab.open()
    expect(page.locator(".bar")).to_contain_text("10,000", timeout=30_000)
    page.get_by_role("button", name="Name").click()
    rows = page.locator(".rows tbody tr:not(.spacer)")
    for number in (0, 5_000, 9_999):
        page.evaluate(
            "share => { const m = document.querySelector('main'); m.scrollTop = share * m.scrollHeight; }",
            number / 10_000,
        )
        expect(rows.filter(has_text=f"box-{number:05}")).to_be_visible()
        assert rows.count() < 60
    table = page.get_by_role("table", name="Boxes")
    assert table.get_attribute("aria-rowcount") == "10001"
    page.get_by_label("Filter").fill("box-04711")
    expect(page.locator(".bar")).to_contain_text("1 of 10,000")
    expect(rows).to_have_count(1)


def test_the_first_load_is_small(stranger: Tab, key: str, box: str) -> None:
    loaded: list[int] = []
    stranger.page.on("requestfinished", lambda request: loaded.append(request.sizes()["responseBodySize"]))
    stranger.sign_in(key)
    stranger.open(f"#/boxes/{box}/terminal")
    stranger.until(r"[#$] ")
    assert 0 < sum(loaded) < 300 * 1024


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The text of axe-core, from its npm package."""
    try:
        return (vendored.fetch(vendored.AXE, tmp_path_factory.mktemp("axe")) / "axe.min.js").read_text()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"axe-core cannot be had: {error}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_everybody_can_use_it(
    browser: Browser, site: Cluster, key: str, box: str, axe: str, scheme: str, width: int
) -> None:
    views = ["boxes", *(f"boxes/{box}/{tab}" for tab in ("overview", "terminal", "logs", "files", "snapshots"))]
    views += ["images", "volumes", "workers", "admin/keys", "admin/quotas", "admin/audit", "account"]
    with _tab(browser, site, viewport={"width": width, "height": 740}, color_scheme=scheme, bypass_csp=True) as tab:
        tab.open()
        assert _findings(tab, axe) == []
        tab.sign_in(key)
        for view in views:
            page = tab.open(f"#/{view}")
            expect(page.locator("main h1")).to_be_visible()
            assert page.evaluate("document.documentElement.scrollWidth") <= width, view
            assert _findings(tab, axe) == [], view
        page = tab.open("#/boxes")
        page.get_by_role("button", name="New box").click()
        page.get_by_text("More settings").click()
        assert _findings(tab, axe) == []
        page.keyboard.press("Escape")
        page = tab.open(f"#/boxes/{box}")
        page.get_by_role("button", name="Change").click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert _findings(tab, axe) == []
        page.keyboard.press("Escape")
        page = tab.open("#/admin/keys")
        page.get_by_role("button", name="New key").click()
        assert _findings(tab, axe) == []
        page.get_by_label("Name").fill(f"{scheme} {width}")
        page.get_by_role("button", name="Make the key").click()
        expect(page.get_by_role("button", name="Copy")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert _findings(tab, axe) == []


def _findings(tab: Tab, axe: str) -> list[str]:
    """What axe-core finds that is serious."""
    tab.page.evaluate(axe)
    found = tab.page.evaluate("async () => (await axe.run()).violations")
    return [
        f"{rule['id']}: {node['html'][:200]}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


def test_a_worker_is_drained_dies_and_comes_back(tab: Tab, site: Cluster) -> None:
    """The last test: it restarts the worker."""
    page = tab.open("#/workers")
    row = page.get_by_role("row").nth(1)
    expect(row).to_contain_text("active")
    row.get_by_role("button", name="Drain").click()
    page.get_by_role("dialog").get_by_role("button", name="Drain").click()
    expect(row).to_contain_text("draining")
    row.get_by_role("button", name="Undrain").click()
    expect(row).to_contain_text("active")
    epoch = row.locator("code").last.inner_text()
    (worker,) = site.workers
    worker.kill()
    expect(row).to_contain_text("unreachable", timeout=40_000)
    worker.start()
    expect(row).to_contain_text("active", timeout=30_000)
    expect(row.locator("code").last).not_to_have_text(epoch)
