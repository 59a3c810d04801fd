"""`gptoss-ref diagnose`: files and servers, statuses, bad input in one line."""

from __future__ import annotations

import dataclasses
import io
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
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
    assert "does not echo prompts" in capsys.readouterr().out


def test_bad_input(tiny: Model, tmp_path: Path, capsys: Captured) -> None:
    with serving(tiny, tiny.tokenizer, "no-logprobs") as server:
        url = server.url
        at = ("tiny", "--endpoint", url)
        assert "gives no log-probabilities" in fails(capsys, *at, "--prompt", TEXT)
        assert "needs a prompt" in fails(capsys, *at)
        other = "token 476 at position 1 is out of range: expected 0 to 475"
        assert other in fails(capsys, *at, "--tokens", "1,476")
        assert "3000 positions exceed the context" in fails(capsys, *at, "--tokens", "1 " * 3000)
        assert "expected the name of a file, not ''" in fails(capsys, *at, "--html", "")
        missing = fails(capsys, *at, "--prompt", TEXT, "--api-key-env", "NO_SUCH_KEY")
        assert "NO_SUCH_KEY is not set" in missing
        both = fails(capsys, "tiny", "other.npz", "--endpoint", url)
        assert "either OTHER or --endpoint" in both
        assert "above 0" in fails(capsys, *at, "--timeout", "soon")
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
    assert "its 3 tokens differ from the 3 given ones" in other
    empty = fails(capsys, "tiny", tmp_path / "run.trace", "--prompt", "")
    assert "the prompt is empty" in empty


SCHEMA = files("gptoss_ref.verify.report").joinpath("schema.json").read_text()


def follows_the_schema(kind: str, printed: str) -> Any:
    """What --json printed, once it has passed."""
    whole = json.loads(SCHEMA)
    jsonschema.Draft202012Validator.check_schema(whole)
    schema = {**whole, "anyOf": [{"$ref": f"#/$defs/{kind}"}]}
    result = json.loads(printed)
    jsonschema.Draft202012Validator(schema).validate(result)
    return result


@pytest.fixture(scope="module")
def few(tiny: Model) -> tuple[list[int], dict[str, np.ndarray]]:
    """Some of the model's own numbers, for a prompt as long as its window."""
    tokens = tiny.tokenizer.encode(TEXT)
    return tokens, dict(
        gr.trace(tiny, tokens, taps=["block.0.attn.norm", "block.0.attn.out", "logits"])
    )


def test_names_of_ones_own(few: Any, tmp_path: Path, capsys: Captured) -> None:
    """The message says how an unknown name is explained, and following it works."""
    tokens, arrays = few
    np.savez(tmp_path / "a.npz", mine_0=arrays["block.0.attn.out"], other=np.zeros(3))
    (tmp_path / "ids.txt").write_text(", ".join(map(str, tokens)))
    ids = f"@{tmp_path / 'ids.txt'}"
    err = fails(capsys, "tiny", tmp_path / "a.npz", "--tokens", ids)
    said = '(to map it, use --names FILE with {"mine_0": "embedding"} in FILE; '
    assert said in err
    assert "its shape is that of embedding, block.0.attn.norm" in err
    (tmp_path / "n.json").write_text(json.dumps({"mine_{n}": ["block.{n}.attn.out", "T D"]}))
    named = ["--tokens", ids, "--names", str(tmp_path / "n.json")]
    assert "unknown name 'other'" in fails(capsys, "tiny", tmp_path / "a.npz", *named)
    arguments = ["diagnose", "tiny", str(tmp_path / "a.npz"), *named, "--skip-unknown", "--json"]
    assert main(arguments) == 0
    report = follows_the_schema("diagnosis", capsys.readouterr().out)
    assert [row["name"] for row in report["rows"]] == ["block.0.attn.out"]
    assert any("other" in note for note in report["notes"])
    for wrong in ('["x"]', '{"x": 1}', '{"x": ["a", "b", "c"]}', '{"x": "block.99.attn.q"}', "{"):
        (tmp_path / "n.json").write_text(wrong)
        fails(capsys, "tiny", tmp_path / "a.npz", *named)


def test_rows_of_some_positions(few: Any, tmp_path: Path, capsys: Captured) -> None:
    """One .npy of the last logits; then several files of one run; then one through stdin."""
    tokens, arrays = few
    ids = ",".join(map(str, tokens))
    np.save(tmp_path / "logits.npy", arrays["logits"][[3, 4, 5, -1]])
    err = fails(capsys, "tiny", tmp_path / "logits.npy", "--tokens", ids)
    assert "positions (--positions)" in err
    path = str(tmp_path / "logits.npy")
    assert main(["diagnose", "tiny", path, "--tokens", ids, "--positions", "3-5,-1", "--json"]) == 0
    report = follows_the_schema("diagnosis", capsys.readouterr().out)
    assert f"4 of {len(tokens)} rows observed of logits" in report["notes"]
    steps = []
    for begin, end in ((0, 10), (10, 11), (11, len(tokens))):
        steps.append(str(tmp_path / f"{begin}.npz"))
        some = {name: values[begin:end] for name, values in arrays.items()}
        np.savez(steps[-1], tokens=tokens[begin:end], **some)
    assert main(["diagnose", "tiny", *steps, "--json"]) == 0
    report = follows_the_schema("diagnosis", capsys.readouterr().out)
    assert report["tokens"] == len(tokens)
    assert not any("rows observed" in note for note in report["notes"])
    without_tokens = [str(tmp_path / f"n{n}.npz") for n in range(3)]
    for path, (begin, end) in zip(
        without_tokens, ((0, 10), (10, 11), (11, len(tokens))), strict=True
    ):
        np.savez(path, **{name: values[begin:end] for name, values in arrays.items()})
    assert main(["diagnose", "tiny", *without_tokens, "--tokens", ids]) == 0
    capsys.readouterr()


def test_from_stdin(few: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, arrays = few
    stream = io.BytesIO()
    np.savez(stream, tokens=tokens, **arrays)
    stream.seek(0)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(stream))
    assert main(["diagnose", "tiny", "-"]) == 0


def test_a_part_of_the_model(few: Any, tmp_path: Path, capsys: Captured) -> None:
    tokens, arrays = few
    np.savez(tmp_path / "a.npz", tokens=tokens, **arrays)
    for option, value in (("--layers", "0"), ("--taps", "*.attn.*")):
        assert main(["diagnose", "tiny", str(tmp_path / "a.npz"), option, value, "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert [row["name"] for row in report["rows"]] == ["block.0.attn.norm", "block.0.attn.out"]
    assert "none of the tap points" in fails(capsys, "tiny", tmp_path / "a.npz", "--layers", "3")
    for wrong in ("x", "3-1", "1-", ""):
        fails(capsys, "tiny", tmp_path / "a.npz", "--layers", wrong)


def test_tokens_of_a_text(tiny: Model, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["tokens", TEXT]) == 0
    plain = capsys.readouterr().out
    assert [int(part) for part in plain.split(",")] == tiny.tokenizer.encode(TEXT)
    assert main(["tokens", TEXT, "--chat", "--json"]) == 0
    chat = json.loads(capsys.readouterr().out)
    assert tiny.tokenizer.decode(chat).endswith(
        f"<|start|>user<|message|>{TEXT}<|end|><|start|>assistant"
    )
    monkeypatch.setattr("sys.stdin", io.StringIO(TEXT))
    assert main(["tokens", "-"]) == 0
    assert capsys.readouterr().out == plain


def test_schemas_of_compare_and_check(few: Any, tmp_path: Path, capsys: Captured) -> None:
    tokens, arrays = few
    ref, other = str(tmp_path / "ref.npz"), str(tmp_path / "other.npz")
    ids = ",".join(map(str, tokens))
    traced = ["trace", "tiny", "--backend", "numpy", "--tokens", ids, "--taps", "block.0.attn.*"]
    assert main([*traced, "-o", ref]) == 0
    np.savez(other, **{"block.0.attn.out": arrays["block.0.attn.out"] + 1})
    capsys.readouterr()
    assert main(["compare", ref, other, "--json"]) == 1
    follows_the_schema("report", capsys.readouterr().out)
    (tmp_path / "mine.py").write_text("def f(x, *rest, **more):\n    return x * 2\n")
    main(["check", f"{tmp_path / 'mine.py'}:f", "rmsnorm", "--json"])
    follows_the_schema("judgement", capsys.readouterr().out)
