"""Results as JSON, as a table for people, and as ratios in README.md and docs/performance.md."""

from __future__ import annotations

import os
import platform
import re
import statistics
import textwrap
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .harness import Attempts, Comparison, Figure, Result, Skipped, percentile

_BEGIN, _END = "<!-- bench -->", "<!-- /bench -->"
_MAIN = {  # what README.md tells
    "run": "a command in one request",
    "exec": "a command over the WebSocket",
    "output": "256 MiB of output",
    "small-up": "a file of 1 KiB up",
    "small-down": "and down",
    "large-up": "64 MiB up",
    "large-down": "and down",
    "cold-start": "a cold start",
    "warm-start": "a warm start",
}


def machine(engine_version: str) -> dict[str, Any]:
    """When and where it was measured."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "cpus": os.cpu_count(),
        "memory_gib": round(memory / 2**30),
        "load": round(os.getloadavg()[0], 1),
        "kernel": platform.release(),
        "engine": engine_version,
        "python": platform.python_version(),
    }


def as_json(about: dict[str, Any], results: Iterable[Result]) -> dict[str, Any]:
    """All that was measured: times in seconds, round by round, and what follows from them."""
    return {**about, "results": [_row(result) for result in results]}


def _row(result: Result) -> dict[str, Any]:
    row: dict[str, Any] = {**vars(result), "kind": type(result).__name__.lower()}
    if isinstance(result, Comparison):
        low, high = result.interval
        row |= {"ratio": result.ratio, "low": low, "high": high, "p95_ratio": result.p95_ratio}
    return row


def heading(about: dict[str, Any]) -> str:
    """The date and the machine's size in a line."""
    return (
        f"{about['date']}, {about['cpus']} cpus, {about['memory_gib']} GiB, load {about['load']} at the beginning, "
        f"Docker Engine {about['engine']}, Python {about['python']}"
    )


def table(results: Iterable[Result]) -> str:
    """A Markdown table of all results, times in milliseconds."""
    lines = ["| | ratio of medians (95 %) | p95 ÷ their median | ours: median, p95 | docker SDK: median, p95 |"]
    lines.append("|---|---|---|---|---|")
    return "\n".join([*lines, *map(line, results)])


def line(result: Result) -> str:
    """The row of a result in `table`."""
    match result:
        case Comparison():
            low, high = result.interval
            ratio = f"**{result.ratio:.2f}** ({low:.2f}–{high:.2f})"
            sides = f"{_milliseconds(result.ours, 95)} | {_milliseconds(result.theirs, 95)}"
            return f"| {result.title} | {ratio} | {result.p95_ratio:.2f} | {sides} |"
        case Attempts():
            done = f"{len(result.times)} of {result.attempts}"
            if not result.times:
                return f"| {result.title} | {done} | | | |"
            ratio = f"**{_against(result):.2f}**, {done} succeeded"
            theirs = _milliseconds(result.against)
            return f"| {result.title} | {ratio} | | {_milliseconds(result.times, 95, 99)} (p99) | {theirs} |"
        case Figure():
            return f"| {result.title} | **{result.value:.2f}** {result.unit} | | | |"
        case Skipped():
            return f"| {result.title} | skipped: {result.reason} | | | |"


def _milliseconds(times: list[float], *percents: int) -> str:
    values = [statistics.median(times), *(percentile(times, percent) for percent in percents)]
    return ", ".join(f"{value * 1000:.1f}" for value in values)


def _against(result: Attempts, percent: int = 50) -> float:
    return percentile(result.times, percent) / statistics.median(result.against)


def write_docs(readme: Path, page: Path, about: dict[str, Any], results: Iterable[Result]) -> None:
    """Put all ratios between the marks in a page, and a sentence of the main ones between those in README.md."""
    rows, main = ["| | median | p95 |", "|---|---|---|"], []
    for result in results:
        if isinstance(result, Comparison):
            rows.append(f"| {result.title} | {result.ratio:.2f} | {result.p95_ratio:.2f} |")
            if result.name in _MAIN:
                main.append(f"{_MAIN[result.name]} {result.ratio:.2f}")
        elif isinstance(result, Attempts) and result.times:
            failed = result.attempts - len(result.times)
            title = result.title + (f" ({failed} of {result.attempts} failed)" if failed else "")
            rows.append(f"| {title} | {_against(result):.2f} | {_against(result, 95):.2f} |")
    _put(page, [*rows, f"\n{heading(about)}."])
    sentence = f"{', '.join(main)} ({about['date']}, {about['cpus']} cpus, {about['memory_gib']} GiB)."
    _put(readme, [textwrap.fill(sentence, 118)])


def _put(path: Path, lines: list[str]) -> None:
    new, count = re.subn(
        f"{_BEGIN}.*{_END}", lambda _: "\n".join([_BEGIN, *lines, _END]), path.read_text(), count=1, flags=re.DOTALL
    )
    if not count:
        raise SystemExit(f"{path} has no place for the figures: {_BEGIN} … {_END}")
    path.write_text(new)
