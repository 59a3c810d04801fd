"""docs/reliability.md is what its script makes of the figures, and no figure hides a failure."""

from __future__ import annotations

from docs._generate.reliability import PAGE, figures, page
from tests.faults.__main__ import KINDS, plan
from tests.fuzz.__main__ import NAMES


def test_the_page_is_that_of_the_figures() -> None:
    assert PAGE.read_text("utf-8") == page(figures())


def test_nothing_failed_and_what_was_not_tried_is_named() -> None:
    known = figures()
    assert {name.split()[0] for name in known["fuzz"]} <= {*NAMES}
    scenarios = {name for kind in KINDS for name, _ in plan(kind, 1, 0, 1)}
    assert {*known["faults"]} <= scenarios
    for name in {*NAMES, *scenarios} - {n.split()[0] for n in known["fuzz"]} - {*known["faults"]}:
        assert name in page(known).split("Not yet run:")[1]
    for run in known["fuzz"].values():
        assert run["crashes"] == []
        assert run["inputs"] >= 1000
    for run in known["faults"].values():
        assert run["held"] == run["times"] > 0
        assert run["failures"] == []


def test_a_crash_and_a_failure_would_show() -> None:
    fuzz = dict(next(iter(figures()["fuzz"].values())), target="x", crashes=["a", "b"])
    fault = dict(next(iter(figures()["faults"].values())), times=7, held=5)
    text = page({"fuzz": {"x": fuzz}, "faults": {"y": fault}})
    assert "| 2 |" in next(line for line in text.splitlines() if line.startswith("| x |"))
    assert "| 7 | 5 |" in next(line for line in text.splitlines() if line.startswith("| y |"))
