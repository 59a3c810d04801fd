"""Each layer's gradients against torch autograd on the twin, under every policy."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gptoss_ref import gradients
from gptoss_ref.layers import rope_tables, yarn
from gptoss_ref.layers.mxfp4 import encode
from gptoss_ref.numerics import get_policy
from tests.support import torch_twin as twin
from tests.support.agreement import NUMPY, POLICIES, STRAYS, ULP, as_tensor
from tests.support.strategies import SEEDS, mxfp4_values, normal, on_grid
from tests.support.torch_backward import Ops, layer_gradients

Array = NDArray[Any]

FLOAT = {"float64": 1e-10, "float32": 2e-5}
CANCELLED = 1e-3  # of a gradient's terms, may cancel: float32 sees the terms' error


def agree(
    ours: dict[str, Array], theirs: dict[str, Array], policy: str, scale: float = 0.0
) -> None:
    """Relative L2 to float64; under bfloat16, how many values differ and by how much.

    ``scale``: norm of what a gradient is a difference of, where that may cancel.
    """
    for name, found in ours.items():
        expected = theirs[name]
        assert found.shape == expected.shape, name
        assert found.dtype == NUMPY[policy], name
        off = np.abs(found.astype(np.float64) - expected)
        size = max(float(np.linalg.norm(expected)), CANCELLED * scale, 1e-30)
        if policy != "bfloat16":
            assert np.linalg.norm(off) <= FLOAT[policy] * size, (name, np.linalg.norm(off) / size)
            continue
        assert np.array_equal(found, on_grid(found)) or name == "scale", name
        steps = off > 1e-5 * np.abs(expected)
        assert steps.sum() <= 2 + 2 * STRAYS * off.size, (name, int(steps.sum()), off.size)
        mean = max(float(np.abs(expected).mean()), CANCELLED * scale / np.sqrt(off.size))
        assert (off <= 2 * ULP * np.maximum(np.abs(expected), mean)).all(), name


def both(ours: dict[str, Array], policy: str, function: Any, d_out: Array, **kwargs: Any) -> None:
    size = kwargs.pop("size", 0.0)
    against = "bfloat16" if policy == "bfloat16" else "float64"
    agree(ours, layer_gradients(function, d_out, against, **kwargs), policy, size)


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=10)
@given(seed=SEEDS, tokens=st.integers(1, 9), width=st.integers(2, 40))
def test_rmsnorm(policy: str, seed: int, tokens: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    x, d_y, scale = normal(rng, tokens, width), normal(rng, tokens, width), normal(rng, width)
    found = gradients.rmsnorm(d_y, x, scale, policy=policy)

    def layer(x: Any, scale: Any) -> Any:
        return twin.rmsnorm(x, scale.float() if policy == "bfloat16" else scale)

    ours = {"x": found.d_x, "scale": found.d_scale}
    if policy == "bfloat16":  # autograd rounds d_scale in the cast to the test's bfloat16 leaf
        ours["scale"] = get_policy(policy).round(found.d_scale)
    both(ours, policy, layer, d_y, x=x, scale=scale, size=float(np.linalg.norm(d_y * scale)))


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=10)
@given(seed=SEEDS, tokens=st.integers(1, 9), rows=st.integers(1, 30), width=st.integers(1, 40))
def test_linear(policy: str, seed: int, tokens: int, rows: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    x, weight, d_y = (normal(rng, *s) for s in ((tokens, width), (rows, width), (tokens, rows)))
    found = gradients.linear(d_y, x, weight, policy=policy)
    assert found.d_weight is not None
    assert found.d_bias is not None
    ours = {"x": found.d_x, "weight": found.d_weight, "bias": found.d_bias}
    scale = float(np.linalg.norm(np.abs(d_y) @ np.abs(weight)))
    both(ours, policy, twin.linear, d_y, x=x, weight=weight, bias=np.zeros(rows), size=scale)
    frozen = gradients.linear(d_y, x, weight, weight_gradients=False, policy=policy)
    assert np.array_equal(frozen.d_x, found.d_x)
    assert frozen[1:] == (None, None)


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=10)
@given(
    seed=SEEDS, tokens=st.integers(1, 9), heads=st.integers(1, 4), factor=st.sampled_from([1, 8])
)
def test_rope(policy: str, seed: int, tokens: int, heads: int, factor: int) -> None:
    rng = np.random.default_rng(seed)
    x, d_o = normal(rng, tokens, heads, 12), normal(rng, tokens, heads, 12)
    inv_freq, concentration = yarn(12, 500.0, factor, 400, 20.0, 4.0)
    cos, sin = rope_tables(np.arange(tokens) + 7, inv_freq, concentration, policy=policy)
    ours = {"x": gradients.rope(d_o, cos, sin, policy=policy)}
    against = "bfloat16" if policy == "bfloat16" else "float64"
    tables = [as_tensor(table, against) for table in (cos, sin)]
    both(ours, policy, lambda x: twin.rope(x, *tables), d_o, x=x)


def attended(window: int | None, q_positions: Any, k_positions: Any, **arrays: Any) -> Any:
    return Ops().attended(**arrays, age=q_positions[:, None] - k_positions, window=window)


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=15)
@given(
    seed=SEEDS,
    n_queries=st.integers(1, 17),
    past=st.integers(0, 17),
    heads=st.sampled_from([(2, 3, 10), (3, 2, 8), (1, 2, 4)]),
    window=st.one_of(st.none(), st.integers(1, 20)),
    sink=st.sampled_from([-20.0, 0.0, 5.0, 20.0]),
    tile=st.sampled_from([1, 100, 1 << 22]),
)
def test_attention(
    policy: str,
    seed: int,
    n_queries: int,
    past: int,
    heads: tuple[int, int, int],
    window: int | None,
    sink: float,
    tile: int,
) -> None:
    rng = np.random.default_rng(seed)
    kv_heads, group, channels = heads
    n_keys = n_queries + past
    q = normal(rng, n_queries, kv_heads * group, channels)
    k, v = normal(rng, n_keys, kv_heads, channels), normal(rng, n_keys, kv_heads, channels)
    sinks = on_grid(rng.normal(sink, 1, kv_heads * group))
    d_mix = normal(rng, n_queries, kv_heads * group * channels)
    order = rng.permutation(n_keys)
    where = {"q_positions": past + np.arange(n_queries), "k_positions": order}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("gptoss_ref.gradients.attention"), "TILE_SCORES", tile)
        found = gradients.attention(
            d_mix, q, k[order], v[order], sinks, *where.values(), window, policy=policy
        )
    ours = dict(zip(("q", "k", "v", "sinks"), found, strict=True))
    both(
        ours,
        policy,
        partial(attended, window),
        d_mix,
        q=q,
        k=k[order],
        v=v[order],
        sinks=sinks,
        **where,
        size=float(np.linalg.norm(d_mix) * np.linalg.norm(v)),
    )


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=10)
@given(seed=SEEDS, tokens=st.integers(1, 9), active=st.integers(1, 5), near=st.booleans())
def test_router(policy: str, seed: int, tokens: int, active: int, near: bool) -> None:
    rng = np.random.default_rng(seed)
    x, weight, bias = normal(rng, tokens, 13), normal(rng, 7, 13, scale=0.3), normal(rng, 7)
    if near:  # logits that all but tie
        weight, bias = weight * 2.0**-12, 1 + 2.0**-7 * np.arange(7.0) // 2
    d_w = normal(rng, tokens, active)
    against = "bfloat16" if policy == "bfloat16" else "float64"
    _, indices, shares = twin.router(*(as_tensor(a, against) for a in (x, weight, bias)), active)
    found = gradients.router(
        d_w, x, weight, indices.numpy(), shares.double().numpy(), policy=policy
    )
    ours = {"x": found.d_x, "weight": found.d_weight, "bias": found.d_bias}
    both(
        ours,  # type: ignore[arg-type]
        policy,
        lambda x, weight, bias: twin.router(x, weight, bias, active)[2],
        d_w,
        x=x,
        weight=weight,
        bias=bias,
        size=float(np.linalg.norm(d_w) * np.linalg.norm(x)),
    )


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=10)
@given(
    seed=SEEDS,
    size=st.sampled_from([0.5, 6.0, 60.0]),
    alpha=st.sampled_from([1.702, 1.0]),
    limit=st.sampled_from([7.0, 3.0]),
)
def test_swiglu(policy: str, seed: int, size: float, alpha: float, limit: float) -> None:
    rng = np.random.default_rng(seed)
    x, d_y = normal(rng, 5, 34, scale=size), normal(rng, 5, 17)
    x.flat[::7] = limit * np.sign(x.flat[::7])  # at the clamps themselves
    ours = {"x": gradients.swiglu(d_y, x, alpha, limit, policy=policy)}
    both(ours, policy, lambda x: twin.swiglu(x, alpha, limit), d_y, x=x)


def test_at_and_around_the_clamps() -> None:
    """The gradient passes at the bound and stops one step of float64 beyond; see the docstring."""
    seven = np.array([7.0, -7.0])
    inside, beyond = np.nextafter(seven, 0), np.nextafter(seven, 2 * seven)
    for values, passes in ((inside, (True, True)), (seven, (True, True)), (beyond, (False, False))):
        ups = np.stack([np.ones(2), values], -1).ravel()
        assert ((gradients.swiglu(np.ones(2), ups, policy="float64")[1::2] != 0) == passes).all()
        gates = np.array([values[0], 1.0, values[1], 1.0])  # the gate has no bound below
        found = gradients.swiglu(np.ones(2), gates, policy="float64")[::2]
        assert ((found != 0) == (passes[0], True)).all()


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=10)
@given(
    seed=SEEDS, tokens=st.integers(1, 9), active=st.integers(1, 4), clamp=st.sampled_from([1, 6])
)
def test_experts(policy: str, seed: int, tokens: int, active: int, clamp: int) -> None:
    rng = np.random.default_rng(seed)
    experts, width, inner = 6, 13, 9
    indices = np.argsort(rng.random((tokens, experts)), -1)[:, :active]
    shares = on_grid(rng.dirichlet(np.ones(active), tokens))
    inputs = {
        "x": normal(rng, tokens, width),
        "weights": shares,
        "mlp1_weight": normal(rng, experts, 2 * inner, width, scale=clamp * width**-0.5),
        "mlp1_bias": normal(rng, experts, 2 * inner),
        "mlp2_weight": normal(rng, experts, width, inner, scale=inner**-0.5),
        "mlp2_bias": normal(rng, experts, width),
    }
    d_y = normal(rng, tokens, width)
    found = gradients.experts(d_y, indices=indices, policy=policy, **inputs)
    frozen = gradients.experts(
        d_y, indices=indices, policy=policy, weight_gradients=False, **inputs
    )
    assert np.array_equal(frozen.d_x, found.d_x)
    assert frozen[2:] == (None,) * 4
    ours = {name: getattr(found, "d_" + name) for name in inputs}
    scale = {name: 3.0 * np.linalg.norm(d_y) * tokens**0.5 for name in inputs}
    against = "bfloat16" if policy == "bfloat16" else "float64"
    theirs = layer_gradients(Ops().experts, d_y, against, indices=indices, **inputs)
    for name in inputs:
        agree({name: ours[name]}, theirs, policy, float(scale[name]))
    unchosen = np.setdiff1d(np.arange(experts), indices)
    for name in list(inputs)[2:]:
        assert not ours[name][unchosen].any()


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=10)
@given(seed=SEEDS, tokens=st.integers(1, 9), vocabulary=st.integers(2, 40))
def test_embedding_and_cross_entropy(policy: str, seed: int, tokens: int, vocabulary: int) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, vocabulary, tokens)
    d_x = normal(rng, tokens, 11)
    ours = {"weight": gradients.embedding(d_x, ids, vocabulary, policy=policy)}
    expected = np.zeros((vocabulary, 11))
    for t, token in enumerate(ids):
        expected[token] += d_x[t]
    expected = on_grid(expected) if policy == "bfloat16" else expected
    agree(ours, {"weight": expected}, policy, float(np.linalg.norm(d_x)))

    logits = normal(rng, tokens, vocabulary, scale=3.0)
    mask = rng.random(tokens) < 0.6
    mask[rng.integers(tokens)] = True
    loss, d_logits = gradients.cross_entropy(logits, ids, mask, policy=policy)
    wanted = torch.as_tensor(np.where(mask, ids, -100))
    cross_entropy = torch.nn.functional.cross_entropy
    both(
        {"logits": d_logits},
        policy,
        lambda logits: cross_entropy(twin.wide(logits), wanted),
        np.array(1.0),
        logits=logits,
    )
    assert abs(loss - float(cross_entropy(torch.from_numpy(logits), wanted))) <= 1e-6 * (1 + loss)
    parts = [
        gradients.cross_entropy(
            logits[at], ids[at], mask[at], count=int(mask.sum()), policy="float64"
        )
        for at in (slice(0, tokens // 2), slice(tokens // 2, None))
    ]
    whole = gradients.cross_entropy(logits, ids, mask, policy="float64")
    assert np.isclose(sum(part[0] for part in parts), whole[0], rtol=1e-14)
    assert np.allclose(np.concatenate([part[1] for part in parts]), whole[1], rtol=1e-14)


def test_straight_through_passes_what_encode_does_not_clip() -> None:
    rng = np.random.default_rng(0)
    x, d_w = rng.normal(size=(3, 64)), rng.normal(size=(3, 64))
    assert np.array_equal(gradients.mxfp4.straight_through(d_w, x), d_w)
    for rule in ("floor", "ceil", "even", "fit"):
        clipped = gradients.mxfp4.straight_through(d_w, x, rule=rule, clip=True)
        assert ((clipped == d_w) | (clipped == 0)).all()
        stopped = clipped == 0
        if rule in ("ceil", "fit"):
            assert not stopped.any()
        values = mxfp4_values(*encode(x, rule=rule))
        short = np.abs(x) - np.abs(values)
        assert (short[stopped] > 0).all()  # it became smaller,
        block = np.abs(values).reshape(3, 2, 32).max(-1).repeat(32, -1)
        assert (np.abs(values) == block)[stopped].all()  # to the largest of its block
