"""`gptoss-ref trace` and `gptoss-ref compare`: files, statuses, bad input in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import gptoss_ref as gr
from gptoss_ref.cli import main
from gptoss_ref.tracing.trace import Trace

Captured = pytest.CaptureFixture[str]
IDS = "17,4,250,33,90,11"
TOKENS = [17, 4, 250, 33, 90, 11]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ref (float64), good (bfloat16) and bad (its logits shifted) traces of tiny."""
    made = tmp_path_factory.mktemp("traces")
    for name, policy in (("ref", "float64"), ("good", "bfloat16")):
        gr.trace(gr.load("tiny", policy=policy), TOKENS, path=made / name)
    good = Trace.load(made / "good")
    arrays = {name: good[name] for name in good} | {"logits": np.roll(good["logits"], 1, axis=1)}
    Trace(arrays, tokens=TOKENS, config=good.config, dtype="bfloat16").save(made / "bad")
    return made


def fails(capsys: Captured, *arguments: object) -> str:
    assert main([str(part) for part in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gptoss-ref: error: ")
    assert err.count("\n") == 1
    return err


def test_trace_writes_what_the_library_computes(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "run.trace"
    options = ["--policy", "float64", "--backend", "numpy", "--json"]
    assert main(["trace", "tiny", "-o", str(path), "--tokens", IDS, *options]) == 0
    said = json.loads(capsys.readouterr().out)
    model = gr.load("tiny", policy="float64")
    read, expected = Trace.load(path), gr.trace(model, TOKENS)
    assert said["taps"] == list(read) == list(expected)
    assert said["tokens"] == TOKENS
    assert said["bytes"] == path.stat().st_size
    assert all(np.array_equal(read[name], expected[name]) for name in expected)


def test_trace_of_a_text_and_of_some_taps(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "run.trace"
    options = ["--taps", "logits", "--taps", "*.mlp.residual", "--policy", "bfloat16"]
    assert main(["trace", "tiny", "-o", str(path), "--prompt", "What is 2 + 2?", *options]) == 0
    read = Trace.load(path)
    assert read.tokens.tolist() == gr.load("tiny").tokenizer.encode("What is 2 + 2?")
    assert list(read) == [*(f"block.{n}.mlp.residual" for n in range(5)), "logits"]
    assert capsys.readouterr().out.startswith(f"{path}: 6 tap points of {len(read.tokens)} tokens")


def test_trace_bad_input(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "run.trace"
    start = ["trace", "tiny", "--policy", "float64", "-o", path]
    assert "--prompt --tokens is required" in fails(capsys, *start)
    assert "not allowed with" in fails(capsys, *start, "--prompt", "a", "--tokens", "1")
    assert "expected token ids such as" in fails(capsys, *start, "--tokens", "1,x")
    assert "token 476 at position 1 is out of range" in fails(capsys, *start, "--tokens", "1 476")
    assert "the prompt is empty" in fails(capsys, *start, "--prompt", "")
    assert "did you mean 'norm'" in fails(capsys, *start, "--tokens", "1", "--taps", "nrm")
    there = ["trace", "tiny", "--policy", "float64", "--tokens", "1", "-o", tmp_path / "no" / "x"]
    assert "cannot be written" in fails(capsys, *there)
    nameless = ["trace", "tiny", "--tokens", "1", "-o", ""]
    assert "-o/--output: expected the name of a file, not ''" in fails(capsys, *nameless)
    assert not list(tmp_path.iterdir())


def test_compare_passes_a_correct_run(folder: Path, capsys: Captured) -> None:
    """The bundled model is found by itself, and the yardstick measured with it."""
    assert main(["compare", str(folder / "ref"), str(folder / "good")]) == 0
    text = capsys.readouterr().out
    assert text.startswith("No divergence beyond what bfloat16 explains")
    assert "measured on the first 6 tokens" in text
    assert "\x1b" not in text


def test_compare_fails_a_wrong_one(folder: Path, tmp_path: Path, capsys: Captured) -> None:
    page = tmp_path / "page.html"
    files = [str(folder / "ref"), str(folder / "bad")]
    assert main(["compare", *files, "--model", "tiny", "--json", "--html", str(page)]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["first_divergence"] == "logits"
    assert report["judged"] == 98
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_verbose(folder: Path, capsys: Captured) -> None:
    assert main(["compare", str(folder / "ref"), str(folder / "good"), "--verbose"]) == 0
    assert capsys.readouterr().out.count("\nblock.") == 95


def test_compare_with_arrays_of_a_file(folder: Path, tmp_path: Path, capsys: Captured) -> None:
    """Anybody's .npz: its prompt is taken to be that of REF."""
    good = Trace.load(folder / "good")
    ends = {"logits": good["logits"], "norm": good["norm"]}
    routes = {name: good[name] for name in good if name.endswith("expert_indices")}
    np.savez(tmp_path / "theirs.npz", **routes, **ends)
    said = ["compare", str(folder / "ref"), str(tmp_path / "theirs.npz"), "--rounding", "bfloat16"]
    assert main([*said, "--json"]) == 0
    found = [row["name"] for row in json.loads(capsys.readouterr().out)["rows"]]
    assert found == [*routes, "norm", "logits"]

    np.savez(tmp_path / "theirs.npz", **ends)  # near ties, without the choices of experts
    html = tmp_path / "page.html"
    assert main([*said, "--html", str(html)]) == 1, "no verdict is no success"
    assert capsys.readouterr().out.startswith("No verdict: none of the 98 tap points")
    assert "<title>No verdict" in html.read_text()


def test_compare_bad_input(folder: Path, tmp_path: Path, capsys: Captured) -> None:
    ref, good = folder / "ref", folder / "good"
    assert "cannot be read" in fails(capsys, "compare", tmp_path / "absent", good)
    assert "no such file" in fails(capsys, "compare", ref, tmp_path / "absent")
    cut = tmp_path / "cut"
    cut.write_bytes(good.read_bytes()[:-9])
    assert f"{cut}: truncated" in fails(capsys, "compare", ref, cut)
    assert "unknown rounding 'third'" in fails(capsys, "compare", ref, good, "--rounding", "third")
    assert "no such folder" in fails(capsys, "compare", ref, good, "--model", tmp_path / "nowhere")
    model = gr.load("tiny", policy="float64")
    gr.trace(model, TOKENS[:-1], path=tmp_path / "short")
    assert "REF has 6 tokens, OTHER 5" in fails(capsys, "compare", ref, tmp_path / "short")
    there = tmp_path / "no" / "page.html"
    assert "No such file" in fails(capsys, "compare", ref, good, "--html", there)


def test_a_reference_of_another_model(folder: Path, tmp_path: Path, capsys: Captured) -> None:
    ref = Trace.load(folder / "ref")
    arrays = {"embedding": ref["embedding"] + 1, "logits": ref["logits"]}
    Trace(arrays, tokens=TOKENS, config=ref.config, dtype="float64").save(tmp_path / "moved")
    files = (tmp_path / "moved", folder / "good")
    assert "REF is not a trace of this model" in fails(capsys, "compare", *files, "--model", "tiny")
