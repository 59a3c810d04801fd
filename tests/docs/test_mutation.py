"""docs/mutation.md is what its script makes of the figures, and reasons are for what survived."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from docs._generate import mutation_page
from docs._generate.mutation_mutants import changed, marked, plain_name
from docs._generate.mutation_page import FIGURES, PAGE, page
from docs._generate.mutation_reasons import REASONS
from docs._generate.mutation_rooms import ROOMS, ROOT, files, own_tests
from docs._generate.mutation_runner import KILLED, SLOW, SURVIVED, forked, known, within
from docs._generate.mutation_runner import lines as stored


def figures() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FIGURES.read_text("utf-8"))
    return found


def test_the_page_is_that_of_the_figures() -> None:
    assert PAGE.read_text("utf-8") == page(figures())


def test_the_figures_are_of_code_that_exists() -> None:
    """A file that changed where a mutant survived has to be run again."""
    code = {path for room in ROOMS.values() for path in files(room)}
    for name, one in figures().items():
        assert Path(name) in code
        tried = one["killed"] + one["slow"] + len(one["survivors"])
        assert one["mutants"] == tried + one["not_run"]
        text = " ".join((ROOT / name).read_text("utf-8").split())
        for survivor in one["survivors"]:
            for line in survivor["before"].splitlines():
                assert " ".join(line.split()) in text, (name, line)


def test_every_file_has_tests() -> None:
    for room in ROOMS.values():
        for file in files(room):
            assert all((ROOT / name).exists() for name in own_tests(room, file))


def test_every_reason_is_for_something_that_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    survivors = [(name, s) for name, one in figures().items() for s in one["survivors"]]
    for key, why in REASONS.items():
        monkeypatch.setattr(mutation_page, "REASONS", {key: why})
        assert any(mutation_page.reason(name, survivor) for name, survivor in survivors), key


def test_the_making_of_an_error_is_not_mutated() -> None:
    source = (
        "def f(x):\n    if x:\n        raise problem(\n            'no'\n        )\n    x += 1\n"
        "    if x:\n        return ValueError('no')\n    return x\n"
    )
    mark = "  # pragma: no mutate"
    lines = marked(source).splitlines()
    assert [n for n, line in enumerate(lines) if line.endswith(mark)] == [2, 3, 4, 7]
    assert "\n".join(line.removesuffix(mark) for line in lines) + "\n" == source


def test_a_survivor_is_told_by_its_lines() -> None:
    before = ["def f(x):", "    y = x + 1  # pragma: no mutate", "    return y"]
    after = ["def f(x):", "    y = x - 1  # pragma: no mutate", "    return y"]
    assert changed(before, after) == ("y = x + 1", "y = x - 1")
    assert plain_name("xǁToolǁf__mutmut_12") == "Tool.f"
    assert plain_name("x_f__mutmut_orig") == plain_name("x_f__mutmut_3") == "f"


def result(digest: str, outcome: str, tests: str) -> str:
    said = {"file": "x.py", "function": "f", "before": "a", "after": "b"}
    return json.dumps({"digest": digest, "outcome": outcome, "tests": tests, **said}) + "\n"


def test_a_run_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed mutant stays killed; a survivor without a reason is tried again with other tests."""
    results = tmp_path / "room.jsonl"
    assert known(results, "new") == set()
    results.write_text(
        result("a", KILLED, "old") + result("b", SURVIVED, "old") + result("c", SURVIVED, "new")
    )
    assert known(results, "new") == {"a", "c"}
    results.write_text(results.read_text() + result("b", KILLED, "new"))
    assert known(results, "new") == {"a", "b", "c"}
    assert {one["digest"]: one["outcome"] for one in stored(results)}["b"] == KILLED
    results.write_text(result("a", SURVIVED, "old"))
    monkeypatch.setitem(REASONS, ("x.py", "f", "b"), "why")
    assert known(results, "new") == {"a"}


def test_tests_of_many_functions_come_first() -> None:
    seconds = {"f[1]": 0.1, "f[2]": 0.2, "g": 1.0, "h": 9.0}
    assert list(within(2, seconds)) == ["f[1]", "g", "f[2]"]
    assert list(within(0.01, {"h": 9.0})) == ["h"]
    assert list(within(9, {"a.py::f": 0.1, "b.py::g[1]": 2, "b.py::g[2]": 3}, "b.py::")) == [
        "b.py::g[1]", "b.py::g[2]", "a.py::f"
    ]  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the run forks")
def test_a_child_that_loops_is_too_slow() -> None:
    def loop() -> tuple[str, str]:
        while True:
            pass

    assert forked(loop, 0.5) == (SLOW, "SIGXCPU")
    assert forked(lambda: (KILLED, "a test"), 5) == (KILLED, "a test")
    assert forked(lambda: os._exit(3), 5)[0] == KILLED
