"""docs/mutants.md, for readers of it: ``python -m docs._generate.mutants_page`` writes it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gptoss_ref.config import GPT_OSS_20B
from gptoss_ref.verify.mutants import CATALOGUE, EQUIVALENT, TIES, Mutant

PAGE = Path(__file__).parents[1] / "mutants.md"

INTRODUCTION = """# What goes wrong in implementations of gpt-oss

Written by `docs/_generate/mutants_page.py` from `gptoss_ref/verify/mutants/`.

Each of these is one operation of the model replaced by a wrong one. `gptoss-ref diagnose` replays a
diverging stage under each and names what reproduces the other implementation's numbers. *Shows at*
is the first tap point that changes; the number of tokens is the shortest prompt, for the released
models, on which it can. Reports are issues and pull requests on GitHub that show the bug."""

PARTS: tuple[tuple[str, str, tuple[Mutant, ...]], ...] = (
    (
        "Bugs",
        "In the order of the model: position, attention, caches, experts, loading.",
        CATALOGUE,
    ),
    (
        "Ties",
        "Differences of rounding that may choose another expert where two are nearly equal. They "
        "are reported with the margin and never as an error.",
        TIES,
    ),
    (
        "Rewritings",
        "These compute the same. Some tap points differ, and nothing that follows from them does; "
        "they are never called a bug.",
        EQUIVALENT,
    ),
)


def entry(mutant: Mutant) -> str:
    """One mutant as Markdown."""
    lines = [f"### {mutant.name}", "", f"{mutant.summary} {mutant.consequence}"]
    if mutant.note:
        lines += ["", mutant.note]
    if mutant.equivalent:
        taps = ", ".join(f"`{tap}`" for tap in mutant.touches) or "no tap point"
        lines += ["", f"Changes {taps}."]
    else:
        shortest = mutant.shortest(GPT_OSS_20B)
        tokens = "1 token" if shortest == 1 else f"{shortest} tokens"
        lines += ["", f"Shows at `{mutant.stage}`, from {tokens} on."]
    if mutant.reports:
        lines[-1] += f" Reports: {', '.join(mutant.reports)}."
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    return "\n\n".join((INTRODUCTION, *_parts())) + "\n"


def _parts() -> Iterable[str]:
    for title, text, mutants in PARTS:
        yield f"## {title}\n\n{text}"
        yield from (entry(mutant) for mutant in mutants)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
