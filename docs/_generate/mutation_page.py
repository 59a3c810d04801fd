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
assigned). The tests of the same room that call the changed function run until one fails: then the
mutant is *killed*. `nox -s mutation -- layers numerics` takes such figures and writes this page.

Each mutant gets a limited time of tests (column *seconds*, processor time): those of the module of
the same name, then the quickest. So a survivor may be a mutant that only a slower test kills. Not
mutated: messages of errors, the case of strings, code outside functions, and decorated functions,
which mutmut cannot change.

A survivor with a reason is no gap: the change makes no difference that a caller can see. A survivor
without a reason is a test to be written. Mutants run in a random order, so those of a file that is
not complete (column *not run*) are a random sample.

| file | mutants | not run | killed | too slow | survive, with a reason | open | seconds | date |
|---|---|---|---|---|---|---|---|---|"""
    for name, one in sorted(figures.items()):
        reasons = [reason(name, survivor) for survivor in one["survivors"]]
        said = sum(why is not None for why in reasons)
        yield (
            f"| {name.removeprefix('gptoss_ref/')} | {one['mutants']} | {one['not_run']} | "
            f"{one['killed']} | {one['slow']} | {said} | {len(reasons) - said} | "
            f"{one['seconds']:g} | {one['date']} |"
        )
    count = {
        key: sum(one[key] for one in figures.values())
        for key in ("mutants", "not_run", "killed", "slow")
    }
    tried = count["mutants"] - count["not_run"]
    yield (
        f"\n{tried:,} of {count['mutants']:,} mutants were run; "
        f"{count['killed'] + count['slow']:,} of them were killed or too slow. *Too slow*: a test "
        "took ten times as long as without the mutant and ten seconds more, usually in a loop."
    )
    every = [path.as_posix() for room in ROOMS.values() for path in files(room)]
    missing = [name for name in every if name not in figures]
    if missing:
        yield f"\nNot run: {', '.join(name.removeprefix('gptoss_ref/') for name in missing)}."
    yield f"\nRun with {'; '.join(sorted({one['versions'] for one in figures.values()}))}."
    for name, one in sorted(figures.items()):
        if one["survivors"]:
            yield f"\n## {name.removeprefix('gptoss_ref/')}\n"
            yield "| function | code | mutant | reason |\n|---|---|---|---|"
        for survivor in one["survivors"]:
            why = reason(name, survivor) or "**open**"
            before, after = (_code(survivor[side]) for side in ("before", "after"))
            yield f"| {survivor['function']} | {before} | {after} | {why} |"


def _code(text: str) -> str:
    """As code within a table."""
    return f"`{text}`".replace("|", "\\|") if text else ""
