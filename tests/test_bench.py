"""The harness of `make bench`: what it measures, and what it says of that."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import report
from bench.harness import Attempts, Comparison, Figure, Skipped, compare, percentile

ABOUT = {"date": "2026-11-27", "cpus": 2, "memory_gib": 24, "load": 0.5, "engine": "20.10.24", "python": "3.11.7"}
TWICE = Comparison("exec", "exec of `true`", [0.2, 0.2, 0.3], [0.1, 0.1, 0.1])


def test_both_sides_are_measured_in_turn_and_what_they_leave_is_done_after_each() -> None:
    done: list[str] = []

    def side(name: str) -> Callable[[], object]:
        def act() -> object:
            done.append(name)
            return lambda: done.append(f"rest of {name}")

        return act

    result = compare("x", "X", side("ours"), side("theirs"), rounds=2)
    assert len(result.ours) == len(result.theirs) == 2
    sides = [name for name in done if not name.startswith("rest")]
    assert sides[-4:] == ["theirs", "ours", "ours", "theirs"]
    assert done == [step for name in sides for step in (name, f"rest of {name}")]


def test_a_short_action_is_measured_several_times_in_a_row_on_each_side() -> None:
    done: list[str] = []
    result = compare("x", "X", lambda: done.append("ours"), lambda: done.append("theirs"), rounds=2, in_a_row=3)
    assert done[-12:] == ["theirs"] * 3 + ["ours"] * 6 + ["theirs"] * 3
    assert len(result.ours) == len(result.theirs) == 6
    assert Comparison("x", "X", [1.0, 1.0, 3.0, 3.0], [1.0] * 4, in_a_row=2).interval == (1.0, 3.0)  # rounds are drawn


def test_a_comparison_gives_the_ratio_of_the_medians_with_its_interval() -> None:
    low, high = TWICE.interval
    assert TWICE.ratio == pytest.approx(2)
    assert low == pytest.approx(2)
    assert 2 < high <= 3
    assert TWICE.p95_ratio == pytest.approx(2.9)


def test_a_percentile_lies_between_two_values() -> None:
    assert percentile([3.0, 1.0, 2.0], 50) == 2
    assert percentile([1.0, 2.0], 75) == 1.75
    assert percentile([1.0], 99) == 1


def test_the_table_has_a_row_for_each_result_and_says_why_a_case_was_skipped() -> None:
    results = [TWICE, Attempts("b", "100 at once", 3, [], [0.1]), Figure("m", "memory", 1.5, "MiB")]
    table = report.table([*results, Skipped("run", "`run`", "this server has no `run`")])
    assert "| exec of `true` | **2.00** (2.00–3.00) | 2.90 | 200.0, 290.0 | 100.0, 100.0 |" in table
    assert "| 100 at once | 0 of 3 |" in table
    assert "| memory | **1.50** MiB |" in table
    assert "skipped: this server has no `run`" in table


def test_json_has_all_times_and_the_ratio() -> None:
    found = json.loads(json.dumps(report.as_json(ABOUT, [TWICE])))
    assert found["cpus"] == 2
    assert found["results"][0]["ours"] == [0.2, 0.2, 0.3]
    assert found["results"][0]["ratio"] == pytest.approx(2)


def test_the_pages_get_ratios_between_their_marks(tmp_path: Path) -> None:
    readme, page = tmp_path / "README.md", tmp_path / "performance.md"
    for path in (readme, page):
        path.write_text("before\n<!-- bench -->\nold\n<!-- /bench -->\nafter\n")
    attempts = Attempts("b", "4 at once", 4, [0.2, 0.2, 0.2], [0.1])
    report.write_docs(readme, page, ABOUT, [TWICE, attempts, Figure("m", "memory", 1.5, "MiB")])
    text = page.read_text()
    assert text.startswith("before\n<!-- bench -->\n| | median | p95 |")
    assert "| exec of `true` | 2.00 | 2.90 |" in text
    assert "| 4 at once (1 of 4 failed) | 2.00 | 2.00 |" in text
    assert "2026-11-27, 2 cpus, 24 GiB" in text
    assert "old" not in text and "MiB" not in text
    assert text.endswith("<!-- /bench -->\nafter\n")
    sentence = "a command over the WebSocket 2.00 (2026-11-27, 2 cpus, 24 GiB)."
    assert readme.read_text() == f"before\n<!-- bench -->\n{sentence}\n<!-- /bench -->\nafter\n"
