"""docs/mutation.md, from the figures of the mutation run and the reasons for what survives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from docs._generate.mutation_reasons import REASONS
from docs._generate.mutation_rooms import ROOMS, files

HERE = Path(__file__).resolve().parent
FIGURES = HERE / "mutation.json"
PAGE = HERE.parent / "mutation.md"

Figures = Mapping[str, Mapping[str, Any]]


def reason(file: str, survivor: Mapping[str, str]) -> str | None:
    """Why a survivor is no gap of the tests; None if nobody has said so."""
    for (where, function, text), why in REASONS.items():
        here = file.endswith(where) and function in ("*", survivor["function"])
        if here and (text in survivor["before"] or text in survivor["after"]):
            return why
    return None


def page(figures: Figures) -> str:
    """The page."""
    return "\n".join(_lines(figures)) + "\n"


def _lines(figures: Figures) -> Iterator[str]:
    yield """# Mutation run

Which small changes of the code would the tests not notice? [mutmut](https://github.com/boxed/mutmut)
makes one change at a time (another operator, another constant, an argument left out, `None`
assigned) and runs those of the file's own tests (`tests/layers/test_rope.py` for `layers/rope.py`)
that call the changed function. A mutant is *killed* if a test fails. Messages of errors are not
mutated, and neither is code outside functions nor decorated functions, which mutmut cannot change.

`nox -s mutation -- layers numerics` takes these figures and writes this page. A survivor with a
reason is no gap: the change makes no difference that a caller could see, or something else would
notice. One without is a test to be written.

| file | mutants | killed | too slow | survived, with a reason | survived, open |
|---|---|---|---|---|---|"""
    for name, one in sorted(figures.items()):
        reasons = [reason(name, survivor) for survivor in one["survivors"]]
        said = sum(why is not None for why in reasons)
        yield (
            f"| {name} | {one['mutants']} | {one['killed']} | {one['slow']} | {said} | "
            f"{len(reasons) - said} |"
        )
    yield """
*Too slow*: it ran ten seconds longer than fifteen times as long as the tests do. It loops."""
    every = [path.as_posix() for room in ROOMS.values() for path in files(room)]
    missing = [name for name in every if name not in figures]
    if missing:
        yield f"\nNot run yet: {', '.join(name.removeprefix('gptoss_ref/') for name in missing)}."
    for name, one in sorted(figures.items()):
        if one["survivors"]:
            yield f"\n## {name}\n\n| function | code | mutant | reason |\n|---|---|---|---|"
        for survivor in one["survivors"]:
            why = reason(name, survivor) or "**open**"
            before, after = (_code(survivor[side]) for side in ("before", "after"))
            yield f"| {survivor['function']} | {before} | {after} | {why} |"


def _code(text: str) -> str:
    """As code within a table."""
    return f"`{text}`".replace("|", "\\|") if text else ""
