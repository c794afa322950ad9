"""Chromium, without a window, as the tests of the page drive it."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, ConsoleMessage, Page, Request, sync_playwright

from boxlite_server.errors import EngineError
from boxlite_server.local import machine

PROGRAMS = ("chromium", "chromium-browser", "google-chrome-stable")
# As root, in a container: there is neither a sandbox nor a large /dev/shm.
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage"]


def program() -> str:
    """The path of Chromium, which is installed by apt where it is missing; skips the test where it cannot be."""
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if found is None:
        try:
            machine.apt_install("chromium")
        except EngineError as error:
            pytest.skip(f"no Chromium: {error}")
        found = shutil.which(PROGRAMS[0])
    assert found is not None
    return found


@contextmanager
def chromium() -> Iterator[Any]:
    """A running Chromium."""
    path = program()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


class Tab:
    """A tab that shows the page at `url`, and what it says and asks for meanwhile."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.url = url
        self.asked: list[str] = []  # addresses of requests
        self.complaints: list[str] = []  # what the console has of errors and warnings
        self.page: Page = context.new_page()
        self.page.on("request", self._note_request)
        self.page.on("websocket", lambda socket: self.asked.append(socket.url))
        self.page.on("console", self._note_console)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _note_request(self, request: Request) -> None:
        if not request.url.startswith("blob:"):
            self.asked.append(request.url)

    def _note_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.text} {message.location.get('url')}")

    def open(self, view: str = "") -> Page:
        """Show a view, and wait until it is there."""
        self.page.goto(f"{self.url}/ui/{view}")
        self.page.locator("h1").wait_for()
        return self.page

    def sign_in(self, key: str) -> None:
        """Sign in with a key."""
        if not self.page.get_by_label("API key").is_visible():
            self.open()
        self.page.get_by_label("API key").fill(key)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.get_by_role("navigation", name="Main").wait_for()

    @property
    def screen(self) -> str:
        """What the terminal shows."""
        return self.page.locator(".xterm-rows").inner_text()

    def types(self, line: str, *shows: str, seconds: float = 30) -> None:
        """Type a line into the terminal, and wait until it shows a text."""
        self.page.keyboard.type(f"{line}\n")
        for text in shows:
            self.until(text, seconds)

    def until(self, pattern: str, seconds: float = 30) -> None:
        """Wait until the terminal shows what the regular expression matches."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.screen):
            assert time.monotonic() < deadline, f"the terminal does not show {pattern}:\n{self.screen}"
            time.sleep(0.05)
