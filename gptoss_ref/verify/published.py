"""Self-check: compare the released weights on this machine with published outputs.

There are two published results: greedy text with its log-probabilities (Hugging Face transformers'
test of the released checkpoints), and the first greedy tokens of a Harmony answer (the OpenAI torch
reference). `data/published.json` holds them with their sources.

Each takes one pass over the prompt and the published continuation. If every published token is the
most likely one by the logits before it, greedy decoding would have produced it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.config import GPT_OSS_20B, GPT_OSS_120B, ModelConfig
from gptoss_ref.errors import CheckpointError
from gptoss_ref.sampling import log_probability

if TYPE_CHECKING:
    from gptoss_ref.chat.tokenizer import Tokenizer

PUBLISHED = Path(__file__).parents[1] / "data" / "published.json"
# The published figures are bfloat16 results; the tolerances are those of transformers' test.
ABSOLUTE, RELATIVE = 0.1, 0.1

_RELEASED = {"gpt-oss-20b": GPT_OSS_20B, "gpt-oss-120b": GPT_OSS_120B}

Progress = Callable[[int, int, str], None]
"""Called with the checks done, the total, and the title of the check that starts or has ended."""


@dataclass(frozen=True)
class Step:
    """One published token.

    Attributes:
        token, text: the published token.
        logprob: this model's log-probability of the token, natural log.
        published: the published log-probability, or None.
        best: this model's most likely token.
        margin: log-probability of `best` minus that of the published token.
        passed: whether the margin is at most ABSOLUTE, the uncertainty of bfloat16, and the
            log-probability is as published, within ABSOLUTE + RELATIVE * abs(published).
    """

    token: int
    text: str
    logprob: float
    published: float | None
    best: int
    margin: float
    passed: bool


@dataclass(frozen=True)
class Check:
    """One published result, and this model's result for it."""

    name: str
    passed: bool
    summary: str
    source: str
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True)
class SelfCheck:
    """The verdict on a checkpoint; `passed` if every check has passed."""

    model: str
    policy: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether all checks passed."""
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """The same, for ``json.dumps``."""
        return {**dataclasses.asdict(self), "passed": self.passed}

    def __str__(self) -> str:
        lines = [f"{self.model}, {self.policy}: {'PASS' if self.passed else 'FAIL'}"]
        for check in self.checks:
            lines.append(f"  {'pass' if check.passed else 'FAIL'}  {check.name}: {check.summary}")
            lines += [f"        {_line(step)}" for step in check.steps]
        return "\n".join(lines)


def selfcheck(
    model: Any, tokenizer: Tokenizer | None = None, *, progress: Progress | None = None
) -> SelfCheck:
    """Compares `model`, a released checkpoint, with its published results.

    Args:
        model: a Model: `config`, `policy`, and a call that maps tokens (T,) to logits (T, V).
        tokenizer: the o200k_harmony tokenizer; None: that of the model.
        progress: called before each check and at the end.

    Raises:
        CheckpointError: the model is neither gpt-oss-20b nor gpt-oss-120b.
    """
    name = _released_name(model.config)
    tokenizer = tokenizer if tokenizer is not None else model.tokenizer
    published = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    runs: list[tuple[str, Callable[[], Check]]] = [
        ("Harmony prompt", lambda: _check_prompt(published["harmony"], tokenizer)),
        ("greedy text", lambda: _check_text(model, name, published["raw_text"], tokenizer)),
    ]
    if name in published["harmony"]:
        runs.append(
            ("Harmony answer", lambda: _check_answer(model, name, published["harmony"], tokenizer))
        )
    checks = []
    for done, (title, run) in enumerate(runs):
        if progress is not None:
            progress(done, len(runs), title)
        checks.append(run())
    if progress is not None:
        progress(len(runs), len(runs), "")
    return SelfCheck(name, model.policy.name, tuple(checks))


def _released_name(config: ModelConfig) -> str:
    for name, released in _RELEASED.items():
        if config == released:
            return name
    nearest = min(_RELEASED.values(), key=lambda released: len(config.differences(released)))
    raise CheckpointError(
        "selfcheck needs the released weights of gpt-oss-20b or gpt-oss-120b, the only ones with "
        "published outputs; this checkpoint differs (its / released): "
        + ", ".join(config.differences(nearest))
    )


def _check_prompt(published: dict[str, Any], tokenizer: Tokenizer) -> Check:
    tokens = _harmony_prompt(published, tokenizer)
    digest = hashlib.sha256(tokenizer.decode_bytes(tokens)).hexdigest()
    expected = published["prompt_tokens"], published["prompt_text_sha256"]
    return Check(
        name="Harmony prompt",
        passed=(len(tokens), digest) == expected,
        summary=f"{len(tokens)} tokens, SHA-256 {digest[:12]}; "
        f"published {expected[0]}, {expected[1][:12]}",
        source=published["source"],
    )


def _harmony_prompt(published: dict[str, Any], tokenizer: Tokenizer) -> list[int]:
    from gptoss_ref.chat import Message, SystemContent, render_conversation

    messages = [Message.system(SystemContent()), Message.user(published["user"])]
    return render_conversation(messages, tokenizer)


def _check_text(model: Any, name: str, published: dict[str, Any], tokenizer: Tokenizer) -> Check:
    prompt = tokenizer.encode(published["prompt"])
    logprobs = published[name]["logprobs"]
    tokens = tokenizer.encode(published[name]["text"])[: len(prompt) + len(logprobs)]
    steps = _replay(model, prompt, tokens[len(prompt) :], logprobs, tokenizer)
    worst = max(abs(step.logprob - p) for step, p in zip(steps, logprobs, strict=True))
    return Check(
        name="greedy text",
        passed=all(step.passed for step in steps),
        summary=f"{_agreement(steps)}; log-probabilities differ by at most {worst:.4f} "
        f"(allowed {ABSOLUTE} + {RELATIVE} of the figure)",
        source=published["source"],
        steps=steps,
    )


def _check_answer(model: Any, name: str, published: dict[str, Any], tokenizer: Tokenizer) -> Check:
    prompt = _harmony_prompt(published, tokenizer)
    tokens = published[name]["greedy_tokens"]
    steps = _replay(model, prompt, tokens, [None] * len(tokens), tokenizer)
    return Check(
        name="Harmony answer",
        passed=all(step.passed for step in steps),
        summary=_agreement(steps),
        source=published["source"],
        steps=steps,
    )


def _agreement(steps: Sequence[Step]) -> str:
    same = sum(step.best == step.token for step in steps)
    return f"{same} of {len(steps)} published tokens are this model's most likely ones"


def _replay(
    model: Any,
    prompt: Sequence[int],
    continuation: Sequence[int],
    logprobs: Sequence[float | None],
    tokenizer: Tokenizer,
) -> tuple[Step, ...]:
    """A Step for each published token, given the prompt and the published tokens before it."""
    logits = np.asarray(model([*prompt, *continuation[:-1]]))  # (T, V)
    rows = logits[len(prompt) - 1 :]  # (steps, V): row i predicts continuation[i]
    return tuple(
        _step(row, token, published, tokenizer)
        for row, token, published in zip(rows, continuation, logprobs, strict=True)
    )


def _step(row: NDArray[Any], token: int, published: float | None, tokenizer: Tokenizer) -> Step:
    logits = row.astype(np.float64)
    best = int(np.argmax(logits))
    logprob, margin = log_probability(logits, token), float(logits[best] - logits[token])
    passed = margin <= ABSOLUTE
    if published is not None:
        passed = passed and abs(logprob - published) <= ABSOLUTE + RELATIVE * abs(published)
    return Step(token, tokenizer.decode([token]), logprob, published, best, margin, passed)


def _line(step: Step) -> str:
    published = "" if step.published is None else f"  published {step.published:9.4f}"
    other = f"  best is {step.best}, by {step.margin:.4f}" if step.best != step.token else ""
    mark = "" if step.passed else "  FAIL"
    return f"{step.token:>6} {step.text!r:<14} {step.logprob:9.4f}{published}{other}{mark}"
