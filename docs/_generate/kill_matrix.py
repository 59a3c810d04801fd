"""The kill matrix: does ``diagnose`` name every bug that the torch twin has built in?

    python -m docs._generate.kill_matrix                          # everything; some minutes
    python -m docs._generate.kill_matrix --part single --only window-plus-one --show
    python -m docs._generate.kill_matrix --store cells.json --seconds 80   # goes on
    python -m docs._generate.kill_matrix --store cells.json --write docs/kill_matrix.md

A cell is one bug (or pair, or rewriting, or correct run) on one checkpoint in one dtype. The twin
(``tests/support/buggy_twin``) shares no code with the catalogue that ``diagnose`` searches.
Exit status 0: every cell is as it should be, and of those with nothing but logits four in five
(of three bugs at once: one in two).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gptoss_ref as gr
from docs._generate.kill_matrix_page import page
from gptoss_ref.verify.mutants import by_name
from tests.support.buggy_twin import (
    BUGS,
    PLANTED,
    REWRITINGS,
    ROUNDINGS,
    VARIANTS,
    Checkpoint,
    large,
    planted,
    random_checkpoint,
    run,
    why_unseen,
)
from tests.support.buggy_twin import tiny as tiny_checkpoint
from tests.support.buggy_twin.names import CONSTANTS

PARTS = (
    "single",
    "logits",
    "overflow",
    "variant",
    "pair",
    "triple",
    "triple-logits",
    "rewriting",
    "correct",
)
BLIND = {"logits": 0.8, "triple-logits": 0.5}  # which share must be named from the logits alone
DTYPES = ("float32", "bfloat16")
HARMLESS = REWRITINGS + ROUNDINGS
TEXTS = (
    "Sort these numbers: 41, 7, 88, 23, 5, 67, 12. Then add the first and the last of them.",
    "What is 27 + 58? What is 91 - 34? Reverse the word garden. Count the letters of banana.",
)
OVERFLOW = "float16-overflow"  # a bug of no line of code: a run in float16 of large activations
FOLDERS: list[tempfile.TemporaryDirectory[str]] = []  # removed at the end
PAIRS = 5  # of bugs, on each checkpoint in each dtype
TRIPLES = {"triple": 25, "triple-logits": 3}  # the second ones, on random, are among the first
LENGTH = 50  # of the random checkpoint's prompts, more than four windows


@dataclass(frozen=True)
class Case:
    """What is to be diagnosed."""

    part: str
    bugs: tuple[str, ...]
    checkpoint: str
    dtype: str
    seed: int = 0

    @property
    def key(self) -> str:
        return "|".join(
            (self.part, "+".join(self.bugs), self.checkpoint, self.dtype, str(self.seed))
        )

    @property
    def expected(self) -> set[str]:
        """Names that must be named, in any order, and no others."""
        return {bug.split("/")[0] for bug in self.bugs if bug not in HARMLESS}

    @property
    def weights(self) -> str:
        """The checkpoint, or a copy of it in which a bug is planted something to go wrong at."""
        (plant,) = {*self.bugs} & {*PLANTED, OVERFLOW} or {""}
        return f"{self.checkpoint} {plant}".strip()


@dataclass(frozen=True)
class Cell:
    """What came of it.

    Attributes:
        named: the causes, in the order of the report.
        alternatives: names that the report says cannot be told from a cause on this input.
        unexplained: tap points that it leaves without a cause.
        ok: just the expected causes are named, and nothing is left without one.
    """

    key: str
    named: list[str]
    alternatives: list[str]
    unexplained: list[str]
    ok: bool
    verdict: str
    seconds: float


@cache
def checkpoint_of(name: str) -> Checkpoint:
    base, _, plant = name.partition(" ")
    checkpoint = {"tiny": tiny_checkpoint, "random": random_checkpoint}[base]()
    if plant == OVERFLOW:
        return large(checkpoint)
    return planted(checkpoint, PLANTED[plant]) if plant else checkpoint


@cache
def model_of(name: str) -> gr.Model:
    if name == "tiny":
        return gr.load("tiny", backend="numpy")
    FOLDERS.append(tempfile.TemporaryDirectory())
    folder = checkpoint_of(name).write(Path(FOLDERS[-1].name))
    return gr.load(folder, backend="numpy", scale_255="nan")


def tokens_of(case: Case) -> list[int]:
    """Text for the trained model, random ids for the random one."""
    if case.checkpoint == "tiny" and case.seed < len(TEXTS):
        return list(model_of("tiny").tokenizer.encode(TEXTS[case.seed]))
    rng = np.random.default_rng([case.seed, 7])
    return rng.integers(0, checkpoint_of(case.checkpoint).config.vocab_size, LENGTH).tolist()


def trace_of(case: Case) -> gr.Trace:
    """What the twin computes; only its logits for the part of that name.

    Its dtype is for ``diagnose`` to find out, unless nothing but NaN is there to tell it by.
    """
    tokens = tokens_of(case)
    bugs = set(case.bugs) - {OVERFLOW}
    taps: dict[str, Any] = run(checkpoint_of(case.weights), tokens, case.dtype, bugs)
    if case.part in BLIND:
        taps = {"logits": taps["logits"]}
    stated = None if np.isfinite(taps["logits"]).any() or len(taps) > 1 else case.dtype
    config = model_of(case.weights).config
    return gr.Trace(taps, tokens=tokens, config=config, producer="torch twin", dtype=stated)


def judge(case: Case, show: bool = False) -> Cell:
    """Diagnose one case."""
    trace, model = trace_of(case), model_of(case.weights)
    began = time.perf_counter()
    diagnosis = gr.diagnose(model, trace)
    seconds = time.perf_counter() - began
    if show:
        print(diagnosis)
    named = [cause.name for cause in diagnosis.causes]
    alternatives = [name for cause in diagnosis.causes for name in cause.alternatives]
    unexplained = [tap for item in diagnosis.unexplained for tap in item.taps]
    right = sorted(named) == sorted(case.expected) and not unexplained
    return Cell(
        key=case.key,
        named=named,
        alternatives=list(dict.fromkeys(alternatives)),
        unexplained=unexplained,
        ok=right and (diagnosis.ok or bool(case.expected)),
        verdict=diagnosis.verdict,
        seconds=round(seconds, 2),
    )


def pairs(n: int, checkpoint: str, dtype: str) -> list[tuple[str, str]]:
    """``n`` random pairs of bugs that show here, neither of which makes the other void."""
    rng = random.Random(f"{checkpoint} {dtype}")
    names = [bug for bug in BUGS if why_unseen(bug, dtype) is None]
    chosen: list[tuple[str, str]] = []
    while len(chosen) < n:
        one, other = rng.sample(names, 2)
        if (one, other) not in chosen and not hides(one, other) and not hides(other, one):
            chosen.append((one, other))
    return chosen


def triples(n: int, checkpoint: str, dtype: str) -> list[tuple[str, str, str]]:
    """``n`` random sets of three bugs, of one stage two at most, none of which makes another void.

    Within one stage two are looked for.
    """
    rng = random.Random(f"three on {checkpoint} in {dtype}")
    names = [bug for bug in BUGS if why_unseen(bug, dtype) is None]
    chosen: list[tuple[str, str, str]] = []
    while len(chosen) < n:
        one, two, three = rng.sample(names, 3)
        void = any(hides(a, b) for a, b in permutations((one, two, three), 2))
        stages = {by_name(bug).stage for bug in (one, two, three)}
        if (one, two, three) not in chosen and not void and len(stages) > 1:
            chosen.append((one, two, three))
    return chosen


# With both, the model computes what it does with one of them, or with none; the tests hold it so.
VOID = {
    "clamp-missing": ("clamp-gate-symmetric", "clamp-after"),
    "clamp-after": ("clamp-gate-symmetric",),
    "sinks-dropped": ("sinks-scaled", "sinks-wrong-head", "sinks-counted-twice"),
    "yarn-skipped": ("yarn-",),
    "window-nowhere": ("window-", "ring-boundary", "chunk-longer-than-ring"),
    "window-everywhere": ("window-odd-layers",),
    "window-plus-one": ("window-minus-one",),
    # a ring of one window holds no key that has left it; a query of which nothing is held sees
    # nothing, whatever else there is (on prompts of three windows, which those of tiny are not)
    "ring-boundary": ("window-scores-zero",),
    "chunk-longer-than-ring": ("window-scores-zero", "ring-boundary"),
    "down-bias-missing": ("down-bias-unweighted",),
    "scale-missing": ("scale-by-hidden", "sinks-scaled"),
    "scale-by-hidden": ("scale-missing",),
    "scale-bias-128": ("scale-bias-126",),
    "value-bias-folded": ("v-bias-missing",),
    "norm-scale-missing": ("norms-swapped",),
    # nothing but NaN is left to look at
    "scale-0": ("",),
    "scale-134": ("",),
}


# A fitted constant and another bug of the same stage: together they are not looked for.
def together(one: str, other: str) -> bool:
    return one in CONSTANTS and by_name(one).stage == by_name(other).stage


def hides(one: str, other: str) -> bool:
    return together(one, other) or any(other.startswith(prefix) for prefix in VOID.get(one, ()))


def cases(
    parts: tuple[str, ...], checkpoints: tuple[str, ...], n_pairs: int = PAIRS
) -> Iterator[Case]:
    """Every cell of the matrix, the random checkpoint (which is quicker) first."""
    for checkpoint in checkpoints:
        if "overflow" in parts:
            yield Case("overflow", (OVERFLOW,), checkpoint, "float16")
        for dtype in DTYPES:
            for bug in BUGS:
                if why_unseen(bug, dtype) is None:
                    for part in ("single", "logits"):
                        if part in parts:
                            yield Case(part, (bug,), checkpoint, dtype)
            if "variant" in parts:
                for bug in VARIANTS:
                    yield Case("variant", (bug,), checkpoint, dtype)
            if "rewriting" in parts:
                for bug in HARMLESS:
                    yield Case("rewriting", (bug,), checkpoint, dtype)
            if "pair" in parts:
                for pair in pairs(n_pairs, checkpoint, dtype):
                    yield Case("pair", pair, checkpoint, dtype)
            for part, count in TRIPLES.items():
                if part in parts and (part, checkpoint) != ("triple-logits", "tiny"):
                    for triple in triples(count, checkpoint, dtype):
                        yield Case(part, triple, checkpoint, dtype)
        if "correct" in parts:
            for dtype, n in (("float32", 3), ("bfloat16", 4), ("float16", 3)):
                for seed in range(n):
                    yield Case("correct", (), checkpoint, dtype, seed)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all")
    parser.add_argument("--checkpoint", action="append", choices=["random", "tiny"])
    parser.add_argument("--dtype", choices=[*DTYPES, "float16"])
    parser.add_argument("--pairs", type=int, default=PAIRS, help="each checkpoint and dtype")
    parser.add_argument("--only", action="append", default=[], help="bugs of this name")
    parser.add_argument("--store", type=Path, help="keeps the cells; those in it are not run again")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--show", action="store_true", help="print every report")
    parser.add_argument("--write", type=Path, help="write the page")
    options = parser.parse_args(argv)

    torch.set_num_threads(1)
    stored: dict[str, Any] = {}
    if options.store is not None and options.store.exists():
        stored = json.loads(options.store.read_text())
    wanted = [
        case
        for case in cases(
            tuple(options.part or PARTS),
            tuple(options.checkpoint or ("random", "tiny")),
            options.pairs,
        )
        if options.dtype in (None, case.dtype)
        and (not options.only or set(options.only) & (set(case.bugs) | case.expected))
    ]
    began, left = time.perf_counter(), 0
    for case in wanted:
        if case.key in stored:
            continue
        if time.perf_counter() - began > options.seconds:
            left += 1
            continue
        cell = judge(case, options.show)
        stored[case.key] = asdict(cell)
        mark = "ok " if cell.ok else "BAD"
        print(f"{mark} {case.key:60s} {cell.seconds:6.1f} s  {', '.join(cell.named[:3]) or '-'}")
        sys.stdout.flush()
        if options.store is not None:
            options.store.write_text(json.dumps(stored, indent=1))
    if options.write is not None:
        options.write.write_text(page(list(cases(PARTS, ("random", "tiny"))), stored))
    done = [case for case in wanted if case.key in stored]
    bad = [case for case in done if not stored[case.key]["ok"]]
    print(f"{len(done) - len(bad)} of {len(done)} as they should be, {left} not run")
    return 1 if left or too_many(done, bad) else 0


def too_many(done: list[Case], bad: list[Case]) -> bool:
    """Of what is seen in the logits alone a part may be missed: rounding hides the smallest."""
    if any(case.part not in BLIND for case in bad):
        return True
    return any(
        len([c for c in bad if c.part == part])
        > (1 - share) * len([c for c in done if c.part == part])
        for part, share in BLIND.items()
    )


if __name__ == "__main__":
    sys.exit(main())
