"""Generation: choose a token, append it, call the model again. On token ids, not on text."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from numbers import Integral, Real

import numpy as np

from gptoss_ref.cache import KVCache
from gptoss_ref.errors import GptOssError
from gptoss_ref.model import Model
from gptoss_ref.numerics import Array
from gptoss_ref.sampling import greedy, log_probability, token_probabilities


class Token(int):
    """A generated token id.

    Attributes:
        logprob: natural logarithm of its probability under the model, before temperature, top-k and
            top-p.
    """

    logprob: float

    def __new__(cls, token: int, logprob: float) -> Token:
        self = super().__new__(cls, token)
        self.logprob = logprob
        return self


def generate(
    model: Model,
    tokens: Iterable[int],
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | None = 0,
    stop_tokens: Collection[int] | None = None,
    cache: KVCache | None = None,
) -> Iterator[Token]:
    """Continue ``tokens``, yielding each new :class:`Token` as soon as it is chosen.

    Ends after ``max_new_tokens``, or with a stop token, which is yielded last. The arguments are
    checked when the first token is asked for.

    Args:
        model: called once with the prompt, then once for each token.
        tokens: prompt ids; with a ``cache``, the ids after those that it holds.
        max_new_tokens: largest number of tokens to generate.
        temperature: 0 takes the likeliest token (the lowest id among equals).
        top_k: keep the k likeliest tokens (and those equal to the k-th); 0 keeps all.
        top_p: keep the smallest set of likeliest tokens whose probabilities sum to at least this.
        seed: of the random generator; None takes a new one each time.
        stop_tokens: None for those of the checkpoint, () for none.
        cache: extended by the prompt and by all yielded tokens except the last.

    Raises:
        GptOssError: a parameter out of range, or logits that are NaN or infinite.
        TokenError: a bad prompt, or the context is full.
    """
    check_parameters(max_new_tokens, temperature, top_k, top_p, seed)
    stops = frozenset(model.stop_tokens if stop_tokens is None else stop_tokens)
    cache = model.new_cache() if cache is None else cache
    rng = np.random.default_rng(seed)
    pending: Iterable[int] = tokens
    for _ in range(max_new_tokens):
        logits = model(pending, cache, last_only=True)[0]  # (V,)
        if not np.isfinite(logits.max()):
            raise GptOssError(
                f"the largest logit after position {cache.length - 1} is {logits.max()}: expected "
                f"a finite number; an activation overflowed, or the weights hold NaN or infinity"
            )
        token = choose(logits, rng, temperature, top_k, top_p)
        yield token
        if token in stops:
            return
        pending = [token]


def check_parameters(
    max_new_tokens: int, temperature: float, top_k: int, top_p: float, seed: int | None
) -> None:
    """Raise GptOssError for the first parameter that :func:`generate` does not accept."""
    _check("max_new_tokens", max_new_tokens, Integral, 0, np.inf, "0 or more")
    _check("temperature", temperature, Real, 0, np.finfo(np.float64).max, "0 or more")
    _check("top_k", top_k, Integral, 0, np.inf, "0 (all) or more")
    _check("top_p", top_p, Real, np.nextafter(0.0, 1.0), 1, "over 0 and at most 1")
    _check("seed", 0 if seed is None else seed, Integral, 0, np.inf, "0 or more")


def _check(name: str, value: object, kind: type, low: float, high: float, expected: str) -> None:
    """Raise GptOssError unless ``value`` is a number of type ``kind`` from ``low`` to ``high``."""
    if not isinstance(value, kind) or not low <= value <= high:  # type: ignore[operator]
        whole = "a whole number, " if kind is Integral else ""
        raise GptOssError(f"{name} is {value!r}: expected {whole}{expected}")


def choose(
    logits: Array,
    rng: np.random.Generator,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Token:
    """One token, sampled from the ``logits`` (V,) with these parameters."""
    if temperature == 0:
        return Token(*greedy(logits))
    probabilities = token_probabilities(logits, temperature, top_k, top_p)
    token = int(rng.choice(len(probabilities), p=probabilities))
    return Token(token, log_probability(logits, token))
