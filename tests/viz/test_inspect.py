"""The inspector's data against the trace they are of, its command line, and bad input."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gptoss_ref as gr
from gptoss_ref.chat import Message, build_conversation, render_conversation
from gptoss_ref.cli import main
from gptoss_ref.viz import inspector
from gptoss_ref.viz.inspector import build
from gptoss_ref.viz.inspector.conversation import messages, token_text
from gptoss_ref.viz.inspector.recording import Sparse, sparse
from tests.support.inspected import long_case, parts

pytestmark = pytest.mark.usefixtures("warm_kernels")
Captured = pytest.CaptureFixture[str]


def dense(arrays: dict[str, Any], layer: int, count: int) -> Any:
    """The map (H, T, S) of one layer."""
    counts = arrays[f"attention.{layer}.counts"]
    heads = np.repeat(np.arange(len(counts)), counts.sum(axis=1))
    queries = np.concatenate([np.repeat(np.arange(count), row) for row in counts])
    made = np.zeros((len(counts), count, count))
    keys = queries - arrays[f"attention.{layer}.distances"]
    made[heads, queries, keys] = arrays[f"attention.{layer}.weights"] / 255
    return made


@pytest.fixture(scope="module")
def tokens(tiny: Any) -> list[int]:
    return render_conversation(build_conversation("What is 27 + 58?"), tiny.tokenizer)


@pytest.fixture(scope="module")
def trace(tiny: Any, tokens: list[int]) -> Any:
    return gr.trace(tiny, tokens)


def test_the_page_holds_the_trace_within_its_rounding(tiny: Any, trace: Any) -> None:
    facts, arrays = parts(inspector.page(tiny, trace))
    config, count = trace.config, len(trace.tokens)
    assert facts["tokens"] == trace.tokens.tolist()
    assert facts["kept"] is None
    assert facts["windows"] == [24, None, 24, None, 24]
    for n in range(config.num_hidden_layers):
        weights = trace[f"block.{n}.attn.weights"].astype(float)
        shown = dense(arrays, n, count)
        assert np.abs(shown - weights).max() <= 0.5 / 255 + 1e-9
        if config.window(n):  # no room for keys that are never seen
            assert arrays[f"attention.{n}.distances"].dtype == np.int8
        sinks = arrays["sinks"][n] / 65535
        np.testing.assert_allclose(sinks, 1 - weights.sum(axis=2), atol=0.51 / 65535)
        chosen = trace[f"block.{n}.mlp.expert_indices"]
        np.testing.assert_array_equal(arrays["experts"][n, :, :4], chosen)
        np.testing.assert_allclose(
            arrays["expert_weights"][n] / 65535,
            trace[f"block.{n}.mlp.expert_weights"],
            atol=0.51 / 65535,
        )
        logits = trace[f"block.{n}.mlp.router_logits"]
        best = -np.sort(-logits, axis=1)
        np.testing.assert_array_equal(arrays["margins"][n], best[:, 3] - best[:, 4])
        runner_up = np.take_along_axis(logits, arrays["experts"][n, :, 4:].astype(int), axis=1)
        np.testing.assert_array_equal(runner_up[:, 0], best[:, 4])


def test_the_last_row_of_the_lens_is_the_models_own(tiny: Any, trace: Any) -> None:
    _, arrays = parts(inspector.page(tiny, trace))
    logits = trace["logits"].astype(float)
    chance = np.exp(logits - logits.max(axis=1, keepdims=True))
    chance /= chance.sum(axis=1, keepdims=True)
    order = np.argsort(-chance, axis=1, kind="stable")
    shown = np.take_along_axis(chance, arrays["final"].astype(int), axis=1)
    # sums in another order may swap equal ones: compared by what they are worth
    np.testing.assert_allclose(shown, np.take_along_axis(chance, order[:, :10], axis=1), rtol=1e-4)
    np.testing.assert_allclose(arrays["final_chances"] / 65535, shown, atol=2e-5)
    np.testing.assert_array_equal(arrays["lens"][-1], arrays["final"][:, :5])
    came = chance[np.arange(len(chance) - 1), trace.tokens[1:]]
    np.testing.assert_allclose(arrays["next_chances"][-1] / 65535, came, atol=2e-5)
    assert (arrays["next_ranks"][-1] == 0).sum() == (order[:-1, 0] == trace.tokens[1:]).sum()


def test_the_lens_agrees_with_the_figure(tiny: Any, trace: Any) -> None:
    _, arrays = parts(inspector.page(tiny, trace))
    figure = gr.viz.logit_lens(tiny, trace)
    drawn = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(arrays["lens_chances"][:, -12:, 0] / 65535, drawn, atol=1e-5)


def test_tokens_their_trace_and_its_file_make_the_same_page(
    tiny: Any, tokens: list[int], tmp_path: Path
) -> None:
    made = gr.trace(tiny, tokens, taps=inspector.TAPS)
    made.save(tmp_path / "run.trace")
    facts, arrays = parts(inspector.page(tiny, made))
    for source in (tokens, gr.Trace.load(tmp_path / "run.trace")):
        others, same = parts(inspector.page(tiny, source))
        assert facts == others
        assert all(np.array_equal(arrays[name], same[name]) for name in arrays)


def test_messages_have_no_gaps_and_name_their_channels(tiny: Any) -> None:
    conversation = [
        *build_conversation("Weather in Rome?", instructions="Be brief."),
        Message.assistant("The tool knows.", "analysis"),
        Message.call("functions.weather", '{"town": "Rome"}'),
        Message.tool("functions.weather", "rain"),
        Message.assistant("Rain."),
    ]
    ids = render_conversation(conversation, tiny.tokenizer, history="keep")
    found = messages(ids, tiny.tokenizer)
    assert [m["begin"] for m in found] == [0, *(m["end"] for m in found[:-1])]
    assert found[-1]["end"] == len(ids)
    said = [(m["role"], m.get("channel"), m.get("to"), m.get("name")) for m in found]
    assert said == [
        ("system", None, None, None),
        ("developer", None, None, None),
        ("user", None, None, None),
        ("assistant", "analysis", None, None),
        ("assistant", "commentary", "functions.weather", None),
        ("tool", "commentary", "assistant", "functions.weather"),
        ("assistant", "final", None, None),
        ("assistant", None, None, None),  # the header that the answer is to go on with
    ]
    bodies = [tiny.tokenizer.decode(ids[m["body"] : m["end"]]) for m in found]
    assert bodies[2] == "Weather in Rome?<|end|>"
    assert bodies[4] == '{"town": "Rome"}<|call|>'


def test_text_that_is_no_message_is_a_stretch_of_its_own(tiny: Any) -> None:
    plain = tiny.tokenizer.encode("just a text")
    assert messages(plain, tiny.tokenizer) == [{"begin": 0, "end": len(plain)}]
    assert messages(plain, None) == [{"begin": 0, "end": len(plain)}]
    start = tiny.tokenizer.special_id("start")
    broken = [*plain, start, *plain, start]
    found = messages(broken, tiny.tokenizer)
    assert [m["begin"] for m in found] == [0, *(m["end"] for m in found[:-1])]
    assert found[-1]["end"] == len(broken)


def test_nothing_hides_in_the_text_of_a_token() -> None:
    assert token_text(b"\x07\x00") == "\\x07\\x00"
    assert token_text(b"\xf0\x9f\xa6") == "\\xf0\\x9f\\xa6"
    assert token_text("🦙".encode()) == "🦙"
    assert token_text("שלום".encode()) == "שלום"
    assert token_text("\u202eabc\u200b\u2028".encode()) == "U+202EabcU+200BU+2028"
    assert token_text("\u0301".encode()) == "◌\u0301"
    assert token_text(b" a\r\n\t") == " a␍↵⇥"


def test_markup_in_the_prompt_is_data(tiny: Any) -> None:
    prompt = "</script><script>alert(1)</script><img src=x onerror=alert(2)><!-- {{js}}"
    text = inspector.page(tiny, tiny.tokenizer.encode(prompt), name="</title><script>x</script>")
    assert text.count("<script") == 3  # facts, arrays and the page's own
    assert "<img" not in text
    facts, _ = parts(text)
    assert "".join(facts["texts"][str(i)] for i in facts["tokens"]) == prompt
    assert "Inside &lt;/title&gt;" in text
    # the prompt cannot place a hash into the policy, nor a part of the template into the page
    assert text.count("script-src 'sha256-") == 1


def test_a_model_with_no_tokenizer_and_a_token_without_bytes(tiny: Any) -> None:
    bare = gr.Model(tiny.config, tiny.weights)
    facts, _ = parts(inspector.page(bare, [3, 475]))
    assert (facts["texts"]["3"], facts["texts"]["475"]) == ("3", "475")
    assert facts["special"] == []


def test_one_token_is_a_page(tiny: Any) -> None:
    facts, arrays = parts(inspector.page(tiny, [5]))
    assert arrays["next_chances"].shape == (6, 0)
    assert facts["start"] == 0


def test_it_opens_where_a_block_lifts_the_right_token_most() -> None:
    ranks = np.array(
        [
            [9, 400, 30, 80],  # after the embedding
            [0, 300, 2, 80],
            [0, 5, 0, 1],
        ]
    )
    assert build.most_telling(ranks) == (2, 0)  # log(31/3); tokens 1 and 3 end below the first
    ranks[-1, 3] = 0
    assert build.most_telling(ranks) == (3, 1)
    assert build.most_telling(ranks[:, :0]) == (0, 1)
    assert build.most_telling(np.ones((3, 4), int)) == (4, 1)


def test_sparse_keeps_the_largest_of_each_row() -> None:
    rng = np.random.default_rng(3)
    weights = np.tril(rng.dirichlet(np.ones(9), size=(2, 9)))
    all_of_them = sparse(weights)
    kept = all_of_them.largest(3)
    assert isinstance(kept, Sparse)
    assert kept.counts.max() == 3
    units = np.rint(weights * 255)
    begin = 0
    for row, keep in zip(units.reshape(-1, 9), kept.counts.ravel(), strict=True):
        largest = np.sort(row[row > 0])[::-1][:3]
        np.testing.assert_array_equal(np.sort(kept.weights[begin : begin + keep])[::-1], largest)
        begin += keep
    assert begin == len(kept.weights)


def test_a_long_prompt_is_thinned_and_says_so(tiny: Any, monkeypatch: Any) -> None:
    ids = [3, 17, 4] * 100
    whole = inspector.page(tiny, ids)
    monkeypatch.setattr(build, "LIMIT", len(whole) - 1)
    facts, arrays = parts(inspector.page(tiny, ids))
    assert facts["kept"] == 64
    assert arrays["attention.1.counts"].max() == 64
    np.testing.assert_array_equal(arrays["sinks"], parts(whole)[1]["sinks"])


def test_5000_tokens_fit_or_are_refused_at_once(monkeypatch: Any) -> None:
    model, ids = long_case()
    text = inspector.page(model, ids)
    facts, arrays = parts(text)
    assert len(text) <= inspector.LIMIT
    assert len(facts["tokens"]) == arrays["sinks"].shape[-1] == 5000
    monkeypatch.setattr(build, "LIMIT", 30_000)
    monkeypatch.setattr(gr.Model, "__call__", None)  # refused before anything is computed
    with pytest.raises(gr.GptOssError, match=r"5,000 tokens would take .* tokens fit"):
        inspector.page(model, ids)


def test_missing_taps_are_named_with_how_to_record_them(tiny: Any, tokens: list[int]) -> None:
    with pytest.raises(gr.GptOssError, match=r"lacks embedding, .*gr\.trace\(model, tokens, taps="):
        inspector.page(tiny, gr.trace(tiny, tokens, taps="norm"))


def test_a_trace_of_another_model_or_with_nan_is_refused(tiny: Any) -> None:
    made = gr.trace(tiny, [1, 2, 3], taps=inspector.TAPS)
    arrays = {name: made[name] for name in made}
    bad = made["block.2.attn.weights"].copy()
    bad[0, 1, 0] = np.nan
    arrays["block.2.attn.weights"] = bad
    with pytest.raises(gr.GptOssError, match=r"block\.2\.attn\.weights holds NaN"):
        inspector.page(tiny, gr.Trace(arrays, tokens=made.tokens, config=made.config))
    other = gr.Trace({}, tokens=[1, 2, 3], config=gr.GPT_OSS_20B)
    with pytest.raises(gr.GptOssError, match="differ in their configuration"):
        inspector.page(tiny, other)
    for position in (-1, 3):
        with pytest.raises(gr.GptOssError, match="expected a position from 0 to 2"):
            inspector.page(tiny, made, token=position)


def test_the_command_writes_the_page_of_a_chat(tmp_path: Path, capsys: Captured, tiny: Any) -> None:
    path = tmp_path / "page.html"
    tools = tmp_path / "tools.json"
    tools.write_text('[{"name": "calculate", "description": "Adds."}]')
    options = ["--generate", "40", "--reasoning", "low", "--instructions", "Be brief.", "--json"]
    options += ["--tools", str(tools)]
    assert main(["inspect", "tiny", "What is 27 + 58?", "-o", str(path), *options]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["bytes"] == path.stat().st_size < inspector.LIMIT
    facts, _ = parts(path.read_text())
    conversation = build_conversation(
        "What is 27 + 58?",
        reasoning="low",
        instructions="Be brief.",
        tools=[{"name": "calculate", "description": "Adds."}],
    )
    prompt = render_conversation(conversation, tiny.tokenizer)
    reply = [int(token) for token in gr.generate(tiny, prompt, 40)]
    assert facts["tokens"] == said["tokens"] == prompt + reply
    assert said["prompt_tokens"] == len(prompt)
    assert facts["model"] == "tiny"
    assert {path.name for path in tmp_path.iterdir()} == {"page.html", "tools.json"}


def test_the_command_inspects_a_text(tmp_path: Path, capsys: Captured, tiny: Any) -> None:
    path = tmp_path / "page.html"
    path.write_text("an older page")
    assert main(["inspect", "tiny", "--raw", "27 + 58 = ", "-o", str(path)]) == 0
    facts, _ = parts(path.read_text())
    assert facts["tokens"] == tiny.tokenizer.encode("27 + 58 = ")
    assert facts["messages"] == [{"begin": 0, "end": len(facts["tokens"])}]
    assert capsys.readouterr().out.startswith(f"{path}: {len(facts['tokens'])} tokens of tiny, 0.")


def test_the_command_with_bad_input(tmp_path: Path, capsys: Captured, monkeypatch: Any) -> None:
    path = tmp_path / "page.html"

    def fails(*arguments: object) -> str:
        assert main(["inspect", *map(str, arguments)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("gptoss-ref: error: ")
        assert err.count("\n") == 1
        return err

    assert "-o/--output" in fails("tiny", "Hello")
    assert "PROMPT is empty" in fails("tiny", " ", "-o", path)
    assert "expected the name of a file" in fails("tiny", "Hello", "-o", tmp_path)
    assert "in a folder that exists" in fails("tiny", "Hello", "-o", tmp_path / "no" / "x.html")
    assert "expected one of low, medium" in fails("tiny", "a", "-o", path, "--reasoning", "max")
    assert "--reasoning is part of a chat" in fails(
        "tiny", "a", "-o", path, "--raw", "--reasoning", "low"
    )
    assert "max_new_tokens is -1" in fails("tiny", "a", "-o", path, "--generate", "-1")
    assert "nowhere: no such folder" in fails("nowhere", "a", "-o", path)
    assert "expected at most 2048" in fails("tiny", "x" * 5000, "-o", path)
    monkeypatch.setattr(build, "LIMIT", 30_000)
    assert "tokens fit" in fails("tiny", "Hello", "-o", path)
    assert not list(tmp_path.iterdir())


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "page.html"
    inspector.write(path, "old")
    with pytest.raises(gr.GptOssError, match="cannot be written"):
        inspector.write(tmp_path / "no" / "page.html", "new")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        inspector.write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
