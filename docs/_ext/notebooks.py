"""Each chapter of the course as a notebook that needs nothing but the package.

A chapter is a MyST page. Opened as a notebook by Jupytext, it would lack the code that
``literalinclude`` shows and the numbers that ``{eval}`` computes. The build therefore writes
``notebooks/NN_topic.ipynb`` with both filled in and the drawing cells folded, and every chapter
links to its notebook.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = "notebooks"
_FENCE = re.compile(r"^```\{code-cell\}[^\n]*\n(.*?)^```$\n?", re.MULTILINE | re.DOTALL)
_OPTIONS = re.compile(r"\A(?:---\n(?P<yaml>.*?)\n---\n|(?P<colons>(?::[^\n]*\n)+))", re.DOTALL)
_INCLUDE = re.compile(
    r"^```\{literalinclude\} (?P<path>\S+)\n(?P<options>(?::[^\n]*\n)*)```$", re.MULTILINE
)
_EVALUATED = re.compile(r"\{eval\}`([^`]+)`")
_ROLE = re.compile(r"\{(?:func|mod|class|meth|data|attr|exc|obj)\}`~?(?:[^`<]*<)?([^`>]+)>?`")
_DOWNLOAD = re.compile(r"\{download\}`([^`<]+?)\s*<[^`]*>`")
_PICTURE = re.compile(r"^!\[([^\]]*)\]\((?!http)[^)]*\)$", re.MULTILINE)
_PAGE_LINK = re.compile(r"\]\((\d\d_\w+)\.md(#[^)]*)?\)")


@dataclass(frozen=True)
class Cell:
    """A part of a page: text, or code with its tags."""

    kind: str  # "markdown" or "code"
    source: str
    folded: bool = False


def cells_of(page: str) -> Iterator[Cell]:
    """The cells of a page, in its order; the front matter is left out."""
    body = re.sub(r"\A---\n.*?\n---\n", "", page, flags=re.DOTALL)
    at = 0
    for fence in _FENCE.finditer(body):
        yield Cell("markdown", body[at : fence.start()].strip())
        options = _OPTIONS.match(fence[1])
        code = fence[1][options.end() :] if options else fence[1]
        yield Cell("code", code.strip("\n"), "input]" in (options[0] if options else ""))
        at = fence.end()
    yield Cell("markdown", body[at:].strip())


def filled(text: str, folder: Path, value_of: Callable[[str], str]) -> str:
    """Markdown of a page in ``folder`` as Jupyter shows it: code and numbers in their places."""
    text = _INCLUDE.sub(lambda found: _included(found, folder), text)
    text = _EVALUATED.sub(lambda found: value_of(found[1]), text)
    text = _ROLE.sub(r"`\1`", text)
    text = _DOWNLOAD.sub(r"`\1`", text)
    text = _PICTURE.sub(r"*(On the page: a picture, \1)*", text)
    return _PAGE_LINK.sub(r"](\1.ipynb)", text)


def _included(found: re.Match[str], folder: Path) -> str:
    """The lines that a ``literalinclude`` shows, as a block of Python."""
    lines = (folder / found["path"]).read_text("utf-8").splitlines()
    given = re.findall(r"^:([\w-]+): ?(.*)$", found["options"], re.MULTILINE)
    options = {name: value.strip('"') for name, value in given}
    if "pyobject" in options:
        lines = _object(lines, options["pyobject"])
    for option, end in (("start-at", False), ("end-at", True), ("end-before", True)):
        if option in options:
            row = next(i for i, line in enumerate(lines) if options[option] in line)
            lines = lines[: row + (option == "end-at")] if end else lines[row:]
    language = options.get("language", "python")
    return f"```{language}\n" + textwrap.dedent("\n".join(lines)).strip("\n") + "\n```"


def _object(lines: list[str], path: str) -> list[str]:
    """The lines of the function or class of that dotted name."""
    body = ast.parse("\n".join(lines)).body
    node: Any = None
    for name in path.split("."):
        node = next(n for n in body if getattr(n, "name", None) == name)
        body = getattr(node, "body", [])
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    return lines[first - 1 : node.end_lineno]


def notebook(cells: list[Cell], name: str) -> dict[str, Any]:
    """The JSON of a notebook, format 4.5; ``name`` seeds the ids of its cells."""
    written = []
    for number, cell in enumerate(cell for cell in cells if cell.source):
        digest = hashlib.sha256(f"{name} {number}".encode()).hexdigest()[:8]
        as_json: dict[str, Any] = {
            "id": digest,
            "cell_type": cell.kind,
            "metadata": {"jupyter": {"source_hidden": True}} if cell.folded else {},
            "source": cell.source.splitlines(keepends=True),
        }
        if cell.kind == "code":
            as_json |= {"execution_count": None, "outputs": []}
        written.append(as_json)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {
        "cells": written,
        "metadata": {"kernelspec": kernel},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def written(page: Path, value_of: Callable[[str], str]) -> str:
    """The text of a page's notebook file; ``value_of`` is asked for each ``{eval}`` in order."""
    cells = [
        cell
        if cell.kind == "code"
        else Cell("markdown", filled(cell.source, page.parent, value_of))
        for cell in cells_of(page.read_text("utf-8"))
    ]
    return json.dumps(notebook(cells, page.stem), indent=1, ensure_ascii=False) + "\n"


def setup(app: Any) -> dict[str, Any]:
    """Records what ``{eval}`` gives while a page is built; then writes the notebooks."""
    from myst_nb.core.execute.inline import NotebookClientInline

    values: dict[str, list[str]] = defaultdict(list)
    evaluate = NotebookClientInline.eval_variable

    def recorded(client: Any, name: str) -> Any:
        outputs = evaluate(client, name)
        shown = outputs[0]["data"]["text/plain"] if outputs else ""
        values[str(client.path)].append(_unquoted(shown))
        return outputs

    NotebookClientInline.eval_variable = recorded
    app.connect("doctree-resolved", _link)
    app.connect("build-finished", lambda app, error: error or _write_all(app, values))
    return {"parallel_read_safe": False, "parallel_write_safe": True}


def _unquoted(shown: str) -> str:
    """The text of a string's repr, as the page shows it; all else as it is."""
    return str(ast.literal_eval(shown)) if shown[:1] in ("'", '"') else shown


def _chapters(app: Any) -> list[str]:
    return sorted(name for name in app.env.found_docs if re.match(r"tutorial/\d\d_", name))


def _write_all(app: Any, values: dict[str, list[str]]) -> None:
    folder = Path(app.outdir) / FOLDER
    folder.mkdir(exist_ok=True)
    for name in _chapters(app):
        page = Path(app.env.doc2path(name))
        given = iter(values[str(page)])
        text = written(page, lambda _, given=given: next(given))  # type: ignore[misc]
        (folder / f"{page.stem}.ipynb").write_text(text, "utf-8")


def _link(app: Any, doctree: Any, name: str) -> None:
    """Below a chapter's title: where its notebook is."""
    from docutils import nodes

    if name not in _chapters(app):
        return
    title = next(iter(doctree.findall(nodes.title)))
    file = f"../{FOLDER}/{name.rpartition('/')[2]}.ipynb"
    link = nodes.reference("", "this chapter as a notebook", refuri=file, internal=False)
    line = nodes.paragraph("", "", nodes.Text("Download "), link, nodes.Text("."))
    line["classes"].append("notebook-link")
    title.parent.insert(title.parent.index(title) + 1, line)
