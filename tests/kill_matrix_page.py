"""The kill matrix as a page of the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from buggy_twin import BUGS, why_unseen

COLUMNS = [(c, d) for c in ("random", "tiny") for d in ("float32", "bfloat16")]

INTRODUCTION = """# Kill matrix

Does `diagnose` name the bug? Every bug below is built into a torch implementation of gpt-oss that
shares no code with this package (`tests/buggy_twin`), as the implementations that were reported had
it. Its tap points, and nothing else, are given to `diagnose`.

What a report leaves open (how many rows a shard lost, whose sink a head was given) was settled in
words between the authors of the twin and of [the catalogue](mutants.md); the twin was written
without sight of the catalogue's code. Where the twin had a bug in a form that the catalogue then
lacked, the catalogue was given it as a further form: those are the variants below.

*random* is a checkpoint of 4 layers whose dimensions all differ, *tiny* the bundled trained model.
**1** means that the bug is the first cause named, a higher number its rank, – that it is not among
the causes; *none* that no number changes, for the reason in the notes. Columns headed *logits* give
`diagnose` nothing but the logits: there rounding hides the smallest effects, and NaN all others.
A name in bold in the later tables is not what it should be.

This page is generated: `python tests/kill_matrix.py --write docs/kill_matrix.md`.
"""


def page(every: Sequence[Any], cells: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown; a cell that was not run is left empty."""
    lines = [INTRODUCTION, *_summary(every, cells), *_singles(every, cells), *_unseen()]
    for part, title, text in (
        ("variant", "The same bug made another way", "What follows the slash says which way."),
        ("pair", "Two bugs at once", "Random pairs; both have to be the first two causes."),
        (
            "rewriting",
            "Rewritings that are right",
            "The same function computed otherwise. Nothing may be accused.",
        ),
        ("correct", "Correct runs", "Other seeds and prompts. Nothing may be accused."),
    ):
        chosen = [case for case in every if case.part == part]
        lines += ["", f"## {title}", "", text, "", "| what | checkpoint | dtype | named |"]
        lines += ["|---|---|---|---|"]
        for case in chosen:
            cell = cells.get(case.key)
            said = "" if cell is None else ", ".join(cell["named"][:2]) or "nothing"
            if cell is not None and not cell["ok"]:
                said = f"**{said}**"
            what = " + ".join(case.bugs) or f"prompt {case.seed}"
            lines.append(f"| {what} | {case.checkpoint} | {case.dtype} | {said} |")
    return "\n".join(lines) + "\n"


def _summary(every: Sequence[Any], cells: Mapping[str, Mapping[str, Any]]) -> list[str]:
    titles = {
        "single": "one bug, all tap points",
        "logits": "one bug, logits only",
        "variant": "variants",
        "pair": "pairs",
        "rewriting": "rewritings",
        "correct": "correct runs",
    }
    lines = ["| part | as it should be | of | seconds each, mean |", "|---|---|---|---|"]
    for part, title in titles.items():
        ran = [cells[case.key] for case in every if case.part == part and case.key in cells]
        if ran:
            good = sum(cell["ok"] for cell in ran)
            mean = sum(cell["seconds"] for cell in ran) / len(ran)
            lines.append(f"| {title} | {good} | {len(ran)} | {mean:.1f} |")
    return lines


def _singles(every: Sequence[Any], cells: Mapping[str, Mapping[str, Any]]) -> list[str]:
    keys = {(case.part, case.bugs, case.checkpoint, case.dtype): case.key for case in every}
    heads = [f"{c} {d}{kind}" for kind in ("", " logits") for c, d in COLUMNS]
    lines = ["", "## One bug", "", "| bug | " + " | ".join(heads) + " |"]
    lines.append("|---" * (1 + len(heads)) + "|")
    for bug in BUGS:
        row = []
        for part in ("single", "logits"):
            for checkpoint, dtype in COLUMNS:
                key = keys.get((part, (bug,), checkpoint, dtype))
                if key is None:
                    row.append("*none*")
                elif key not in cells:
                    row.append("")
                else:
                    named = cells[key]["named"]
                    row.append(f"**{named.index(bug) + 1}**" if bug in named else "–")
        lines.append(f"| {bug} | " + " | ".join(row) + " |")
    return lines


def _unseen() -> list[str]:
    lines = ["", "### What cannot show", ""]
    for bug in BUGS:
        reasons: dict[str, list[str]] = {}
        for checkpoint, dtype in COLUMNS:
            why = why_unseen(bug, checkpoint, dtype)
            if why is not None:
                reasons.setdefault(why, []).append(f"{checkpoint} {dtype}")
        for why, where in reasons.items():
            places = "anywhere" if len(where) == len(COLUMNS) else ", ".join(where)
            lines.append(f"- `{bug}` ({places}): {why}.")
    return lines
