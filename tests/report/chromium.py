"""Pages opened in a real browser, which is asked over its debugging protocol: Debian's chromium, or Google's Chrome."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

EXECUTABLE = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(EXECUTABLE is None, reason="no chromium is installed: apt-get install chromium")
WIDTHS = (1280, 390)  # a desk, a phone
PAPER = {False: "rgb(255, 255, 255)", True: "rgb(16, 19, 26)"}  # --paper of page.css, light and dark
LEAST_CONTRAST = 4.5  # WCAG 2.1, AA

_SECONDS = 60.0  # for an answer
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
)  # fmt: skip

# Of each figure its title, and how many of its shapes take room, but for the axes.
_FIGURES = """[...document.querySelectorAll("figure")].map((figure) => {
  const drawn = [...figure.querySelectorAll("svg path, svg rect, svg circle")];
  const boxes = drawn.map((shape) => shape.getBoundingClientRect());
  return {title: (figure.querySelector("figcaption strong") || {textContent: ""}).textContent,
          shapes: boxes.filter((box) => box.width > 0 || box.height > 0).length,
          width: figure.querySelector("svg").getBoundingClientRect().width};
})"""
# What a pointer in the middle of each chart with a curve reads.
_READ = """[...document.querySelectorAll("figure[data-lines] svg")].map((svg) => {
  const box = svg.getBoundingClientRect();
  svg.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + box.width / 2, clientY: box.top + 5}));
  return svg.parentElement.querySelector(".at").textContent;
})"""
# The least contrast of a text on the page with its paper, and the text.
_CONTRAST = """(() => {
  const light = (color) => {
    const parts = color.match(/[\\d.]+/g).slice(0, 3).map((c) => c / 255);
    const [r, g, b] = parts.map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const texts = [...document.querySelectorAll("main *")].filter(
    (e) => e.tagName !== "title" && [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()));
  return texts.map((e) => {
    const ink = light(e.closest("svg") ? getComputedStyle(e).fill : getComputedStyle(e).color);
    return [(Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05), e.textContent.trim().slice(0, 60)];
  }).reduce((least, each) => (each[0] < least[0] ? each : least), [99, ""]);
})()"""


class Chromium:
    """A browser; it takes commands and gives answers and events as JSON, each ended by a zero byte."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._number = 0
        self._rest = b""
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {
            "id": self._number,
            "method": method,
            "params": params,
            **({"sessionId": session} if session else {}),
        }
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def wait_for(self, method: str, session: str) -> None:
        while not any(e.get("method") == method and e.get("sessionId") == session for e in self.events):
            self.events.append(self._next())

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + _SECONDS
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "chromium does not answer"
            read = os.read(self._answers, 1 << 20)
            assert read, "chromium has ended"
            self._rest += read
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)


class OpenPage:
    """A page in a window of some width, by day or by night."""

    def __init__(self, browser: Chromium, file: Path, width: int, *, dark: bool) -> None:
        self._browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.url = file.resolve().as_uri()
        self.call("Page.navigate", url=self.url)
        browser.wait_for("Page.loadEventFired", self._session)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **params)

    def evaluate(self, script: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def errors(self) -> list[dict[str, Any]]:
        """What the page complained of: exceptions, console.error and warnings, what could not be loaded."""
        kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [e for e in self._own_events() if e["method"] in kinds]

    def requests(self) -> list[str]:
        """What was asked for beside the page itself."""
        asked = [
            e["params"]["request"]["url"] for e in self._own_events() if e["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in asked if url != self.url]

    def _own_events(self) -> list[dict[str, Any]]:
        return [event for event in self._browser.events if event.get("sessionId") == self._session]


@contextmanager
def chromium(profile: Path) -> Iterator[Chromium]:
    """Start one, with an empty profile, and end it."""
    assert EXECUTABLE
    (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
    low, high = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (theirs_in, theirs_out))
    script = f'exec "$@" 3<&{low} 4>&{high}'  # the numbers that chromium takes for its pipes
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", EXECUTABLE, *_FLAGS, f"--user-data-dir={profile}"],
        pass_fds=(low, high),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for fd in (theirs_in, theirs_out, low, high):
        os.close(fd)
    try:
        browser = Chromium(ours_out, ours_in)
        yield browser
        browser.call("Browser.close")
    finally:
        process.terminate()
        process.wait(timeout=_SECONDS)
        os.close(ours_out)
        os.close(ours_in)


def check_page(browser: Chromium, file: Path) -> list[str]:
    """Check what holds for every page, on a desk and a phone, by day and by night; return its figures' titles."""
    titles: list[str] = []
    for width in WIDTHS:
        for dark in (False, True):
            page = OpenPage(browser, file, width, dark=dark)
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") == PAPER[dark]
            contrast, text = page.evaluate(_CONTRAST)
            assert contrast >= LEAST_CONTRAST, f"{text!r} has a contrast of {contrast:.2f}, dark: {dark}"
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, f"scrolls sideways: {wide} wide in {width}"
            figures = page.evaluate(_FIGURES)
            for figure in figures:
                assert figure["title"].strip(), "a figure has no title"
                assert figure["shapes"] > 0, f"{figure['title']} is empty"
                assert 100 < figure["width"] <= width
            assert all(page.evaluate(_READ)), "a chart says nothing under the pointer"
            assert page.errors() == [], page.errors()
            assert page.requests() == [], page.requests()
            titles = [figure["title"] for figure in figures]
    return titles
