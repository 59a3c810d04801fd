"""The kill matrix as a page of the documentation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from docs._generate.backward_matrix import with_section
from docs._generate.false_alarms import table
from tests.support.buggy_twin import BUGS, why_unseen

Cells = Mapping[str, Mapping[str, Any]]

COLUMNS = [(c, d) for c in ("random", "tiny") for d in ("float32", "bfloat16")]

INTRODUCTION = """# Kill matrix

Does `diagnose` name the bug? Every bug below is built into a torch implementation of gpt-oss that
shares no code with this package (`tests/support/buggy_twin`), as the implementations that were
reported had it. Its tap points, and nothing else, are given to `diagnose`; it is not told their
dtype, except where they are logits that are NaN throughout and cannot show it.

*random* is a checkpoint of 4 layers whose dimensions all differ, *tiny* the bundled trained model.
Neither holds all of the scale bytes 0, 134 and 255: for the three bugs that misread them, one block
of 32 weights in every expert is given that byte, in a copy of the weights that both sides load. In
the same way two biases of 40,000 make room for the overflow of float16.

## How it is counted

A cell is as it should be if the bug is the first cause named (of two bugs, if they are the first
two) **and** nothing else is accused: no further cause, no tap point left unexplained. A name that
the report lists as an alternative, which cannot be told from the cause on this input, is no
accusation; these cells have a ≈, and their alternatives are listed. Where nothing is wrong, nothing
may be named and nothing left unexplained.

## What it does not show

The matrix shows that `diagnose` recognises the bugs that it knows. Bugs with a parameter, such as
the length of a chunk or how many rows a shard lost, are searched with a list of values, and **the
twin's are among them**: what a report leaves open (whose sink a head was given, say) was settled in
words between the authors of the twin and of [the catalogue](mutants.md), and where the twin had a
bug in a form that the catalogue then lacked, the catalogue was given it as a further form. So the
variants below are fitted to each other. A parameter that is on no list comes out as unexplained,
with the mutant that comes nearest. The twin was written without sight of the catalogue's code.

This page is generated: `python -m docs._generate.kill_matrix --write docs/kill_matrix.md`.
"""

TITLES = {
    "single": "one bug, all tap points",
    "logits": "one bug, logits only",
    "overflow": "an overflow of float16",
    "variant": "variants",
    "pair": "pairs",
    "triple": "triples, all tap points",
    "triple-logits": "triples, logits only",
    "rewriting": "rewritings",
    "correct": "correct runs",
}

TABLES = (
    (
        "overflow",
        "A bug of float16 alone",
        "No line of code is wrong: large activations are held in float16. float32 and bfloat16 "
        "hold them, so that this is no row of the table above.",
    ),
    ("variant", "The same bug made another way", "What follows the slash says which way."),
    (
        "pair",
        "Two bugs at once",
        "Random pairs; both have to be named, and nothing else (`--pairs 75` tries 300). Left out "
        "are pairs in which one makes the other void, such as two values of one parameter (`VOID` "
        "in `docs/_generate/kill_matrix.py` lists them). `scale-0` and `scale-134` are therefore "
        "in no pair: from the output of the first block's experts on they leave nothing but NaN to "
        "look at. What goes wrong in the attention of that block could still be seen beside them, "
        "and is not tried.",
    ),
    (
        "triple",
        "Three bugs at once",
        "Random sets of three, two of one stage at most, none of which makes another void. All "
        "three have to be named, and nothing else.",
    ),
    (
        "triple-logits",
        "Three bugs at once, logits only",
        "The first three of these sets on *random* in each dtype (on *tiny* the tests try two "
        "sets that were reported); `diagnose` sees nothing but the logits. What is named in bold "
        "is not as it should be: a constant with a value that is on no list is fitted to logits "
        "alone, and not beside other bugs.",
    ),
    (
        "rewriting",
        "Rewritings that are right",
        "The same function computed otherwise. Nothing may be accused.",
    ),
    ("correct", "Correct runs", "Other seeds and prompts. Nothing may be accused."),
)


ALARMS = Path(__file__).with_name("false_alarms.json")

COUNTED = """No correct run may be accused. The runs are of tiny, on random prompts of up to 40
tokens, and of random models of odd shapes: one to three layers, groups of one to five query heads,
three to eleven experts in MXFP4 or dense matrices, some with sinks that take nearly everything,
one in nine so wide that the kernels multiply 16-bit integers.
They are computed by the compiled kernels on each instruction path of the machine, by the NumPy
layers and by transformers. Each run is judged by `diagnose`, and one in four also by `compare`,
with the model and without it. `python -m docs._generate.false_alarms` makes the table;
`nox -s false_alarms` draws a new seed and prints it."""


OPEN = {
    "single|yarn-concentration|tiny|bfloat16|0": (
        "a concentration that is 0.7 % too large, on tiny in bfloat16: nothing is said, because a "
        "rounding to bfloat16 is up to 0.4 %."
    ),
    "triple|clamp-gate-symmetric+up-plus-one-missing+yarn-no-concentration|tiny|float32|0": (
        "a symmetric clamp of the gate beside a missing +1, on tiny in float32: the clamp is not "
        "named. The cause has not been looked for."
    ),
    "triple|down-bias-missing+scale-by-hidden+yarn-concentration|tiny|bfloat16|0": (
        "the same concentration, 0.7 % too large in bfloat16, beside two other bugs, which are "
        "named."
    ),
}
"""Cells that are not as they should be, and what is known of them."""


def page(every: Sequence[Any], cells: Cells) -> str:
    """Markdown; a cell that was not run is left empty."""
    lines = [INTRODUCTION, *_summary(every, cells), *_singles(every, cells), *_unseen()]
    lines += _alternatives(every, cells)
    lines += ["", "## Open", "", *(f"- {text}" for text in OPEN.values())]
    for part, title, text in TABLES:
        chosen = [case for case in every if case.part == part]
        lines += ["", f"## {title}", "", text, "", "| what | checkpoint | dtype | named |"]
        lines += ["|---|---|---|---|"]
        for case in chosen:
            what = " + ".join(case.bugs) or f"prompt {case.seed}"
            said = _said(cells[case.key]) if case.key in cells else ""
            lines.append(f"| {what} | {case.checkpoint} | {case.dtype} | {said} |")
    lines += ["", *false_alarms()]
    return with_section("\n".join(lines) + "\n")


def false_alarms() -> list[str]:
    """The section of the correct runs by the thousand; its counts are stored beside this file."""
    lines = ["## Correct runs by the thousand", "", COUNTED, ""]
    return [*lines, *table(json.loads(ALARMS.read_text()))]


def _said(cell: Mapping[str, Any]) -> str:
    """What a report says, in bold if it is not what it should be."""
    text = ", ".join(cell["named"]) or "nothing"
    if cell["alternatives"]:
        text += f" ≈ {', '.join(cell['alternatives'])}"
    if cell["unexplained"]:
        text += f"; {cell['unexplained'][0]} unexplained"
    return text if cell["ok"] else f"**{text}**"


def _summary(every: Sequence[Any], cells: Cells) -> list[str]:
    lines = ["## Summary", ""]
    lines += ["| part | as it should be | of | of these ≈ | seconds each, mean |"]
    lines += ["|---|---|---|---|---|"]
    for part, title in TITLES.items():
        ran = [cells[case.key] for case in every if case.part == part and case.key in cells]
        if ran:
            good = [cell for cell in ran if cell["ok"]]
            alike = sum(bool(cell["alternatives"]) for cell in good)
            mean = sum(cell["seconds"] for cell in ran) / len(ran)
            lines.append(f"| {title} | {len(good)} | {len(ran)} | {alike} | {mean:.1f} |")
    return lines


def _singles(every: Sequence[Any], cells: Cells) -> list[str]:
    keys = {(case.part, case.bugs, case.checkpoint, case.dtype): case.key for case in every}
    heads = [f"{c} {d}{kind}" for kind in ("", " logits") for c, d in COLUMNS]
    lines = [
        "",
        "## One bug",
        "",
        "**1**: named, alone. A rank in plain type: named, but beside something else that is "
        "accused. –: not named. *none*: no number changes, for the reason below. The columns "
        "headed *logits* give `diagnose` nothing but the logits: there rounding hides the smallest "
        "effects, and NaN all others.",
        "",
        "| bug | " + " | ".join(heads) + " |",
        "|---" * (1 + len(heads)) + "|",
    ]
    for bug in BUGS:
        row = []
        for part in ("single", "logits"):
            for checkpoint, dtype in COLUMNS:
                key = keys.get((part, (bug,), checkpoint, dtype))
                if key is None:
                    row.append("*none*")
                else:
                    row.append(_mark(bug, cells[key]) if key in cells else "")
        lines.append(f"| {bug} | " + " | ".join(row) + " |")
    return lines


def _mark(bug: str, cell: Mapping[str, Any]) -> str:
    if cell["ok"]:
        return "**1** ≈" if cell["alternatives"] else "**1**"
    return str(cell["named"].index(bug) + 1) if bug in cell["named"] else "–"


def _unseen() -> list[str]:
    lines = ["", "### What cannot show", ""]
    for bug in BUGS:
        reasons: dict[str, list[str]] = {}
        for dtype in ("float32", "bfloat16"):
            why = why_unseen(bug, dtype)
            if why is not None:
                reasons.setdefault(why, []).append(dtype)
        for why, where in reasons.items():
            lines.append(f"- `{bug}` in {' and '.join(where)}: {why}.")
    return lines


def _alternatives(every: Sequence[Any], cells: Cells) -> list[str]:
    """The cells with ≈ of the table of single bugs."""
    found: dict[tuple[str, str], list[str]] = {}
    for case in every:
        cell = cells.get(case.key, {"alternatives": []})
        if case.part in ("single", "logits") and cell["alternatives"]:
            kind = " logits" if case.part == "logits" else ""
            said = ", ".join(f"`{name}`" for name in cell["alternatives"])
            named = "" if cell["ok"] else f" named `{', '.join(cell['named'])}`,"
            place = f"{case.checkpoint} {case.dtype}{kind}"
            found.setdefault((case.bugs[0], f"{named} ≈ {said}"), []).append(place)
    if not found:
        return []
    lines = ["", "### What cannot be told from it", ""]
    return lines + [f"- `{bug}` ({', '.join(at)}):{said}." for (bug, said), at in found.items()]
