"""The fast part of the kill matrix. The whole of it: ``nox -s kill_matrix``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gptoss_ref as gr
from docs._generate.kill_matrix import (
    BLIND,
    HARMLESS,
    OVERFLOW,
    PARTS,
    VOID,
    Case,
    cases,
    hides,
    judge,
    main,
    pairs,
    too_many,
    trace_of,
    triples,
)
from docs._generate.kill_matrix_page import COLUMNS, OPEN, TABLES, TITLES, page
from gptoss_ref.verify.mutants import CATALOGUE
from tests.support.buggy_twin import BUGS, PLANTED, why_unseen

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    # what a bug makes of the numbers may be infinite
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


def check(case: Case) -> None:
    cell = judge(case)
    assert cell.ok, f"{cell.verdict} (named: {', '.join(cell.named) or 'nothing'})"


def seen(dtype: str) -> list[str]:
    return [bug for bug in BUGS if why_unseen(bug, dtype) is None]


def test_the_twin_has_every_bug_of_the_catalogue() -> None:
    assert sorted([*BUGS, OVERFLOW]) == sorted(mutant.name for mutant in CATALOGUE)


@pytest.mark.parametrize("bug", seen("float32"))
def test_every_bug_is_named(bug: str) -> None:
    check(Case("single", (bug,), "random", "float32"))


@pytest.mark.parametrize("bug", [*seen("bfloat16")[::5], "norm-scale-after-cast"])
def test_bugs_are_named_through_bfloat16(bug: str) -> None:
    check(Case("single", (bug,), "random", "bfloat16"))


@pytest.mark.parametrize("bug", ["window-plus-one", "scale-134", "qkv-order/groups"])
def test_bugs_of_the_trained_model_are_named(bug: str) -> None:
    check(Case("single", (bug,), "tiny", "bfloat16"))


def test_an_overflow_is_named() -> None:
    check(Case("overflow", (OVERFLOW,), "random", "float16"))


@pytest.mark.parametrize("pair", pairs(4, "random", "float32"), ids=" and ".join)
def test_two_bugs_at_once_are_both_named(pair: tuple[str, str]) -> None:
    check(Case("pair", pair, "random", "float32"))


@pytest.mark.parametrize(
    "pair",
    [
        # at RoPE a rewriting comes to the same, and then the scores look wrong by two bugs
        ("yarn-no-concentration", "scale-missing"),
        ("yarn-no-concentration", "sinks-dropped"),
        # the first layer alone looks like a window nowhere
        ("window-plus-one", "window-odd-layers"),
        # parts of one operation
        ("yarn-truncated", "yarn-ramp-over-dims"),
        # another form of each would be nearer if it were alone
        ("sinks-scaled", "sinks-wrong-head"),
        # the smaller one moves no digit of the larger one's distance
        ("clamp-gate-symmetric", "up-plus-one-missing"),
        # 0/0 where there is neither key nor sink
        ("chunk-longer-than-ring", "sinks-dropped"),
    ],
    ids=" and ".join,
)
def test_two_bugs_that_hide_each_other(pair: tuple[str, str]) -> None:
    check(Case("pair", pair, "random", "float32"))


KERAS_HUB = ("window-odd-layers", "window-plus-one", "yarn-original-length/released")
TRANSFORMER_LENS = ("sinks-dropped", "window-nowhere", "yarn-skipped")  # its older path
REPORTED = (KERAS_HUB, TRANSFORMER_LENS)


@pytest.mark.parametrize("bugs", [*REPORTED, *triples(2, "random", "float32")], ids=" and ".join)
def test_three_bugs_at_once_are_all_named(bugs: tuple[str, ...]) -> None:
    check(Case("triple", bugs, "random", "float32"))


@pytest.mark.parametrize("bugs", REPORTED, ids=" and ".join)
def test_three_bugs_of_a_port_on_the_trained_model(bugs: tuple[str, ...]) -> None:
    check(Case("triple", bugs, "tiny", "float32"))


@pytest.mark.slow
def test_three_bugs_are_named_from_the_logits_alone() -> None:
    check(Case("triple-logits", REPORTED[-1], "tiny", "float32"))


def test_a_bug_that_stands_for_a_constant_is_replaced_by_it() -> None:
    """From logits alone: another bug comes near in the place of a limit that is not in the list."""
    bugs = ("swiglu-limit", "v-bias-missing", "ring-boundary")
    check(Case("triple-logits", bugs, "random", "float32"))


def test_a_chunk_longer_than_a_ring_that_rolls_early() -> None:
    """On a prompt of less than three windows; on a longer one only the first of them shows."""
    check(Case("pair", ("chunk-longer-than-ring", "ring-boundary"), "tiny", "float32"))


def test_the_order_of_nibbles_is_wrong_twice() -> None:
    check(Case("pair", ("nibbles-split", "nibbles-swapped"), "random", "bfloat16"))


def test_one_bug_is_no_shadow_of_two() -> None:
    """Sinks dropped beside a key of zeros are sinks of 0: the same numbers, bit for bit.

    So they are named as one bug, sinks that never arrived.
    """
    case = Case("pair", ("sinks-dropped", "padding-attended"), "random", "float32")
    two = trace_of(case)
    one = trace_of(Case("variant", ("tensor-missing/sinks",), "random", "float32"))
    assert all(np.array_equal(two[tap], one[tap]) for tap in one)
    assert judge(case).named == ["tensor-missing"]


@pytest.mark.parametrize("checkpoint", ["random", "tiny"])
@pytest.mark.parametrize("one", sorted({*VOID} - {*PLANTED}))
def test_pairs_are_left_out_for_cause(one: str, checkpoint: str) -> None:
    """The model with both computes what it does with one of them, or with none."""
    for other in BUGS:
        short = (one, other, checkpoint) == ("chunk-longer-than-ring", "ring-boundary", "tiny")
        if other == one or not hides(one, other) or short:
            continue
        both, *fewer = (
            stream(trace_of(Case("pair", bugs, checkpoint, "float32")))
            for bugs in ((one, other), (one,), (other,), ())
        )
        assert any(np.array_equal(both, few, equal_nan=True) for few in fewer), other


def stream(trace: gr.Trace) -> np.ndarray:
    """The residual stream after every block (L, T, D): what the model computes, up to its norm."""
    return np.stack([trace[tap] for tap in trace if tap.endswith("mlp.residual")])


@pytest.mark.parametrize("checkpoint", ["random", "tiny"])
@pytest.mark.parametrize("one", sorted({*VOID} & {*PLANTED}))
def test_some_bugs_leave_nothing_to_look_at(one: str, checkpoint: str) -> None:
    """From the experts of the first block on."""
    trace = trace_of(Case("pair", (one,), checkpoint, "float32"))
    blind = list(trace)[list(trace).index("block.0.mlp.out") :]
    choices = [tap for tap in blind if tap.endswith("expert_indices")]
    assert len(blind) > 20
    assert all(np.isnan(trace[tap]).all() for tap in blind if tap not in choices)


@pytest.mark.parametrize("rewriting", HARMLESS)
def test_rewritings_are_not_accused(rewriting: str) -> None:
    check(Case("rewriting", (rewriting,), "random", "float32"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("checkpoint", ["random", "tiny"])
def test_correct_runs_are_not_accused(checkpoint: str, dtype: str) -> None:
    check(Case("correct", (), checkpoint, dtype, seed=1))


@pytest.mark.parametrize("bug", ["yarn-truncated", "sinks-dropped", "gate-up-swapped"])
def test_logits_alone_name_a_bug(bug: str) -> None:
    check(Case("logits", (bug,), "random", "float32"))


def test_the_matrix_is_as_large_as_promised() -> None:
    """40 bugs and more on each checkpoint in each dtype, 20 pairs, 20 correct runs."""
    every = list(cases(PARTS, ("random", "tiny")))
    assert len({case.key for case in every}) == len(every)
    for checkpoint in ("random", "tiny"):
        for dtype in ("float32", "bfloat16"):
            here = [c for c in every if (c.checkpoint, c.dtype) == (checkpoint, dtype)]
            tried = {c.bugs[0] for c in here if c.part == "single"}
            assert tried == set(seen(dtype)) == {c.bugs[0] for c in here if c.part == "logits"}
            assert len(tried) >= 40
            assert {c.bugs[0] for c in here if c.part == "rewriting"} == set(HARMLESS)
    assert len({c.bugs for c in every if c.part == "pair"}) >= 20
    assert len([c for c in every if c.part == "correct"]) >= 20


def test_the_script_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, out = tmp_path / "cells.json", tmp_path / "page.md"
    options = ["--part", "single", "--checkpoint", "random", "--dtype", "float32"]
    options += ["--only", "unembedding-tied", "--store", str(store)]
    assert main([*options, "--seconds", "-1"]) == 1
    assert "0 of 0 as they should be, 1 not run" in capsys.readouterr().out
    assert main([*options, "--write", str(out)]) == 0
    assert "1 of 1 as they should be, 0 not run" in capsys.readouterr().out
    (cell,) = json.loads(store.read_text()).values()
    assert cell["named"] == ["unembedding-tied"]
    assert main(options) == 0
    assert "ok " not in capsys.readouterr().out, "run again"
    assert "| unembedding-tied | **1** |" in out.read_text()


def test_the_page_shows_what_failed() -> None:
    def cell(*named: str, **others: Any) -> dict[str, Any]:
        usual = {"named": named, "alternatives": [], "unexplained": [], "ok": False}
        return {**usual, "seconds": 2.0, **others}

    two = Case("single", ("norm-eps",), "random", "float32")
    open_ = Case("single", ("sinks-dropped",), "random", "float32")
    alike = Case("single", ("scale-0",), "random", "float32")
    wrong = Case("correct", (), "random", "float32", 2)
    cells = {
        two.key: cell("window-plus-one", "norm-eps", seconds=4.0),
        open_.key: cell("sinks-dropped", unexplained=["block.0.attn.mix"]),
        alike.key: cell("scale-0", ok=True, alternatives=["scale-134"], seconds=0.0),
        wrong.key: cell("norm-eps"),
    }
    text = page([two, open_, alike, wrong], cells)
    assert "| norm-eps | 2 |" in text
    assert "| sinks-dropped | 1 |" in text
    assert "| scale-0 | **1** ≈ |" in text
    assert "- `scale-0` (random float32): ≈ `scale-134`." in text
    assert "| prompt 2 | random | float32 | **norm-eps** |" in text
    assert "| one bug, all tap points | 1 | 3 | 1 | 2.0 |" in text


def table(text: str, heading: str) -> list[list[str]]:
    """The cells of the table under a heading of the page, without its head."""
    (section,) = [part for part in text.split("\n## ") if part.startswith(heading + "\n")]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_the_page_of_the_documentation_is_whole() -> None:
    """Every cell is there and as it should be; its summary counts what its tables show."""
    text = (Path(__file__).parents[2] / "docs" / "kill_matrix.md").read_text()
    every = list(cases(PARTS, ("random", "tiny")))
    good: dict[str, int] = {}

    rows = {bug: cells for bug, *cells in table(text, "One bug")}
    assert list(rows) == list(BUGS)
    for bug, cells in rows.items():
        for i, (_, dtype) in enumerate(COLUMNS):
            unseen = why_unseen(bug, dtype) is not None
            named, blind = cells[i], cells[i + len(COLUMNS)]
            if f"single|{bug}|{'|'.join(COLUMNS[i])}|0" not in OPEN:
                assert named in (["*none*"] if unseen else ["**1**", "**1** ≈"]), bug
            assert (blind == "*none*") == unseen, bug
            good["single"] = good.get("single", 0) + named.startswith("**1**")
            good["logits"] = good.get("logits", 0) + blind.startswith("**1**")

    for part, title, _ in TABLES:
        found = table(text, title)
        expected = [case for case in every if case.part == part]
        for (what, *place, said), case in zip(found, expected, strict=True):
            assert what == (" + ".join(case.bugs) or f"prompt {case.seed}")
            assert place == [case.checkpoint, case.dtype]
            if part not in BLIND and case.key not in OPEN:
                assert {*said.split(" ≈ ")[0].split(", ")} == (case.expected or {"nothing"})
        named = [not said.startswith("**") for *_, said in found]
        assert part in BLIND or named == [case.key not in OPEN for case in expected]
        good[part] = sum(named)

    summary = {title: numbers for title, *numbers in table(text, "Summary")}
    assert list(summary) == list(TITLES.values())
    for part, title in TITLES.items():
        run = [case for case in every if case.part == part]
        assert [int(n) for n in summary[title][:2]] == [good[part], len(run)], part
        blind = run[good[part] :] if part in BLIND else []
        assert not too_many(run, blind), part
