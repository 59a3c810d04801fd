"""The exercises of chapters 1 to 6: solutions are right, typical mistakes are told by their flag.

Both go through `gptoss-ref check`, as a reader's own file does. That the chapters run is tested by
the build of the documentation, which executes them.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from gptoss_ref.cli import main
from tests.support.course import EXERCISES, TUTORIAL

SOLVED = [exercise for exercise in EXERCISES if exercise[0] < "07"]

# chapter, operation, a line of the solution, what many write instead, the flag, the known bug
MISTAKES = [
    ("01_tokens", "embedding", "weight[tokens]", "np.take(weight, tokens)", "Ordinary", ""),
    ("02_residual_stream", "rmsnorm", "mean_square + eps", "mean_square", "Epsilon", ""),
    ("02_residual_stream", "linear", "tm,nm->tn", "tm,mn->tn", "UnequalDimensions", ""),
    (
        *("03_rotary", "yarn", "fast, slow = pair(beta_fast), pair(beta_slow)"),
        *("fast, slow = np.floor(pair(beta_fast)), np.ceil(pair(beta_slow))",),
        *("YarnRamp", "yarn-truncated"),
    ),
    (
        *("03_rotary", "yarn", "0.1 * np.log(factor) + 1", "1.0"),
        *("Concentration", "yarn-no-concentration"),
    ),
    (
        *("03_rotary", "rope", "np.concatenate([turned.real, turned.imag], axis=-1)"),
        *("np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)", "RotaryPairs", ""),
    ),
    (
        *("04_attention", "attention", "distance < window", "distance <= window"),
        *("WindowEdge", "window-plus-one"),
    ),
    (
        *("04_attention", "attention", "np.broadcast_to(sinks[:, None, None],"),
        *("np.broadcast_to(-np.inf * sinks[:, None, None] ** 2,", "SinkDominates", "sinks-dropped"),
    ),
    (
        *("04_attention", "attention", "np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)"),
        *("np.tile(k, (1, group, 1)), np.tile(v, (1, group, 1))",),
        *("GroupedQueries", "gqa-axes-swapped"),
    ),
    ("04_attention", "attention", "/ np.sqrt(channels)", "", "ScoreScale", "scale-missing"),
    (
        *("05_experts", "router", "indices, exp / exp.sum(axis=-1, keepdims=True)"),
        *("indices, exp / np.exp(logits - chosen[:, :1]).sum(axis=-1, keepdims=True)",),
        *("RouterSoftmax", "softmax-before-topk"),
    ),
    ("05_experts", "router", " + bias", "", "RouterSoftmax", "router-bias-missing"),
    (
        *("06_swiglu", "swiglu", "gate, up = x[..., 0::2], x[..., 1::2]"),
        *("gate, up = np.split(x, 2, axis=-1)", "Interleaved", "gate-up-concatenated"),
    ),
    (
        *("06_swiglu", "swiglu", "np.minimum(gate, limit)", "np.clip(gate, -limit, limit)"),
        *("ClampBoundary", "clamp-gate-symmetric"),
    ),
    ("06_swiglu", "swiglu", "(up + 1)", "up", "UpPlusOne", "up-plus-one-missing"),
    (
        "06_swiglu",
        "swiglu",
        "np.exp(-alpha * gate)",
        "np.exp(-gate)",
        "SigmoidAlpha",
        "alpha-missing",
    ),
    (
        *("06_swiglu", "experts", "@ swiglu(gate_up, alpha, limit) + mlp2_bias[e]"),
        *("@ swiglu(gate_up, alpha, limit)", "ExpertBiases", "down-bias-missing"),
    ),
    (
        *("06_swiglu", "experts", "[blocks & 15, blocks >> 4]", "[blocks >> 4, blocks & 15]"),
        *("ExpertBiases", "nibbles-swapped"),
    ),
]


def check(capsys: pytest.CaptureFixture[str], place: str, operation: str) -> tuple[int, str]:
    status = main(["check", place, operation])
    captured = capsys.readouterr()
    return status, captured.out + captured.err


@pytest.mark.parametrize(("chapter", "function", "operation"), SOLVED)
def test_a_solution_is_right(
    chapter: str, function: str, operation: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = check(capsys, f"{TUTORIAL}/solutions/{chapter}.py:{function}", operation)
    assert status == 0, said


@pytest.mark.parametrize(
    ("chapter", "operation", "line", "instead", "flag", "bug"),
    MISTAKES,
    ids=[f"{m[1]}-{m[4]}-{m[5]}" for m in MISTAKES],
)
def test_a_mistake_is_told_by_its_flag(
    chapter: str,
    operation: str,
    line: str,
    instead: str,
    flag: str,
    bug: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    solution = (TUTORIAL / "solutions" / f"{chapter}.py").read_text()
    assert solution.count(line) == 1
    mine = tmp_path / "mine.py"
    mine.write_text(solution.replace(line, instead))
    status, said = check(capsys, f"{mine}:{operation}", operation)
    assert status == 1
    assert re.search(rf"^{flag}: ", said, re.MULTILINE), said
    assert not bug or f"the numbers of {bug}" in said, said


@pytest.mark.parametrize("stem", sorted({stem for stem, _, _ in SOLVED}))
def test_a_solution_is_not_a_call_of_the_layer(stem: str) -> None:
    tree = ast.parse((TUTORIAL / "solutions" / f"{stem}.py").read_text())
    imported = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    ]
    assert imported == ["numpy"]
    assert not any(isinstance(node, ast.ImportFrom) for node in ast.walk(tree))
