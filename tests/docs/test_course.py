"""All chapters of the course: built alike, and every exercise has a solution that is tested."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.course import CHAPTERS, EXERCISES

PARTS = [
    *("Question", "Picture", "Equation", "Code", "Experiment", "What goes wrong", "Exercise"),
    "What you can now say",
]


def parts_of(chapter: Path) -> dict[str, str]:
    """Its sections by their titles."""
    _, *parts = re.split(r"^## (.+)\n", chapter.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_the_chapters_are_numbered() -> None:
    assert [int(chapter.stem[:2]) for chapter in CHAPTERS] == list(range(1, len(CHAPTERS) + 1))


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_has_its_parts(chapter: Path) -> None:
    parts = parts_of(chapter)
    assert list(parts) == PARTS
    assert "```{code-cell}" in parts["Picture"]
    assert "$$" in parts["Equation"]
    assert "```{literalinclude} ../../gptoss_ref/" in parts["Code"]
    assert re.search(r"^\w.* = .*  # <- ", parts["Experiment"], re.MULTILINE)  # what to change
    assert all(text.strip() for text in parts.values())


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_its_exercises_have_solutions(chapter: Path) -> None:
    text = parts_of(chapter)["Exercise"]
    assert f"[Solutions](solutions/{chapter.stem}.py)" in text
    solved = {(name, operation) for stem, name, operation in EXERCISES if stem == chapter.stem}
    asked = re.findall(r"^\$ gptoss-ref check mine\.py:(\w+) (\w+)$", text, re.MULTILINE)
    assert asked
    assert set(asked) <= solved
