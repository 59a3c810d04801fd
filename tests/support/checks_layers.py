"""Assertions on single layers, as functions of the layer that is being tested.

The tests call them with the package's layers. test_mutations.py calls the same functions with
deliberately wrong layers and expects them to fail: so the suite shows that it would notice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from gptoss_ref.numerics import get_policy
from gptoss_ref.weights import MXFP4
from tests.support import torch_twin
from tests.support.agreement import (
    NUMPY,
    Array,
    Layer,
    as_array,
    as_tensor,
    assert_agrees,
    assert_rounded_once,
    cancellation,
)
from tests.support.strategies import mxfp4_values, normal, on_grid, stored


def check_embedding(layer: Layer, seed: int, policy: str, n_tokens: int = 11) -> None:
    """Rows of the table, exactly, from every kind of storage."""
    rng = np.random.default_rng(seed)
    table = normal(rng, 23, 7)
    tokens = rng.integers(0, 23, n_tokens)
    for storage in ("bfloat16", "float32", "float64"):
        ours = layer(tokens, stored(table, storage), policy=get_policy(policy))
        assert ours.dtype == NUMPY[policy]
        assert np.array_equal(ours, table[tokens])


def check_rmsnorm(
    layer: Layer, seed: int, policy: str, n_tokens: int = 5, d_model: int = 48, size: float = 1.0
) -> None:
    """RMSNorm against the twin, for inputs of any size (tiny ones meet eps)."""
    rng = np.random.default_rng(seed)
    x = normal(rng, n_tokens, d_model, scale=size)
    scale = on_grid(rng.uniform(-2, 2, d_model))
    eps = float(rng.choice([1e-5, 1e-2]))
    for storage in ("bfloat16", "float32"):
        weight = stored(scale, storage)
        ours = layer(x.astype(NUMPY[policy]), weight, eps, policy=get_policy(policy))
        assert_agrees(
            ours,
            lambda p: torch_twin.rmsnorm(
                as_tensor(x, p), as_tensor(scale, "float32" if p == "bfloat16" else p), eps
            ),
            policy,
        )


def check_linear(
    layer: Layer,
    seed: int,
    policy: str,
    lead: tuple[int, ...] = (5,),
    inputs: int = 29,
    outputs: int = 43,
    bias: bool = True,
) -> None:
    """A matrix product with and without bias, from every kind of storage, MXFP4 included."""
    rng = np.random.default_rng(seed)
    x = normal(rng, *lead, inputs)
    b = normal(rng, outputs) if bias else None
    weight = normal(rng, outputs, inputs, scale=inputs**-0.5)
    cases: list[tuple[Any, Array]] = [
        (stored(weight, s), weight) for s in ("bfloat16", "float32", "float64")
    ]
    if inputs % 32 == 0:
        blocks = rng.integers(0, 256, (outputs, inputs // 32, 16), np.uint8)
        scales = rng.integers(120, 130, (outputs, inputs // 32)).astype(np.uint8)
        cases.append((MXFP4(blocks, scales), mxfp4_values(blocks, scales)))
    for weights, values in cases:
        ours = layer(
            x.astype(NUMPY[policy]),
            weights,
            None if b is None else stored(b, "bfloat16"),
            policy=get_policy(policy),
        )
        assert_agrees(
            ours,
            lambda p, values=values: torch_twin.linear(
                as_tensor(x, p), as_tensor(values, p), None if b is None else as_tensor(b, p)
            ),
            policy,
            floor=cancellation(x, values, b),
        )


def check_router(
    layer: Layer,
    seed: int,
    policy: str,
    n_tokens: int = 13,
    n_experts: int = 11,
    n_chosen: int = 4,
    d_model: int = 31,
    spread: float = 1.0,
) -> None:
    """Logits by the twin; the choice and its weights exactly as those logits demand.

    Where the twin chooses otherwise, its own logits of the swapped experts must be within rounding
    of each other. ``spread`` 0 gives every expert the same logits: only ties.
    """
    rng = np.random.default_rng(seed)
    x = normal(rng, n_tokens, d_model)
    common = normal(rng, 1, d_model)
    weight = on_grid(common + spread * normal(rng, n_experts, d_model))
    bias = on_grid(0.5 + spread * rng.normal(0, 1, n_experts))
    dtype = NUMPY[policy]
    out = layer(
        x.astype(dtype),
        stored(weight, "bfloat16"),
        stored(bias, "bfloat16"),
        n_chosen,
        policy=get_policy(policy),
    )

    def twin(p: str) -> tuple[torch.Tensor, ...]:
        tensors = (as_tensor(a, p) for a in (x, weight, bias))
        return torch_twin.router(*tensors, n_chosen)

    floor = cancellation(x, weight, bias)
    assert_agrees(out.logits, lambda p: twin(p)[0], policy, floor=floor)
    assert out.indices.dtype == np.int64
    by_size = np.argsort(-out.logits, axis=-1, kind="stable")[:, :n_chosen]
    assert np.array_equal(out.indices, by_size), "not the largest logits, lower index first"
    chosen = np.take_along_axis(out.logits, by_size, -1)
    shares = as_array(torch.softmax(as_tensor(chosen), -1))
    if policy == "bfloat16":  # few values, often equal and near a tie: no room for strays
        assert_rounded_once(out.weights, shares)
    else:
        assert_agrees(out.weights, lambda p: as_tensor(shares), policy)

    logits, indices, _ = (as_array(t) for t in twin(policy))
    flipped = (out.indices != indices).any(-1)
    theirs = np.take_along_axis(logits, indices, -1)[flipped]
    swapped = np.take_along_axis(logits, out.indices, -1)[flipped]
    step = {"float64": 1e-13, "float32": 1e-4, "bfloat16": 2.0**-5}[policy]
    assert np.all(np.abs(theirs - swapped) <= step * np.abs(logits).max()), "a flip with a margin"


def check_swiglu(
    layer: Layer,
    seed: int,
    policy: str,
    lead: tuple[int, ...] = (4, 3),
    d_ff: int = 19,
    size: float = 6.0,
    alpha: float = 1.702,
    limit: float = 7.0,
) -> None:
    """The gated unit; with ``size`` 6 about a quarter of the values lie beyond ±7."""
    rng = np.random.default_rng(seed)
    x = normal(rng, *lead, 2 * d_ff, scale=size)
    ours = layer(x.astype(NUMPY[policy]), alpha, limit, policy=get_policy(policy))
    assert_agrees(ours, lambda p: torch_twin.swiglu(as_tensor(x, p), alpha, limit), policy)


def check_experts(
    layer: Layer,
    seed: int,
    policy: str,
    n_tokens: int = 7,
    n_experts: int = 6,
    n_chosen: int = 3,
    d_model: int = 32,
    d_ff: int = 64,
    mxfp4: bool = False,
    clamp: float = 3.0,
    alpha: float = 1.702,
    limit: float = 7.0,
) -> None:
    """The weighted sum of the chosen experts, and the taps on the way."""
    rng = np.random.default_rng(seed)
    x = normal(rng, n_tokens, d_model)
    order = rng.permuted(np.tile(np.arange(n_experts), (n_tokens, 1)), axis=1)
    indices = order[:, :n_chosen]
    shares = on_grid(rng.dirichlet(np.ones(n_chosen), n_tokens))
    matrices: dict[str, tuple[Any, Array]] = {}
    for name, rows, inputs in (("mlp1", 2 * d_ff, d_model), ("mlp2", d_model, d_ff)):
        if mxfp4:
            blocks = rng.integers(0, 256, (n_experts, rows, inputs // 32, 16), np.uint8)
            scales = rng.integers(122, 126, (n_experts, rows, inputs // 32)).astype(np.uint8)
            matrices[name] = MXFP4(blocks, scales), mxfp4_values(blocks, scales)
        else:
            weight = normal(rng, n_experts, rows, inputs, scale=clamp * inputs**-0.5)
            matrices[name] = stored(weight, "bfloat16"), weight
    b1, b2 = normal(rng, n_experts, 2 * d_ff, scale=clamp), normal(rng, n_experts, d_model)
    dtype = NUMPY[policy]
    taps: dict[str, Array] = {}
    ours = layer(
        x.astype(dtype),
        indices,
        shares.astype(dtype),
        matrices["mlp1"][0],
        stored(b1, "bfloat16"),
        matrices["mlp2"][0],
        stored(b2, "bfloat16"),
        alpha=alpha,
        limit=limit,
        policy=get_policy(policy),
        tap=lambda name, value: taps.__setitem__(name, value.copy()),
    )

    def twin(p: str) -> dict[str, torch.Tensor]:
        out: dict[str, torch.Tensor] = {}
        out["out"] = torch_twin.experts(
            as_tensor(x, p),
            as_tensor(indices),
            as_tensor(shares, p),
            as_tensor(matrices["mlp1"][1], p),
            as_tensor(b1, p),
            as_tensor(matrices["mlp2"][1], p),
            as_tensor(b2, p),
            alpha=alpha,
            limit=limit,
            tap=out.__setitem__,
        )
        return out

    runs = {p: twin(p) for p in ("float64", "bfloat16")}
    assert_agrees(ours, lambda p: runs[p]["out"], policy)
    assert set(taps) == {"gate_up", "swiglu", "expert_out"}
    for name, value in taps.items():
        assert_agrees(value, lambda p, name=name: runs[p][name], policy)
