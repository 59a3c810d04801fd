"""The gradient kernels against the NumPy gradients in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_ref import gradients, layers
from gptoss_ref.backpropagation.rules import attention_of_rows
from gptoss_ref.errors import CheckpointError, GptOssError
from gptoss_ref.kernels import gradients as kernels
from gptoss_ref.kernels.gradients.products import DEPTH
from gptoss_ref.kernels.matmul.mxfp4_methods import AMX, FLOAT, INT16, method_of
from gptoss_ref.kernels.runtime.isa import instructions, path_name
from gptoss_ref.kernels.runtime.threads import available_threads, threads
from tests.support.distance import relative_l2
from tests.support.kernel_cases import EVERY_PATH, INTERPRETED, bits, random_mxfp4
from tests.support.strategies import SEEDS, normal, on_grid

BOUND = 5e-6 if INTERPRETED else 2e-6


@settings(max_examples=15)
@given(
    seed=SEEDS,
    n_queries=st.integers(1, 40),
    past=st.integers(0, 17),
    heads=st.sampled_from([(2, 3, 10), (3, 2, 8), (1, 2, 4)]),
    window=st.one_of(st.none(), st.integers(1, 20)),
    sink=st.sampled_from([-20.0, 0.0, 20.0]),
)
def test_attention(
    seed: int,
    n_queries: int,
    past: int,
    heads: tuple[int, int, int],
    window: int | None,
    sink: float,
) -> None:
    rng = np.random.default_rng(seed)
    kv_heads, group, channels = heads
    n_keys = n_queries + past
    q = normal(rng, n_queries, kv_heads * group, channels)
    k, v = (normal(rng, n_keys, kv_heads, channels) for _ in range(2))
    sinks = on_grid(rng.normal(sink, 1, kv_heads * group))
    d_mix = normal(rng, n_queries, kv_heads * group * channels)
    order = rng.permutation(n_keys)
    arguments = (d_mix, q, k[order], v[order], sinks, past + np.arange(n_queries), order, window)
    exact = gradients.attention(*arguments, policy="float64")
    found = kernels.attention(*arguments)
    floor = 1e-3 * float(np.linalg.norm(d_mix) * np.linalg.norm(v))  # what dq and dk cancel from
    for ours, true in zip(found, exact, strict=True):
        assert ours.dtype == np.float32
        assert relative_l2(ours, true, floor) <= 2e-5
    with threads(1):
        alone = kernels.attention(*arguments)
    assert all(np.array_equal(a, b) for a, b in zip(found, alone, strict=True))
    assert available_threads() >= 1


@settings(max_examples=10)
@given(seed=SEEDS, size=st.sampled_from([0.5, 6.0, 60.0]), limit=st.sampled_from([7.0, 3.0]))
def test_swiglu(seed: int, size: float, limit: float) -> None:
    rng = np.random.default_rng(seed)
    x, d_y = normal(rng, 5, 34, scale=size), normal(rng, 5, 17)
    x.flat[::7] = limit * np.sign(x.flat[::7])
    exact = gradients.swiglu(d_y, x, 1.702, limit, policy="float64")
    found = kernels.swiglu(d_y, x, 1.702, limit)
    assert relative_l2(found, exact) <= 2e-6
    assert np.array_equal(found == 0, exact == 0) or size == 60.0  # exp underflows in float32


def agree(found: Any, exact: Any, bound: float = BOUND) -> None:
    for ours, true in zip(found, exact, strict=True):
        assert ours.dtype == np.float32
        assert relative_l2(ours, true) <= bound


def test_attention_of_a_batch() -> None:
    """Rows of other lengths, one of them longer than a task's queries and keys."""
    rng = np.random.default_rng(3)
    rows, start = [], 0
    for length in (1, 7, 110):
        rows.append(slice(start, start + length))
        start += length
    q, k, v = normal(rng, start, 6, 10), normal(rng, start, 2, 10), normal(rng, start, 2, 10)
    positions = np.concatenate([np.arange(at.stop - at.start) for at in rows])
    for window in (None, 5):
        arguments = (normal(rng, start, 60), q, k, v, normal(rng, 6), positions, positions, window)
        exact = attention_of_rows(*arguments, rows=rows, policy="float64")
        agree(kernels.attention(*arguments, rows=rows), exact)


@pytest.mark.parametrize("storage", ["bfloat16", "float32", "by column"])
def test_linear(storage: str) -> None:
    weight = normal(np.random.default_rng(4), 45, 64)
    if storage != "float32":
        weight = bits(weight) if storage == "bfloat16" else np.asfortranarray(weight)
    check_linear(weight)


@EVERY_PATH
def test_linear_in_mxfp4(path: str) -> None:
    with instructions(path):
        check_linear(random_mxfp4(np.random.default_rng(4), 45, 64))


def check_linear(weight: Any) -> None:
    rng = np.random.default_rng(5)
    tokens, outputs, inputs = 5 + DEPTH, 45, 64
    d_y, x = normal(rng, tokens, outputs), normal(rng, tokens, inputs)
    if INTERPRETED:
        d_y, x = d_y[:5], x[:5]
    agree(kernels.linear(d_y, x, weight), gradients.linear(d_y, x, weight, policy="float64"))
    frozen = kernels.linear(d_y[:3], x[:3], weight, weight_gradients=False)
    assert frozen.d_weight is None
    assert frozen.d_bias is None


def test_projections_of_one_input() -> None:
    rng = np.random.default_rng(6)
    weights = [normal(rng, n, 19) for n in (7, 40, 3)]
    d_ys, x = [normal(rng, 11, len(w)) for w in weights], normal(rng, 11, 19)
    wanted = [True, False, True]
    d_x, found = kernels.projections(d_ys, x, weights, weight_gradients=wanted)
    true, exact = gradients.projections(d_ys, x, weights, weight_gradients=wanted, policy="float64")
    agree([d_x, *found[0], *found[2]], [true, *exact[0], *exact[2]])
    assert found[1] == (None, None)


def mixture(rng: np.random.Generator, storage: str, tokens: int) -> tuple[Any, ...]:
    """Seven experts: every token chooses the first one, and none the last one."""
    count, active, width, inner = 7, 3, 64, 32
    if storage == "float32":
        width, inner = 45, 21  # no whole panels
    shapes = (count, 2 * inner, width), (count, width, inner)
    if storage == "mxfp4":
        first, second = (random_mxfp4(rng, *shape, scale_255="error") for shape in shapes)
    else:
        first, second = (normal(rng, *shape, scale=0.3) for shape in shapes)
    indices = np.array([[0, *rng.permutation(np.arange(1, 6))[:2]] for _ in range(tokens)])
    biases = normal(rng, count, 2 * inner, scale=4), normal(rng, count, width)
    x, d_y = normal(rng, tokens, width), normal(rng, tokens, width)
    weights = rng.random((tokens, active), np.float32)
    return d_y, x, indices, weights, first, biases[0], second, biases[1]


@pytest.mark.parametrize("storage", ["float32", "mxfp4"])
def test_experts(storage: str) -> None:
    """More tokens than are computed together; with and without what the forward pass keeps."""
    rng = np.random.default_rng(7)
    arguments = mixture(rng, storage, 5 if INTERPRETED else 205)
    exact = gradients.experts(*arguments, policy="float64")
    y, kept = kernels.kept_experts(*arguments[1:])
    found, again = kernels.experts(*arguments, kept=kept), kernels.experts(*arguments)
    assert relative_l2(y, layers.experts(*arguments[1:], policy="float64")) <= BOUND
    agree(found, exact)
    agree(again, exact)
    assert not any(d[6].any() for d in found[2:])


def test_experts_on_one_thread_frozen_and_watched() -> None:
    rng = np.random.default_rng(8)
    arguments = mixture(rng, "float32", 20)
    seen: dict[str, Any] = {}
    exact: dict[str, Any] = {}
    found = kernels.experts(*arguments, weight_gradients=False, tap=seen.__setitem__)
    gradients.experts(*arguments, policy="float64", tap=exact.__setitem__)
    assert found[2:] == (None,) * 4
    agree([seen[name] for name in exact], exact.values())
    with threads(1):
        alone = kernels.experts(*arguments)
    together = kernels.experts(*arguments)
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_experts_for_training_run_on_integers() -> None:
    """At a width that integers are made for; what is kept is what the gradients take."""
    if INTERPRETED:
        pytest.skip("too long as Python")
    rng = np.random.default_rng(9)
    tokens, count, width, inner = 24, 3, 544, 512
    first = random_mxfp4(rng, count, 2 * inner, width)
    second = random_mxfp4(rng, count, width, inner)
    assert method_of(tokens, inner) in ((FLOAT,) if path_name() == "plain" else (INT16, AMX))
    x, d_y = normal(rng, tokens, width), normal(rng, tokens, width)
    indices = np.array([rng.permutation(count)[:2] for _ in range(tokens)])
    weights = rng.random((tokens, 2), np.float32)
    biases = np.zeros((count, 2 * inner), np.float32), np.zeros((count, width), np.float32)
    arguments = (x, indices, weights, first, biases[0], second, biases[1])
    y, kept = kernels.kept_experts(*arguments)
    exact = gradients.experts(d_y, *arguments, policy="float64")
    assert relative_l2(y, layers.experts(*arguments, policy="float64")) <= 1e-4
    agree(kernels.experts(d_y, *arguments, kept=kept), exact, 1e-4)


@settings(max_examples=10)
@given(seed=SEEDS, tokens=st.sampled_from([1, 3, 70]), size=st.sampled_from([1e-3, 1.0, 1e3]))
def test_rmsnorm(seed: int, tokens: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    d_y, x = normal(rng, tokens, 19), normal(rng, tokens, 19, scale=size)
    scale = bits(normal(rng, 19))
    exact = gradients.rmsnorm(d_y, x, scale, policy="float64")
    agree(kernels.rmsnorm(d_y, x, scale), exact)


@settings(max_examples=10)
@given(seed=SEEDS, size=st.sampled_from([0.1, 3.0, 200.0]), count=st.sampled_from([None, 100]))
def test_cross_entropy(seed: int, size: float, count: float | None) -> None:
    rng = np.random.default_rng(seed)
    logits, targets = normal(rng, 9, 37, scale=size), rng.integers(0, 37, 9)
    mask = np.arange(9) % 3 != 1
    targets[1] = -100  # left out, and not looked at
    loss, d = kernels.cross_entropy(logits, targets, mask, count=count)
    true, exact = gradients.cross_entropy(logits, targets, mask, count=count, policy="float64")
    assert abs(loss - true) <= 1e-6 * (1 + abs(true))
    floor = 1e-3 / (count or 6)  # a target whose probability is 1: 1 − p cancels
    assert relative_l2(d, exact, floor) <= 1e-4
    assert not d[~mask].any()


def test_embedding_rope_and_router() -> None:
    rng = np.random.default_rng(10)
    tokens = np.array([3, 0, 3, 6, 3])
    d_x = normal(rng, 5, 19)
    agree([kernels.embedding(d_x, tokens, 8)], [gradients.embedding(d_x, tokens, 8)])
    cos, sin = (normal(rng, 5, 4) for _ in range(2))
    d_o = normal(rng, 5, 3, 8)
    agree([kernels.rope(d_o, cos, sin)], [gradients.rope(d_o, cos, sin, policy="float64")])
    indices = np.array([rng.permutation(7)[:3] for _ in range(5)])
    weights = rng.dirichlet(np.ones(3), 5).astype(np.float32)
    given_, logits = (
        (normal(rng, 5, 3), d_x, normal(rng, 7, 19), indices, weights),
        normal(rng, 5, 7),
    )
    for d_logits in (None, logits):
        found = kernels.router(*given_, d_logits=d_logits)
        agree(found, gradients.router(*given_, d_logits=d_logits, policy="float64"), 1e-5)


def test_what_does_not_fit() -> None:
    zeros = np.zeros
    rng = np.random.default_rng(11)
    with pytest.raises(GptOssError, match=r"d_y \(2, 4\), x \(2, 3\), weight \(5, 3\) do not fit"):
        kernels.linear(zeros((2, 4)), zeros((2, 3)), zeros((5, 3), np.float32))
    with pytest.raises(GptOssError, match="targets range from 0 to 7: expected 0 to 6"):
        kernels.cross_entropy(zeros((2, 7)), np.array([0, 7]))
    with pytest.raises(GptOssError, match="tokens range from -1 to 2: expected 0 to 3"):
        kernels.embedding(zeros((2, 3)), np.array([-1, 2]), 4)
    with pytest.raises(GptOssError, match=r"gradient of rmsnorm: .* do not fit"):
        kernels.rmsnorm(zeros((2, 3)), zeros((2, 4)), zeros(4))
    where, one = [np.arange(2)] * 2, zeros((2, 2, 4))
    with pytest.raises(GptOssError, match=r"gradient of attention: .* do not fit"):
        kernels.attention(zeros((2, 8)), one, one, one[:1], zeros(2), *where)
    d_y, x, indices, *rest = mixture(rng, "mxfp4", 4)
    with pytest.raises(GptOssError, match=r"gradient of experts: .* do not fit"):
        kernels.experts(d_y, x[:, :32], indices, *rest)
    with pytest.raises(GptOssError, match="expert indices range from 0 to 9"):
        kernels.experts(d_y, x, np.where(indices == 0, 9, 0 * indices), *rest)
    rest[1].scales[0, 0, 0] = 255
    with pytest.raises(CheckpointError, match="255"):
        kernels.experts(d_y, x, indices, *rest)


def test_another_policy() -> None:
    zero = np.zeros((1, 1, 4))
    where = [np.arange(1)] * 2
    with pytest.raises(GptOssError, match="kernels compute in float32"):
        kernels.attention(np.zeros((1, 4)), zero, zero, zero, np.zeros(1), *where, policy="float64")
    with pytest.raises(GptOssError, match="kernels compute in float32"):
        kernels.swiglu(np.zeros(1), np.zeros(2), policy="bfloat16")
