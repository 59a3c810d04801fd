"""Generation: greedy, sampling, limits, stop tokens, log-probabilities; against naive versions."""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gptoss_ref
from gptoss_ref.backend import get_backend
from gptoss_ref.errors import GptOssError, TokenError
from gptoss_ref.generation import choose, generate
from gptoss_ref.model import Model
from gptoss_ref.sampling import token_probabilities
from tests.support.agreement import Array
from tests.support.checks_model import build_model
from tests.support.strategies import SEEDS, random_arrays, random_tokens, small_config


@pytest.fixture(scope="module", params=["numpy", "numba"])
def model(request: pytest.FixtureRequest) -> Model:
    config = small_config(window=5, max_position_embeddings=60)
    arrays = random_arrays(config, 0)
    arrays["unembedding"] *= 2  # less even distributions
    return build_model(config, arrays, "float32", get_backend(request.param))


PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


def log_probabilities(logits: Array) -> Array:
    """log softmax in float64, by logaddexp."""
    wide = logits.astype(np.float64)
    return wide - np.logaddexp.reduce(wide)


@given(seed=SEEDS, length=st.integers(1, 12), count=st.integers(1, 8))
def test_greedy_is_the_chain_of_argmaxes(model: Model, seed: int, length: int, count: int) -> None:
    """Without any cache: each token is the argmax of one whole pass over what came before."""
    tokens = random_tokens(model.config, length, seed)
    chain = list(tokens)
    ours = list(generate(model, tokens, max_new_tokens=count))
    assert len(ours) == count
    for token in ours:
        logits = model(chain)[-1]
        # the cache sums in another order, which could swap logits that are equal to 1e-5
        assert logits[token] >= logits.max() - 1e-5
        assert abs(token.logprob - log_probabilities(logits)[token]) < 1e-5
        chain.append(int(token))


def test_tokens_are_ints_with_a_logprob(model: Model) -> None:
    token = next(generate(model, PROMPT))
    assert isinstance(token, int)
    assert type(token.logprob) is float
    assert token.logprob <= 0
    assert token in {int(token)}


def test_tokens_stream(model: Model) -> None:
    """The first token comes before the second is computed."""
    passes = 0

    class Counting(Model):
        def __call__(self, *args: Any, **kwargs: Any) -> Array:
            nonlocal passes
            passes += 1
            return super().__call__(*args, **kwargs)

    counting = Counting(model.config, model.weights, policy="float32", backend=model.backend)
    stream = generate(counting, PROMPT, max_new_tokens=9)
    assert passes == 0
    for expected in (1, 2, 3):
        next(stream)
        assert passes == expected


def test_greedy_takes_the_lowest_of_equal_logits() -> None:
    logits = np.array([1.0, 5.0, 5.0, 2.0])
    assert choose(logits, np.random.default_rng(0)) == 1


def naive_probabilities(logits: Array, temperature: float, top_k: int, top_p: float) -> list[float]:
    """The distribution that is drawn from, in plain Python.

    Sort by probability, lower id first; keep the k first (and what equals the last of them); of
    these the fewest whose share is at least p; renormalise.
    """
    scaled = [float(x) / temperature for x in logits]
    order = sorted(range(len(scaled)), key=lambda i: (-scaled[i], i))
    if top_k:
        last = scaled[order[min(top_k, len(order)) - 1]]
        order = [i for i in order if scaled[i] >= last]
    weight = {i: math.exp(scaled[i] - scaled[order[0]]) for i in order}
    total = math.fsum(weight.values())
    kept: list[int] = []
    for i in order:
        if top_p < 1 and math.fsum(weight[j] for j in kept) / total >= top_p:
            break
        kept.append(i)
    mass = math.fsum(weight[i] for i in kept)
    return [weight[i] / mass if i in kept else 0.0 for i in range(len(scaled))]


@given(
    seed=SEEDS,
    size=st.integers(1, 40),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 2, 5, 39, 40, 41, 1000]),
    top_p=st.one_of(st.just(1.0), st.floats(0.01, 0.999)),
)
def test_the_distribution_drawn_from(
    seed: int, size: int, temperature: float, top_k: int, top_p: float
) -> None:
    logits = np.random.default_rng(seed).normal(0, 3, size)
    ours = token_probabilities(logits, temperature, top_k, top_p)
    expected = naive_probabilities(logits, temperature, top_k, top_p)
    assert np.array_equal(ours > 0, np.array(expected) > 0)
    np.testing.assert_allclose(ours, expected, rtol=1e-12)
    assert abs(ours.sum() - 1) < 1e-12


def test_ties_at_the_kth_are_all_kept() -> None:
    ours = token_probabilities(np.log([0.4, 0.2, 0.2, 0.1, 0.1]), top_k=2)
    np.testing.assert_allclose(ours, [0.5, 0.25, 0.25, 0, 0], rtol=1e-12)


def test_extreme_logits_and_temperatures() -> None:
    np.testing.assert_allclose(
        token_probabilities(np.array([1e4, 0.0, -1e4])), [1, 0, 0], atol=1e-300
    )
    np.testing.assert_allclose(
        token_probabilities(np.array([1.0, 0.0]), 1e6), [0.5, 0.5], rtol=1e-5
    )
    masked = np.array([0.0, -np.inf, 0.0])
    np.testing.assert_allclose(token_probabilities(masked), [0.5, 0, 0.5], rtol=1e-12)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.6, 0, 1.0), (1.5, 9, 1.0), (1.2, 0, 0.7)]
)
def test_frequencies_follow_the_distribution(
    model: Model, temperature: float, top_k: int, top_p: float
) -> None:
    """Chi-square over 4,000 draws of fixed seeds; nothing outside the kept set is ever drawn."""
    logits = model(PROMPT)[-1]
    expected = np.array(naive_probabilities(logits, temperature, top_k, top_p))
    rng = np.random.default_rng(1)
    draws = [choose(logits, rng, temperature, top_k, top_p) for _ in range(4000)]
    counts = np.bincount(draws, minlength=len(logits))
    assert not counts[expected == 0].any()
    often = expected * 4000 >= 5
    rest = 4000 * expected[~often].sum()
    statistic = ((counts - 4000 * expected)[often] ** 2 / (4000 * expected[often])).sum()
    if rest >= 5:
        statistic += (counts[~often].sum() - rest) ** 2 / rest
    freedom = often.sum() - 1 + (rest >= 5)
    # mean + 4 standard deviations: one right sampler in some ten thousand would fail
    assert statistic <= freedom + 4 * math.sqrt(2 * freedom)


def test_generate_draws_what_sample_draws(model: Model) -> None:
    """Over seeds, first tokens follow the distribution; log-probabilities are untempered."""
    logits = model(PROMPT)[-1]
    exact = log_probabilities(logits)
    expected = np.array(naive_probabilities(logits, 0.8, 6, 0.95))
    seen = np.zeros(len(logits))
    for seed in range(120):
        settings = {"temperature": 0.8, "top_k": 6, "top_p": 0.95, "seed": seed}
        token = next(generate(model, PROMPT, **settings))
        seen[token] += 1
        assert abs(token.logprob - exact[token]) < 1e-5
    assert not seen[expected == 0].any()
    assert np.abs(seen / 120 - expected).max() < 0.19  # four standard deviations of 120 draws


def test_the_seed_decides(model: Model) -> None:
    def run(seed: int | None) -> list[int]:
        return list(generate(model, PROMPT, max_new_tokens=12, temperature=1.5, seed=seed))

    assert run(7) == run(7)
    assert len({tuple(run(seed)) for seed in range(5)}) == 5
    assert len({tuple(run(None)) for _ in range(5)}) > 1


def test_a_seed_leaves_the_global_generator_alone(model: Model) -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    list(generate(model, PROMPT, max_new_tokens=3, temperature=1.0))
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_top_k_one_and_a_low_temperature_are_greedy(model: Model) -> None:
    greedy = list(generate(model, PROMPT, max_new_tokens=8))
    for settings in ({"top_k": 1, "temperature": 1.0}, {"temperature": 1e-4}, {"top_p": 1e-9,
                     "temperature": 1.0}):  # fmt: skip
        assert list(generate(model, PROMPT, max_new_tokens=8, seed=3, **settings)) == greedy


def test_stop_tokens_are_yielded_last(model: Model) -> None:
    free = [int(t) for t in generate(model, PROMPT, max_new_tokens=20, stop_tokens=())]
    assert len(free) == 20
    stop = free[6]
    first = free.index(stop)
    for stops in ((stop,), [stop], {stop, 70}, (stop, stop)):
        stopped = list(generate(model, PROMPT, max_new_tokens=20, stop_tokens=stops))
        assert stopped == free[: first + 1]


def test_none_means_the_checkpoints_own_stop_tokens(model: Model) -> None:
    """A model of bare weights has none; another's are used, and () switches them off."""
    free = [int(t) for t in generate(model, PROMPT, max_new_tokens=10)]
    assert len(free) == 10

    class Stopping(Model):
        stop_tokens = (free[3],)  # type: ignore[assignment]

    stopping = Stopping(model.config, model.weights, policy="float32")
    end = free.index(free[3]) + 1
    assert list(generate(stopping, PROMPT, max_new_tokens=10)) == free[:end]
    assert list(generate(stopping, PROMPT, max_new_tokens=10, stop_tokens=None)) == free[:end]
    assert list(generate(stopping, PROMPT, max_new_tokens=10, stop_tokens=())) == free


def test_a_stop_token_in_the_prompt_does_not_stop(model: Model) -> None:
    assert len(list(generate(model, PROMPT, max_new_tokens=3, stop_tokens=()))) == 3
    first = next(generate(model, PROMPT))
    others = [t for t in PROMPT if t != first]
    assert list(generate(model, PROMPT, max_new_tokens=1, stop_tokens=others)) == [first]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_max_new_tokens(model: Model, count: int) -> None:
    assert len(list(generate(model, PROMPT, max_new_tokens=count))) == count


def test_a_cache_continues(model: Model) -> None:
    """Prompt in two halves, generation in two calls: the same tokens as at once."""
    whole = list(generate(model, PROMPT, max_new_tokens=10))
    cache = model.new_cache()
    model(PROMPT[:5], cache=cache)
    first = list(generate(model, PROMPT[5:], max_new_tokens=4, cache=cache))
    assert cache.length == len(PROMPT) + 3  # all but the last token
    second = list(generate(model, first[-1:], max_new_tokens=6, cache=cache))
    assert first + second == whole


def test_closing_early_leaves_the_cache_usable(model: Model) -> None:
    cache = model.new_cache()
    taken = list(islice(generate(model, PROMPT, max_new_tokens=10, cache=cache), 3))
    assert cache.length == len(PROMPT) + 2
    rest = list(generate(model, taken[-1:], max_new_tokens=3, cache=cache))
    assert taken + rest == list(generate(model, PROMPT, max_new_tokens=6))


def test_a_full_context_is_an_error(model: Model) -> None:
    """The context holds 60 tokens: a prompt of 60 yields one token, and asking on is an error."""
    prompt = random_tokens(model.config, 60, 0)
    stream = generate(model, prompt, max_new_tokens=2)
    next(stream)
    with pytest.raises(TokenError, match="60"):
        next(stream)
    with pytest.raises(TokenError, match="60"):
        next(generate(model, [*prompt, 1]))
    assert len(list(generate(model, prompt[:58], max_new_tokens=3))) == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", -1),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", -0.5),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("max_new_tokens", 2.5),
        ("temperature", "warm"),
        ("top_k", 1.5),
        ("top_p", None),
        ("seed", -1),
        ("seed", 0.5),
    ],
)
def test_bad_parameters(model: Model, name: str, value: Any) -> None:
    with pytest.raises(GptOssError, match=name):
        next(generate(model, PROMPT, **{name: value}))


def test_bad_prompts(model: Model) -> None:
    for prompt in ([], [model.config.vocab_size], [-1]):
        with pytest.raises(TokenError):
            next(generate(model, prompt))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_logits_that_are_not_finite_are_an_error(
    backend: str, temperature: float, bad: float
) -> None:
    """No token is as good as any other: nothing is drawn from NaN or infinity."""
    config = small_config()
    arrays = random_arrays(config, 0)
    arrays["norm.scale"][2] = bad
    broken = build_model(config, arrays, "float32", get_backend(backend))
    with pytest.raises(GptOssError, match="largest logit"):
        next(generate(broken, PROMPT, temperature=temperature))


def test_a_temperature_near_zero_is_greedy() -> None:
    logits = np.array([1.0, 3.0, 2.999, -50.0])
    with np.errstate(invalid="raise", divide="raise"):
        assert token_probabilities(logits, 1e-308).tolist() == [0, 1, 0, 0]


def test_public_name() -> None:
    assert gptoss_ref.generate is generate
