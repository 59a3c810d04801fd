"""The conformance suite: its files, its answers against torch, and what its flags catch."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from gptoss_ref.cli import main
from gptoss_ref.errors import CheckpointError, GptOssError
from gptoss_ref.numerics import BFLOAT16, FLOAT32, Policy
from gptoss_ref.verify.mutants import CATALOGUE, EQUIVALENT, Mutant
from gptoss_ref.verify.replay.ops import ModelOps
from gptoss_ref.verify.vectors import (
    DIGEST,
    FLAGS,
    OPERATIONS,
    Case,
    all_cases,
    check_vectors,
    digest,
    judge_case,
    operations,
    operations_gradients,
    suite_files,
    write_vectors,
)
from gptoss_ref.verify.vectors.judge import bugs_of, causes, difference
from gptoss_ref.verify.vectors.mistakes import MISTAKES
from gptoss_ref.verify.vectors.suite import expected, manifest

SMALL = [case for case in all_cases() if case.operation.name != "model"]
MODEL = [case for case in all_cases() if case.operation.name == "model"]


def by_id(case: Case) -> str:
    return case.id


# --- the files ---


def test_the_files_are_the_pinned_ones_and_small() -> None:
    """A new digest is a new suite: it belongs into the changelog."""
    contents = suite_files()
    assert digest(contents) == DIGEST
    assert sum(map(len, contents.values())) <= 4 << 20


def test_written_twice_they_are_the_same(tmp_path: Path) -> None:
    assert write_vectors(tmp_path / "a") == DIGEST
    for name, content in suite_files().items():
        assert (tmp_path / "a" / name).read_bytes() == content
    with pytest.raises(CheckpointError, match="already exists"):
        write_vectors(tmp_path / "a")


def test_the_manifest_follows_its_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(suite_files()["schema.json"])
    jsonschema.Draft202012Validator(schema).validate(json.loads(json.dumps(manifest())))


def test_every_flag_is_used_and_every_used_flag_is_explained() -> None:
    used = {flag for case in all_cases() for flag in case.flags}
    assert used == set(FLAGS)


# --- the answers ---


@pytest.fixture
def policy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets the operations compute under another policy than float64."""

    def use(policy: Policy) -> None:
        monkeypatch.setattr(operations, "FLOAT64", policy)
        monkeypatch.setattr(operations_gradients, "FLOAT64", policy)

    return use


@pytest.mark.parametrize("case", SMALL, ids=by_id)
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_right_implementations_pass(case: Case, name: str, policy: Any) -> None:
    """The float32 and the bfloat16 policy are within the tolerances, the former far within."""
    expected(case)  # under float64, before the policy is another one
    policy({"float32": FLOAT32, "bfloat16": BFLOAT16}[name])
    if name == "bfloat16" and "RouterNearTie" in case.flags:
        pytest.skip("a flip inside the margin of bfloat16 is what this case is about")
    finding = judge_case(case, case.answer(), name)
    assert finding.verdict == "right", finding.note
    if name == "float32" and finding.error:
        assert finding.error < case.operation.tolerance["float32"] / 3


# --- what the flags catch ---


@cache
def killed() -> dict[str, list[Case]]:
    """The cases that have another answer under a bug, or one of its forms, by the bug's name."""
    found: dict[str, list[Case]] = {}
    for case in all_cases():
        for bug, compute in bugs_of(case.operation):
            try:
                wrong = case.computed(compute)
            except (ValueError, IndexError):
                continue
            if difference(case, wrong, case.operation.tolerance["float32"])[1]:
                found.setdefault(bug.name, []).append(case)
    return found


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_catches_what_it_says(flag: str) -> None:
    catches = FLAGS[flag].catches
    assert catches
    assert not [
        name for name in catches if all(flag not in c.flags for c in killed().get(name, ()))
    ]


def test_every_bug_that_is_caught_is_told_by_a_flag() -> None:
    """And every mistake is caught; of the catalogue what no single operation shows is not."""
    told = {name for flag in FLAGS.values() for name in flag.catches}
    assert killed().keys() == told
    assert {mistake.name for mistake in MISTAKES} <= told
    unseen = {mutant.name for mutant in CATALOGUE} - told
    assert unseen == {"scale-255", "float16-overflow"}  # accepted; a bug of a whole run


def test_the_manifest_says_what_each_bug_is() -> None:
    said = manifest()
    assert said["bugs"].keys() == {name for f in said["flags"].values() for name in f["catches"]}
    assert all(said["bugs"].values())


@pytest.mark.parametrize("rewriting", EQUIVALENT, ids=lambda rewriting: rewriting.name)
def test_equivalent_rewritings_pass(rewriting: Mutant) -> None:
    """Of the whole model; within one operation only those that begin and end there."""
    within = {"softmax-before-topk-renormalised": "router", "experts-unsorted": "experts"}
    cases = [MODEL[1], *(c for c in SMALL if c.operation.name == within.get(rewriting.name))]
    for case in cases:
        answer = case.answer(rewriting.apply(ModelOps()))
        assert judge_case(case, answer).verdict == "right", case.id


def test_a_wrong_answer_is_named() -> None:
    """The 129-key window in the attention case that is about 128 keys."""
    (bug,) = (mutant for mutant in CATALOGUE if mutant.name == "window-plus-one")
    (case,) = (case for case in SMALL if "128 at 129" in case.note)
    finding = judge_case(case, case.answer(bug.apply(ModelOps())))
    assert finding.verdict == "wrong"
    assert [mutant.name for mutant in finding.causes] == ["window-plus-one"]


def test_random_numbers_are_wrong_and_unexplained() -> None:
    rng = np.random.default_rng(5)
    for case in SMALL:
        outputs = {name: rng.standard_normal(v.shape) for name, v in expected(case).items()}
        assert judge_case(case, outputs).verdict == "wrong"
        assert not causes(case, outputs, 1e-5)


# --- judging a folder of results ---


def results(case: Case) -> dict[str, np.ndarray]:
    return {f"{case.id}/{name}": values for name, values in expected(case).items()}


def write_all(folder: Path, operation: str, suffix: str) -> None:
    tensors: dict[str, np.ndarray] = {}
    for case in all_cases():
        if case.operation.name == operation:
            tensors |= results(case)
    if suffix == "safetensors":
        save_file(tensors, folder / f"{operation}.safetensors")
    elif suffix == "npz":
        np.savez(folder / f"{operation}.npz", **tensors)
    else:
        lists = {name: values.tolist() for name, values in tensors.items()}
        (folder / f"{operation}.json").write_text(json.dumps(lists))


@pytest.mark.parametrize("suffix", ["safetensors", "npz", "json"])
def test_right_results_in_every_format(tmp_path: Path, suffix: str) -> None:
    write_all(tmp_path, "rmsnorm", suffix)
    write_all(tmp_path, "router", suffix)
    judgement = check_vectors(tmp_path)
    assert judgement.ok
    assert {f.case.operation.name for f in judgement.findings} == {"rmsnorm", "router"}
    assert set(judgement.absent) == set(OPERATIONS) - {"rmsnorm", "router"}


def test_the_suite_itself_is_a_right_result(tmp_path: Path) -> None:
    write_vectors(tmp_path / "suite")
    assert check_vectors(tmp_path / "suite").ok


def test_missing_cases_and_unknown_names_are_said(tmp_path: Path) -> None:
    write_all(tmp_path, "swiglu", "npz")
    with np.load(tmp_path / "swiglu.npz") as arrays:
        tensors = dict(arrays)
    tensors["swiglu-1/y"] = tensors.pop("swiglu-01/y")
    np.savez(tmp_path / "swiglu.npz", **tensors)
    judgement = check_vectors(tmp_path)
    assert not judgement.ok
    assert [f.case.id for f in judgement.findings if f.verdict == "missing"] == ["swiglu-01"]
    assert "nearest: swiglu-01/y" in str(judgement)


def test_a_transposed_output_is_told_from_a_wrong_one() -> None:
    case = SMALL[1]
    outputs = {name: values.T for name, values in expected(case).items()}
    assert "axes in another order" in judge_case(case, outputs).note


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_a_number_that_is_none_is_wrong(odd: float) -> None:
    case = SMALL[1]
    outputs = {
        name: np.where(values == values.max(), odd, values)
        for name, values in expected(case).items()
    }
    assert judge_case(case, outputs).verdict == "wrong"


def test_bad_results_get_one_error(tmp_path: Path) -> None:
    with pytest.raises(GptOssError, match="expected a folder"):
        check_vectors(tmp_path / "none")
    with pytest.raises(GptOssError, match="no results found"):
        check_vectors(tmp_path)
    for suffix in ("safetensors", "npz", "json"):
        path = tmp_path / f"rope.{suffix}"
        path.write_bytes(b"\x09garbage")
        with pytest.raises(GptOssError, match=f"cannot be read as {suffix}|not a complete"):
            check_vectors(tmp_path)
        path.unlink()
    for values in ('"text"', "1" + 400 * "0", "[1, [2]]", "{}"):
        (tmp_path / "rope.json").write_text(f'{{"rope-01/y": {values}}}')
        with pytest.raises(GptOssError, match="expected nested lists"):
            check_vectors(tmp_path)
    (tmp_path / "rope.json").write_text(100_000 * "[")
    with pytest.raises(GptOssError, match="cannot be read as json"):
        check_vectors(tmp_path)
    write_all(tmp_path, "rope", "npz")
    with pytest.raises(GptOssError, match="expected one file"):
        check_vectors(tmp_path)
    (tmp_path / "rope.json").unlink()
    content = bytearray((tmp_path / "rope.npz").read_bytes())
    content[content.index(b"PK\x01\x02") + 10] = 99  # an unknown compression
    (tmp_path / "rope.npz").write_bytes(content)
    with pytest.raises(GptOssError, match="not a complete"):
        check_vectors(tmp_path)
    with pytest.raises(GptOssError, match="unknown precision"):
        check_vectors(tmp_path, "float8")


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vectors", str(tmp_path / "suite"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sha256"] == DIGEST
    assert main(["vectors", str(tmp_path / "suite"), "--check"]) == 0
    assert "right" in capsys.readouterr().out
    wrong = {name: -values for case in SMALL[:1] for name, values in results(case).items()}
    (tmp_path / "mine").mkdir()
    save_file(wrong, tmp_path / "mine" / "embedding.safetensors")
    assert main(["vectors", str(tmp_path / "mine"), "--check", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False
    assert main(["vectors", str(tmp_path / "suite")]) == 2
    assert "already exists" in capsys.readouterr().err
    assert main(["vectors", str(tmp_path / "new"), "--precision", "bfloat16"]) == 2
    assert "--precision goes with --check" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert main(["vectors", str(tmp_path / "suite"), "--check", "--precision", "bfloat16"]) == 0
    capsys.readouterr()
    assert main(["vectors", str(tmp_path / "suite"), "--check", "--precision", "float8"]) == 2
    assert "unknown precision 'float8'" in capsys.readouterr().err


# --- flags about odd values, by both commands ---

ROUTER = """
import numpy as np

def wrong(x, weight, bias, experts_per_token):
    logits = x @ weight.T + bias
    largest = np.sort(logits)[:, ::-1][:, :experts_per_token]
    chosen = [[list(row).index(value) for value in best] for row, best in zip(logits, largest)]
    exp = np.exp(largest - largest[:, :1])
    return logits, np.array(chosen), exp / exp.sum(-1, keepdims=True)
"""
DECODE = """
import numpy as np

CODES = np.array([0, 1, 2, 3, 4, 6, 8, 12, CODE_8, -1, -2, -3, -4, -6, -8, -12]) / 2

def wrong(blocks, scales):
    pairs = np.stack([CODES[blocks & 15], CODES[blocks >> 4]], -1)
    sizes = np.where(scales == 255, SCALE_255, 2.0 ** (scales.astype(int) - 127))
    return (pairs.reshape(*scales.shape, 32) * sizes[..., None]).reshape(len(scales), -1)
"""
# An operation, a wrong version as a learner writes it, the flag it fails and what it is called.
WRONG = [
    ("router", ROUTER, "RouterTie: Equal logits.", "tie-chosen-twice"),
    (
        "mxfp4_decode",
        DECODE.replace("CODE_8", "-0").replace("SCALE_255", "np.nan"),
        "NegativeZero: Code 8 is −0",
        "negative-zero-decoded",
    ),
    (
        "mxfp4_decode",
        DECODE.replace("CODE_8", "-0.0").replace("SCALE_255", "np.inf"),
        "Scale255: NaN by the MX specification.",
        "scale-255-infinite",
    ),
]


@pytest.mark.parametrize(("operation", "text", "flag", "bug"), WRONG, ids=["tie", "zero", "scale"])
def test_both_commands_tell_the_flag(
    operation: str,
    text: str,
    flag: str,
    bug: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "mine.py").write_text(text)
    assert main(["check", f"{tmp_path / 'mine.py'}:wrong", operation]) == 1
    checked = capsys.readouterr().out

    scope: dict[str, Any] = {}
    exec(text, scope)
    tensors: dict[str, np.ndarray] = {}
    for case in SMALL:
        if case.operation.name == operation:
            returned = scope["wrong"](*case.inputs.values(), *case.parameters.values())
            answers = returned if isinstance(returned, tuple) else (returned,)
            for name, values in zip(case.operation.outputs, answers, strict=True):
                tensors[f"{case.id}/{name}"] = values
    np.savez(tmp_path / f"{operation}.npz", **tensors)
    assert main(["vectors", str(tmp_path), "--check"]) == 1
    for said in (checked, capsys.readouterr().out):
        assert flag in said
        assert f"these are the numbers of {bug}:" in said


def test_a_scale_of_255_taken_for_an_exponent_is_accepted() -> None:
    """As numbers of float64, which hold 2^128, and as those of float32, which do not."""
    (case,) = (case for case in SMALL if case.flags == ("Scale255",))
    wide = 2.0**128 * np.array([[1.0, 0.5, -0.5, -1.0] * 8])
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float32)
    assert np.isinf(narrow).any()
    for values in (wide, narrow, np.full((1, 32), np.nan)):
        assert judge_case(case, {"values": values}).verdict == "right"
    for values in (wide / 2, 2 * wide, -wide, np.full((1, 32), np.inf), np.zeros((1, 32))):
        assert judge_case(case, {"values": values}).verdict == "wrong"


def test_an_infinity_is_not_a_large_number() -> None:
    """Nor the other way round: only where an infinity is expected may the number stand for it."""
    case = SMALL[1]
    (right,) = expected(case).values()
    for odd in (np.inf, 1e300):
        values = np.where(right == right.max(), odd, right.astype(np.float64))
        assert judge_case(case, {"y": values}).verdict == "wrong"
