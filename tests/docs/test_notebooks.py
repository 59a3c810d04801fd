"""The course as notebooks: whole, and they run."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib
import pytest

from tests.support.course import CHAPTERS, TUTORIAL


@pytest.fixture(scope="module")
def notebooks() -> ModuleType:
    """The build's extension, imported as a file: Sphinx is not needed for this part of it."""
    path = TUTORIAL.parent / "_ext" / "notebooks.py"
    spec = importlib.util.spec_from_file_location("notebooks", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_code_and_numbers_are_in_their_places(notebooks: ModuleType, chapter: Path) -> None:
    content = json.loads(notebooks.written(chapter, lambda name: f"<{name}>"))
    page = chapter.read_text("utf-8")
    text = "\n".join("".join(c["source"]) for c in content["cells"] if c["cell_type"] == "markdown")
    code = [c for c in content["cells"] if c["cell_type"] == "code"]
    assert "{eval}" not in text
    assert "literalinclude" not in text
    assert not re.search(r"\{\w+\}`", text)
    assert len(code) == page.count("```{code-cell}")
    folded = [c for c in code if c["metadata"]]
    assert len(folded) == len(re.findall(r"tags: \[(hide|remove)-input\]", page))
    for name in re.findall(r"^:pyobject: (.*)$", page, re.MULTILINE):
        assert re.search(rf"(def|class) {name.split('.')[-1]}\b", text), name


@pytest.mark.parametrize("name", ["02_residual_stream", "06_swiglu"])
def test_it_runs_from_top_to_bottom(
    notebooks: ModuleType, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cell after cell in one namespace, each number evaluated at its place in the text."""
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {"__name__": "__main__"}
    page = TUTORIAL / f"{name}.md"
    numbers = []
    for cell in notebooks.cells_of(page.read_text("utf-8")):
        if cell.kind == "code":
            exec(compile(cell.source, name, "exec"), space)
        else:
            notebooks.filled(
                cell.source, page.parent, lambda n: numbers.append(eval(n, space)) or ""
            )
    assert all(number is not None for number in numbers)
