"""The backward part of the kill matrix: does ``diagnose`` name every bug of a backward pass?

    python -m docs._generate.backward_matrix            # all cells; a minute
    python -m docs._generate.backward_matrix --write    # and backward_matrix.json and the page
    python -m docs._generate.backward_matrix --only sinks-gradient-sign --show

A cell is one fault (or pair, or correct run) of the torch twin on one model in one dtype. The cells
are kept in ``backward_matrix.json``, from which :func:`section` makes the last part of
docs/kill_matrix.md. Exit status 0: every cell is as it should be.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gptoss_ref as gr
from gptoss_ref.verify.gradients.mutants import CATALOGUE, CONVENTIONS
from tests.support.buggy_twin.backward import CONVENTIONS as STOPS
from tests.support.buggy_twin.backward import FAULTS, RIGHT
from tests.support.buggy_twin.backward_cases import SIZES, backward_case, backward_trace, together

STORE = Path(__file__).with_name("backward_matrix.json")
PAGE = Path(__file__).parents[1] / "kill_matrix.md"
DTYPES = ("float32", "bfloat16")
SEEDS = 5
"""Correct runs on each model in each dtype."""
PAIRS = 10
"""On each model in each dtype."""
TITLE = "## Backward passes"

# With both, the gradients are those with the first alone: it leaves nothing to show the second by.
HIDES = {
    "norm-without-gradient": ("",),
    "softmax-without-gradient": ("rope-", "score-scale", "key-gradient", "softmax-", "window-"),
    "embedding-frozen": ("embedding-gradient", "unembedding-"),
    "experts-frozen": ("unchosen-experts",),
}

OPEN: dict[str, str] = {}
"""Cells of one bug that are not as they should be, and why."""

SMALLER = (
    "the derivative without α: it changes the gradient of gate and up by 3.0 to 4.0 % of its norm, "
    "and rounding explains 5.6 to 10.3 % there; of 618 to 867 values per block, 99.8 % or more are "
    "nearer to the bug.",
    "the router weight's gradient without the bias: 1.2 to 1.6 %, rounding 1.7 to 2.1 %; of 36 to "
    "46 values per block, 97.8 % or more are nearer to the bug.",
    "the clamp of both sides: the gradient of gates below −7 has the factor σ(1.702·gate), at most "
    "6.7e-6, and is 6e-6 to 1.1e-5 of the norm, where rounding explains 5.6 to 10.1 %; but 160 to "
    "224 values per block are exactly zero that should not be, while values of the same size "
    "beside them are right.",
)
"""Bugs whose effect is smaller than rounding in bfloat16, measured on both models, each block."""

Cells = Mapping[str, Mapping[str, Any]]


class Case(NamedTuple):
    """What is to be diagnosed."""

    part: str  # "single", "pair", "correct" or "convention"
    faults: tuple[str, ...]
    size: str
    dtype: str
    seed: int = 0

    @property
    def key(self) -> str:
        return "|".join((self.part, "+".join(self.faults), self.size, self.dtype, str(self.seed)))

    @property
    def expected(self) -> set[str]:
        """Names that must be named, and no others."""
        named = self.faults if self.part in ("single", "pair") else ()
        return {fault.split("/")[0] for fault in named}


def cases() -> Iterator[Case]:
    """Every cell."""
    for size in SIZES:
        for dtype in DTYPES:
            for fault in FAULTS:
                yield Case("single", (fault,), size, dtype)
            for pair in pairs(f"{size} {dtype}"):
                yield Case("pair", pair, size, dtype)
            yield Case("convention", tuple(STOPS), size, dtype)
        for dtype in ("float64", *DTYPES):
            for right in RIGHT:
                for seed in range(SEEDS):
                    yield Case("correct", (right,), size, dtype, seed)


def pairs(of: str) -> list[tuple[str, str]]:
    """Random pairs of faults of which neither hides the other."""
    rng, chosen = random.Random(of), list[tuple[str, str]]()
    while len(chosen) < PAIRS:
        one, other = rng.sample(list(FAULTS), 2)
        hidden = hides(one, other) or hides(other, one)
        if not hidden and together(one, other) is not None and (one, other) not in chosen:
            chosen.append((one, other))
    return chosen


def hides(one: str, other: str) -> bool:
    return any(other.startswith(prefix) for prefix in HIDES.get(one, ()))


def judge(case: Case, show: bool = False) -> dict[str, Any]:
    """Diagnose one case; ``diagnose`` is not told the dtype."""
    known = backward_case(case.size, case.seed)
    if case.part == "pair":
        fault = together(*case.faults)
        assert fault is not None
    else:
        fault = {**FAULTS, **RIGHT, **STOPS}[case.faults[0]]
    trace = backward_trace(known, fault, case.dtype)
    trace.dtype = None
    found = gr.diagnose(known.model, trace)
    if show:
        print(found)
    named = [cause.name for cause in found.causes]
    unexplained = [item.tap for item in found.unexplained]
    first = not case.expected or named[: len(case.expected)] != []
    return {
        "named": named,
        "alternatives": sorted({name for cause in found.causes for name in cause.alternatives}),
        "unexplained": unexplained,
        "ok": first and set(named) == case.expected and not unexplained,
    }


def section(cells: Cells | None = None) -> str:
    """The part of the page, from what is stored."""
    if cells is None:
        cells = json.loads(STORE.read_text())
    every = [case for case in cases() if case.key in cells]
    reported = len({m.name for m in CATALOGUE if m.reports})
    names = len({m.name for m in CATALOGUE})
    lines = [
        TITLE,
        "",
        f"The same for gradients: {names} bugs of backward passes, {reported} of them reported, "
        "are built into a torch model by torch's own means "
        "(`tests/support/buggy_twin/backward.py`), and `diagnose` is given forward values and "
        "gradients as autograd stored them, without being told their dtype. What each bug is "
        f"stands on [a page of its own](backward_bugs.md); the catalogue has {len(CATALOGUE)} "
        "entries, because some bugs are made in two places. Two models, whose dimensions all "
        "differ: *two blocks* and *three blocks*. Generated by "
        "`python -m docs._generate.backward_matrix --write`.",
        "",
        "| part | as it should be | of | of these ≈ |",
        "|---|---|---|---|",
    ]
    titles = {"single": "one bug", "pair": "two bugs", "correct": "correct runs"}
    titles["convention"] = f"a convention (`{CONVENTIONS[0].name}`)"
    for part, title in titles.items():
        ran = [cells[case.key] for case in every if case.part == part]
        good = [cell for cell in ran if cell["ok"]]
        alike = sum(bool(cell["alternatives"]) for cell in good)
        lines.append(f"| {title} | {len(good)} | {len(ran)} | {alike} |")
    heads = [f"{size} {dtype}" for size in SIZES for dtype in DTYPES]
    lines += ["", "### One bug of a backward pass", ""]
    lines += ["**1**: named first, and nothing else is accused. ≈: beside it the report lists what "
              "cannot be told from it here. –: not named.", ""]  # fmt: skip
    lines += ["| bug | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    for fault in FAULTS:
        row = [_mark(fault, cells, size, dtype) for size in SIZES for dtype in DTYPES]
        lines.append(f"| {fault} | " + " | ".join(row) + " |")
    if OPEN:
        lines += ["", "Not named:", "", *(f"- {text}" for text in dict.fromkeys(OPEN.values()))]
    page = "decisions/0047-backward-bugs-smaller-than-rounding.md"
    lines += ["", "Three bugs are smaller than rounding in bfloat16. Votes of values name them "
              f"([decision 0047]({page})):", "", *(f"- {t}" for t in SMALLER)]  # fmt: skip
    lines += ["", "### Two bugs of a backward pass", "", "Random pairs of which neither hides the "
              "other, and which change other operations.", ""]  # fmt: skip
    lines += ["| what | model | dtype | named |", "|---|---|---|---|"]
    for case in every:
        if case.part == "pair":
            lines.append(
                f"| {' + '.join(case.faults)} | {case.size} | {case.dtype} | "
                f"{_said(cells[case.key])} |"
            )
    return "\n".join(lines) + "\n"


def _mark(fault: str, cells: Cells, size: str, dtype: str) -> str:
    cell = cells.get(Case("single", (fault,), size, dtype).key)
    if cell is None:
        return ""
    if cell["ok"]:
        return "**1** ≈" if cell["alternatives"] else "**1**"
    name = fault.split("/")[0]
    return str(cell["named"].index(name) + 1) if name in cell["named"] else "–"


def _said(cell: Mapping[str, Any]) -> str:
    text = ", ".join(cell["named"]) or "nothing"
    if cell["unexplained"]:
        text += f"; {cell['unexplained'][0]} unexplained"
    return text if cell["ok"] else f"**{text}**"


def with_section(page: str) -> str:
    """The page with this part as its last."""
    start = page.find(TITLE)
    return (page if start < 0 else page[:start]).rstrip() + "\n\n" + section()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", default=[], help="faults of this name")
    parser.add_argument("--show", action="store_true", help="print every report")
    parser.add_argument("--write", action="store_true", help="the cells, and the page")
    options = parser.parse_args(argv)
    cells: dict[str, Any] = {}
    for case in cases():
        if not options.only or set(options.only) & {*case.faults}:
            cells[case.key] = judge(case, options.show)
            if not cells[case.key]["ok"]:
                print(f"BAD {case.key}: {_said(cells[case.key])}")
    good = sum(cell["ok"] for cell in cells.values())
    print(f"{good} of {len(cells)} as they should be")
    if options.write and not options.only:
        lines = [f"{json.dumps(key)}: {json.dumps(cell)}" for key, cell in cells.items()]
        STORE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        PAGE.write_text(with_section(PAGE.read_text()))
    return 0 if good == len(cells) else 1


if __name__ == "__main__":
    sys.exit(main())
