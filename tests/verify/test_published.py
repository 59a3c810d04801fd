"""selfcheck, with a model that is a script: what passes, what fails, and what is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gptoss_ref import GPT_OSS_20B, GPT_OSS_120B, ModelConfig, load
from gptoss_ref.chat import Tokenizer, o200k_harmony
from gptoss_ref.errors import CheckpointError
from gptoss_ref.verify.published import ABSOLUTE, PUBLISHED, selfcheck
from tests.support.checkpoint_files import write_hf

TEXT = "Roses are red, violets are blue, I love you, and I love you too."


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return o200k_harmony()


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    return json.loads(PUBLISHED.read_text())


class Scripted:
    """Stands in for a Model: gives each token of known continuations a scripted log-probability.

    The rest of the probability is spread evenly, so the scripted token is the best one unless
    `rivals` names a token that leads it by this much in log-probability.
    """

    def __init__(
        self,
        config: ModelConfig,
        continuations: Sequence[tuple[Sequence[int], Sequence[int], Sequence[float]]],
        rivals: dict[tuple[int, int], tuple[int, float]] | None = None,
    ) -> None:
        self.config, self.continuations, self.rivals = config, continuations, rivals or {}
        self.policy = SimpleNamespace(name="float32")
        self.calls: list[list[int]] = []

    def __call__(self, tokens: Sequence[int]) -> np.ndarray:
        self.calls.append(list(tokens))
        size = self.config.vocab_size
        for which, (prompt, continuation, logprobs) in enumerate(self.continuations):
            whole = [*prompt, *continuation]
            if list(tokens) != whole[: len(tokens)] or len(tokens) < len(prompt):
                continue
            logits = np.zeros((len(tokens), size), np.float32)
            for step in range(len(tokens) - len(prompt) + 1):
                row = logits[len(prompt) - 1 + step]
                logprob = logprobs[step]
                rival, lead = self.rivals.get((which, step), (None, 0.0))
                taken = np.exp(logprob) + (np.exp(logprob + lead) if rival is not None else 0)
                row[:] = np.log((1 - taken) / size)
                row[continuation[step]] = logprob
                if rival is not None:
                    row[rival] = logprob + lead
                row += 3.25  # logits are known up to a constant
            return logits
        raise AssertionError(f"unexpected tokens {tokens}")


def script(
    tokenizer: Tokenizer, published: dict[str, Any], name: str, shift: float = 0.0, **options: Any
) -> Scripted:
    """A model that answers as published, its log-probabilities shifted."""
    raw, harmony = published["raw_text"], published["harmony"]
    prompt = tokenizer.encode(raw["prompt"])
    text = tokenizer.encode(raw[name]["text"])
    runs = [(prompt, text[len(prompt) :], [p + shift for p in raw[name]["logprobs"]])]
    if name in harmony:
        answer = harmony[name]["greedy_tokens"]
        runs.append((harmony_prompt(tokenizer, harmony), answer, [-1.5] * len(answer)))
    config = {"gpt-oss-20b": GPT_OSS_20B, "gpt-oss-120b": GPT_OSS_120B}[name]
    return Scripted(config, runs, **options)


def harmony_prompt(tokenizer: Tokenizer, harmony: dict[str, Any]) -> list[int]:
    """The prompt, spelt out here: its text has the published hash, special tokens by name."""
    system = (
        "You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\n\n"
        "Reasoning: medium\n\n# Valid channels: analysis, commentary, final. "
        "Channel must be included for every message."
    )
    tokens = []
    for role, text in (("system", system), ("user", harmony["user"])):
        tokens += [tokenizer.special["<|start|>"], *tokenizer.encode(role)]
        tokens += [tokenizer.special["<|message|>"], *tokenizer.encode(text)]
        tokens += [tokenizer.special["<|end|>"]]
    tokens += [tokenizer.special["<|start|>"], *tokenizer.encode("assistant")]
    digest = hashlib.sha256(tokenizer.decode_bytes(tokens)).hexdigest()
    assert digest == harmony["prompt_text_sha256"]
    assert len(tokens) == harmony["prompt_tokens"]
    return tokens


@pytest.mark.parametrize(("name", "checks"), [("gpt-oss-20b", 3), ("gpt-oss-120b", 2)])
def test_published_outputs_pass(
    tokenizer: Tokenizer, published: dict, name: str, checks: int
) -> None:
    model = script(tokenizer, published, name)
    report = selfcheck(model, tokenizer)
    assert report.passed
    assert (report.model, report.policy) == (name, "float32")
    assert len(report.checks) == checks
    text = next(c for c in report.checks if c.name == "greedy text")
    assert len(text.steps) == 12
    for step, expected in zip(text.steps, published["raw_text"][name]["logprobs"], strict=True):
        assert step.logprob == pytest.approx(expected, abs=1e-5)
        assert step.published == expected
        assert (step.best, step.margin) == (step.token, 0)
    assert str(report).startswith(f"{name}, float32: PASS")
    value = json.loads(json.dumps(report.to_json()))
    assert value["passed"] is True
    assert value["checks"][1]["steps"][0]["text"] == " are"
    assert all(check.source for check in report.checks)


def test_one_pass_per_check(tokenizer: Tokenizer, published: dict) -> None:
    model = script(tokenizer, published, "gpt-oss-20b")
    selfcheck(model, tokenizer)
    prompt = tokenizer.encode("Roses are red, violets")
    assert [len(call) for call in model.calls] == [len(prompt) + 11, 63 + 7]
    assert TEXT.startswith(tokenizer.decode(model.calls[0]))


def test_logprobs_beyond_the_published_tolerance_fail(
    tokenizer: Tokenizer, published: dict
) -> None:
    """0.1 + 0.1 |published|: the smallest figure, 0.037, allows 0.104."""
    assert selfcheck(script(tokenizer, published, "gpt-oss-20b", shift=-0.1), tokenizer).passed
    report = selfcheck(script(tokenizer, published, "gpt-oss-20b", shift=-0.11), tokenizer)
    assert not report.passed
    text = report.checks[1]
    assert [step.passed for step in text.steps][:2] == [False, False]
    assert all(step.passed for step in text.steps[2:])
    assert "at most 0.1100" in text.summary
    assert "FAIL" in str(report)
    assert json.loads(json.dumps(report.to_json()))["passed"] is False


@pytest.mark.parametrize("which", [0, 1])
def test_another_greedy_token_fails_unless_the_two_nearly_tie(
    tokenizer: Tokenizer, published: dict, which: int
) -> None:
    def run(lead: float) -> Any:
        rivals = {(which, 3): (77, lead)}
        return selfcheck(script(tokenizer, published, "gpt-oss-20b", rivals=rivals), tokenizer)

    near, far = run(ABSOLUTE / 2), run(2 * ABSOLUTE)
    assert near.passed
    assert not far.passed
    for report in (near, far):
        check = report.checks[1 + which]
        step = check.steps[3]
        assert step.best == 77
        assert f"{len(check.steps) - 1} of {len(check.steps)} published tokens" in check.summary
        assert "best is 77" in str(report)
    assert far.checks[1 + which].steps[3].margin == pytest.approx(2 * ABSOLUTE, abs=1e-5)
    assert [c.passed for c in far.checks] == [True, which != 0, which != 1]


def test_nan_fails(tokenizer: Tokenizer, published: dict) -> None:
    class Broken(Scripted):
        def __call__(self, tokens: Sequence[int]) -> np.ndarray:
            return np.full((len(tokens), self.config.vocab_size), np.nan, np.float32)

    report = selfcheck(Broken(GPT_OSS_20B, []), tokenizer)
    assert [check.passed for check in report.checks] == [True, False, False]


def test_another_tokenizer_fails_the_prompt_check(tokenizer: Tokenizer, published: dict) -> None:
    """The same text in other tokens: the hash agrees, the count does not."""

    class Split(Tokenizer):
        def encode(self, text: str) -> list[int]:
            return [token for character in text for token in tokenizer.encode(character)]

    split = object.__new__(Split)
    split.__dict__.update(vars(tokenizer))
    report = selfcheck(script(split, published, "gpt-oss-120b"), split)
    assert [check.passed for check in report.checks] == [False, True]
    assert "published 63, 7aa26a600a0b" in report.checks[0].summary
    assert "SHA-256 7aa26a600a0b;" in report.checks[0].summary


def test_progress(tokenizer: Tokenizer, published: dict) -> None:
    seen: list[tuple[int, int, str]] = []
    model = script(tokenizer, published, "gpt-oss-20b")
    selfcheck(model, tokenizer, progress=lambda *call: seen.append(call))
    assert [call[:2] for call in seen] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert seen[1][2] == "greedy text"


def test_other_checkpoints_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = load(write_hf(tmp_path / "c"))
    with pytest.raises(CheckpointError) as caught:
        selfcheck(model, tokenizer)
    message = str(caught.value)
    assert "needs the released weights of gpt-oss-20b or gpt-oss-120b" in message
    assert "num_hidden_layers: 4 / 24" in message
    assert "\n" not in message


def test_published_figures_are_complete(published: dict, tokenizer: Tokenizer) -> None:
    raw = published["raw_text"]
    for name in ("gpt-oss-20b", "gpt-oss-120b"):
        prompt, text = tokenizer.encode(raw["prompt"]), tokenizer.encode(raw[name]["text"])
        assert text[: len(prompt)] == prompt
        assert len(raw[name]["logprobs"]) == 12 <= len(text) - len(prompt)
        assert all(p < 0 for p in raw[name]["logprobs"])
    assert raw["source"]
    assert published["harmony"]["source"]
    answer = tokenizer.decode(published["harmony"]["gpt-oss-20b"]["greedy_tokens"])
    assert answer.startswith("<|channel|>analysis<|message|>")
