"""`gptoss-ref diagnose`: files and servers, statuses, bad input in one line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import gptoss_ref as gr
from gptoss_ref.cli import main
from gptoss_ref.model import Model
from tests.support.completions_server import serving

Captured = pytest.CaptureFixture[str]
TEXT = "The three small boats left the harbour at dawn, and 27 + 58 = 85 was painted on one."


@pytest.fixture(scope="module")
def tiny() -> Model:
    """On NumPy: nothing is compiled while a client waits."""
    return gr.load("tiny", backend="numpy")


@pytest.fixture(scope="module")
def wider(tiny: Model) -> Model:
    """The same weights with a window of one key more."""
    config = dataclasses.replace(tiny.config, sliding_window=tiny.config.sliding_window + 1)
    return Model(config, tiny.weights, backend="numpy")


def fails(capsys: Captured, *arguments: object) -> str:
    assert main(["diagnose", *(str(part) for part in arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gptoss-ref: error: ")
    assert err.count("\n") == 1
    return err


def test_a_file_of_arrays_with_a_bug(
    wider: Model, tiny: Model, tmp_path: Path, capsys: Captured
) -> None:
    """The rotated q and k that locate it, and a few arrays under transformers' names."""
    tokens = tiny.tokenizer.encode(TEXT)
    taps = gr.trace(wider, tokens, taps="block.0.attn.*")
    arrays = {
        "block.0.attn.q_rope": taps["block.0.attn.q_rope"],
        "block.0.attn.k_rope": taps["block.0.attn.k_rope"],
        "model.layers.0.self_attn.v_proj": taps["block.0.attn.v"].reshape(1, len(tokens), -1),
        "model.layers.0.self_attn.o_proj.input": taps["block.0.attn.mix"][None],
        "model.layers.0.input_layernorm": taps["block.0.attn.norm"][None],
    }
    np.savez(tmp_path / "theirs.npz", tokens=tokens, **arrays)
    html = tmp_path / "page.html"
    said = ["diagnose", "tiny", str(tmp_path / "theirs.npz"), "--json", "--html", str(html)]
    assert main(said) == 1
    report = json.loads(capsys.readouterr().out)
    assert [cause["name"] for cause in report["causes"]] == ["window-plus-one"]
    assert "window-plus-one" in html.read_text()
    assert "<title>Divergence: gptoss-ref diagnose</title>" in html.read_text()


def test_a_correct_trace(tiny: Model, tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "run.trace"
    gr.trace(tiny, tiny.tokenizer.encode(TEXT), path=path)
    assert main(["diagnose", "tiny", str(path)]) == 0
    assert "window" not in capsys.readouterr().out


def test_a_server_with_a_bug(wider: Model, tiny: Model, capsys: Captured) -> None:
    with serving(wider, tiny.tokenizer) as server:
        at = ["--endpoint", server.url, "--prompt", TEXT, "--rounding", "float32"]
        status = main(["diagnose", "tiny", *at, "--json"])
    assert status == 1
    report = json.loads(capsys.readouterr().out)
    assert report["causes"][0]["name"] == "window-plus-one"
    assert server.url in report["other"]


def test_a_correct_server_without_echo(tiny: Model, capsys: Captured) -> None:
    with serving(tiny, tiny.tokenizer, "llama.cpp") as server:
        assert main(["diagnose", "tiny", "--endpoint", server.url, "--prompt", TEXT]) == 0
    assert "echoes no prompt" in capsys.readouterr().out


def test_bad_input(tiny: Model, tmp_path: Path, capsys: Captured) -> None:
    with serving(tiny, tiny.tokenizer, "no-logprobs") as server:
        url = server.url
        at = ("tiny", "--endpoint", url)
        assert "offers no log-probabilities" in fails(capsys, *at, "--prompt", TEXT)
        assert "needs a prompt" in fails(capsys, *at)
        other = "token 476 at position 1 is out of range: expected 0 to 475"
        assert other in fails(capsys, *at, "--tokens", "1,476")
        assert "3000 positions exceed the context" in fails(capsys, *at, "--tokens", "1 " * 3000)
        assert "expected the name of a file, not ''" in fails(capsys, *at, "--html", "")
        missing = fails(capsys, *at, "--prompt", TEXT, "--api-key-env", "NO_SUCH_KEY")
        assert "NO_SUCH_KEY is not set" in missing
        both = fails(capsys, "tiny", "other.npz", "--endpoint", url)
        assert "either OTHER or --endpoint" in both
        assert "more than 0" in fails(capsys, *at, "--timeout", "soon")
    gone = ("tiny", "--endpoint", url)
    assert "no server there" in fails(capsys, *gone, "--prompt", TEXT)
    assert other in fails(capsys, *gone, "--tokens", "1,476")
    assert "either OTHER or --endpoint" in fails(capsys, "tiny")
    assert "no such file" in fails(capsys, "tiny", tmp_path / "absent.npz", "--tokens", "1,2")
    np.savez(tmp_path / "a.npz", lm_heat=np.zeros((2, 476)))
    assert "did you mean 'lm_head'" in fails(capsys, "tiny", tmp_path / "a.npz", "--tokens", "1,2")
    np.savez(tmp_path / "a.npz", lm_head=np.zeros((2, 476)))
    assert "the prompt is missing" in fails(capsys, "tiny", tmp_path / "a.npz")
    gr.trace(tiny, [1, 2, 3], path=tmp_path / "run.trace")
    other = fails(capsys, "tiny", tmp_path / "run.trace", "--tokens", "1,2,4")
    assert "3 tokens that are not the 3 expected ones" in other
    empty = fails(capsys, "tiny", tmp_path / "run.trace", "--prompt", "")
    assert "the prompt is empty" in empty
