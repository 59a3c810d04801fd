"""docs/mutation.md is what its script makes of the figures, and reasons are for what survived."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from docs._generate import mutation_page
from docs._generate.mutation import changed, marked
from docs._generate.mutation_page import FIGURES, PAGE, page
from docs._generate.mutation_reasons import REASONS
from docs._generate.mutation_rooms import ROOMS, ROOT, files, own_tests


def figures() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FIGURES.read_text("utf-8"))
    return found


def test_the_page_is_that_of_the_figures() -> None:
    assert PAGE.read_text("utf-8") == page(figures())


def test_the_figures_add_up_and_are_of_files_that_exist() -> None:
    code = {path for room in ROOMS.values() for path in files(room)}
    for name, one in figures().items():
        assert Path(name) in code
        assert one["mutants"] == one["killed"] + one["slow"] + len(one["survivors"])


def test_every_file_has_tests() -> None:
    for room in ROOMS.values():
        for file in files(room):
            assert all((ROOT / name).exists() for name in own_tests(room, file))


def test_every_reason_is_for_something_that_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    survivors = [(name, s) for name, one in figures().items() for s in one["survivors"]]
    for key, why in REASONS.items():
        monkeypatch.setattr(mutation_page, "REASONS", {key: why})
        assert any(mutation_page.reason(name, survivor) for name, survivor in survivors), key


def test_what_a_raise_says_is_not_mutated() -> None:
    source = (
        "def f(x):\n    if x:\n        raise ValueError(\n            'no'\n        )\n    x += 1\n"
    )
    mark = "  # pragma: no mutate"
    lines = marked(source).splitlines()
    assert [n for n, line in enumerate(lines) if line.endswith(mark)] == [2, 3, 4]
    assert "\n".join(line.removesuffix(mark) for line in lines) + "\n" == source


def test_a_survivor_is_told_by_its_lines() -> None:
    diff = "--- a\n+++ b\n@@ -1,3 +1,3 @@\n def f(x):\n-    return x + 1\n+    return x - 1\n"
    assert changed("gptoss_ref.chat.tools.xǁToolǁf__mutmut_12", diff) == {
        "function": "Tool.f",
        "before": "return x + 1",
        "after": "return x - 1",
    }
