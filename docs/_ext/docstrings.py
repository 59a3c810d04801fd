"""Docstrings as they are meant here, before and after napoleon reads their sections.

What a docstring indents is a formula or code: it is shown as written, not flowed together. A colon
in the docstring of a constant is a colon, not the end of a type.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx
from sphinx.ext.napoleon import GoogleDocstring


def setup(app: Sphinx) -> dict[str, Any]:
    app.setup_extension("sphinx.ext.napoleon")
    app.connect("autodoc-process-docstring", formulas_as_written, priority=400)
    app.connect("autodoc-process-docstring", one_sentence, priority=600)  # after napoleon
    app.connect("autodoc-process-docstring", fields_in_common, priority=700)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


PLAIN: dict[str, list[str]] = {}


def formulas_as_written(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Makes a literal block of an indented one that follows a paragraph and an empty line."""
    shown: list[str] = []
    inside = False
    for before, line in zip(["", *lines], lines, strict=False):
        indented = line.startswith("    ")
        above = next(filter(None, reversed(shown)), " ")
        if indented and not before and not inside and above[0] not in " ." and above[-2:] != "::":
            shown += [".. code-block:: text", ""]
            inside = True
        elif line and not indented:
            inside = False
        shown.append(line)
    lines[:] = shown
    if what in ("attribute", "data", "property"):
        PLAIN[name] = shown


def one_sentence(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Undoes what napoleon makes of "Scores held at a time: 64 MiB": a type and a description.

    Its sections are processed, as those of a method.
    """
    if name in PLAIN:
        lines[:] = GoogleDocstring(
            PLAIN.pop(name), app.config, app, "method", name, obj, options
        ).lines()


def fields_in_common(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Keeps "left, taken: …" from being read as a field ``taken`` of the type ``left``."""
    lines[:] = [
        re.sub(r"(?<=^:ivar )\w+(, \w+)+(?=:)", lambda m: m[0].replace(", ", ","), line)
        for line in lines
    ]
