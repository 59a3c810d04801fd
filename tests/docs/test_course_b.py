"""Exercises of chapters 7 to 12: the solutions pass `gptoss-ref check`, and each with its typical
mistake put in fails in a case that has the flag which explains it.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from gptoss_ref.cli import main
from gptoss_ref.verify.vectors import check_function, load_function
from tests.support.course import EXERCISES, TUTORIAL

SOLUTIONS = TUTORIAL / "solutions"


def check(place: Path | str, operation: str, capsys: pytest.CaptureFixture[str]) -> Any:
    """What `gptoss-ref check --json` prints, and its exit status."""
    status = main(["check", str(place), operation, "--json"])
    return status, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("file", "function", "operation"),
    [exercise for exercise in EXERCISES if exercise[0] >= "07"],
)
def test_solutions_are_right(
    file: str, function: str, operation: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = check(f"{SOLUTIONS / file}.py:{function}", operation, capsys)
    assert status == 0, said
    assert said["ok"]
    assert not said["notes"]


MISTAKES = {
    "the high nibble first": (
        *("07_mxfp4", "mxfp4_decode", "NibbleOrder"),
        *("= blocks & 0x0F\n    codes[..., 1::2] = blocks >> 4",),
        *("= blocks >> 4\n    codes[..., 1::2] = blocks & 0x0F",),
    ),
    "a bias of 128": ("07_mxfp4", "mxfp4_decode", "ScaleBias", "int64) - 127)", "int64) - 128)"),
    "a scale of 0 is 0": (
        *("07_mxfp4", "mxfp4_decode", "Scale0"),
        *("values[scales == 255] = np.nan", "values[scales == 0] = 0"),
    ),
    "ties to the smaller": (
        *("07_mxfp4", "mxfp4_encode", "RoundHalfEven"),
        *("[0, 2, 4, 6, 1, 3, 5, 7]", "[0, 1, 2, 3, 4, 5, 6, 7]"),
    ),
    "zero loses its sign": (
        *("07_mxfp4", "mxfp4_encode", "NegativeZero", "np.signbit(x)", "x < 0"),
    ),
    "a scale under which all fit": (
        *("07_mxfp4", "mxfp4_encode", "Saturates"),
        *("np.frexp(largest)", "np.frexp(largest * 4 / 3)"),
    ),
    "places in memory for positions": (
        *("08_cache", "attention", "CacheBoundary"),
        *("k_positions[None, :]", "np.sort(k_positions)[None, :]"),
    ),
    "one key more": (
        "08_cache",
        "attention",
        "WindowEdge",
        "distance < window",
        "distance <= window",
    ),
    "a ring of one slot less": (
        *("08_cache", "model", "ModelWindow"),
        *("self.slots = slots", "self.slots = slots and slots - 1"),
    ),
    "the crossing token dropped": (
        *("09_sampling", "sampling", "TopPCrossing"),
        *("order[before >= top_p]", "order[before + probabilities[order] > top_p]"),
    ),
    "ties cut by their index": (
        *("09_sampling", "sampling", "TopKTie"),
        *("np.where(logits < kth,", "np.where(np.argsort(np.argsort(-logits)) >= top_k,"),
    ),
    "top-p before temperature": (
        *("09_sampling", "sampling", "SamplingOrder"),
        *("np.cumsum(probabilities[order])", "np.cumsum(softmax(logits * temperature)[order])"),
    ),
    "no largest subtracted": (
        *("09_sampling", "sampling", "LargeLogits", "logits - logits.max()", "logits"),
    ),
    "the sink's sign": (
        *("13_backward", "attention_backward", "SinkGradient"),
        *("-(w_sink * delta)", "(w_sink * delta)"),
    ),
    "a gate that is stopped below": (
        *("13_backward", "swiglu_backward", "ClampGradient"),
        *("x[:, 0::2] <= limit, d_gate", "np.abs(x[:, 0::2]) <= limit, d_gate"),
    ),
    "two planes": ("10_speed", "linear", "HeavyTail", "PLANES = 3", "PLANES = 2"),
    "the embedding taken for the unembedding": (
        *("12_released", "model", "ModelShort"),
        *('tensors["lm_head.weight"]', 'tensors["model.embed_tokens.weight"]'),
    ),
    "the norm before the experts taken for that before attention": (
        *("12_released", "model", "ModelShort"),
        *(
            'tensors[at + "input_layernorm.weight"]',
            'tensors[at + "post_attention_layernorm.weight"]',
        ),
    ),
}


@pytest.mark.parametrize(
    ("file", "operation", "flag", "right", "wrong"), MISTAKES.values(), ids=MISTAKES
)
def test_a_mistake_is_explained(
    file: str,
    operation: str,
    flag: str,
    right: str,
    wrong: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = (SOLUTIONS / f"{file}.py").read_text(encoding="utf-8")
    assert source.count(right) == 1, "the solution has changed: name the line to spoil again"
    mine = tmp_path / "mine.py"
    mine.write_text(source.replace(right, wrong), encoding="utf-8")
    status, said = check(f"{mine}:{operation}", operation, capsys)
    assert status == 1
    flags = [set(f["flags"]) for f in said["findings"] if f["verdict"] == "wrong"]
    assert any(flag in of_case for of_case in flags), said


def test_the_port_of_chapter_11_has_its_two_faults(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each alone is caught, in a case that has the flag of its cause."""
    monkeypatch.syspath_prepend(str(SOLUTIONS.parent))
    port = importlib.import_module("port")
    status, _ = check(f"{SOLUTIONS.parent / 'port.py'}:forward", "model", capsys)
    assert status == 1
    for mended, flag in (("visible", "ModelYarn"), ("frequencies", "ModelWindow")):
        right = load_function(f"{SOLUTIONS / '11_verify.py'}:{mended}")
        with monkeypatch.context() as patch:
            patch.setattr(port, mended, right)
            findings = check_function(port.forward, "model").findings
        wrong = [f.case for f in findings if f.verdict == "wrong"]
        assert any(flag in case.flags for case in wrong), mended
