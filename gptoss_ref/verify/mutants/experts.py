"""Bugs inside the experts: layout of gate and up, clamps, constants, biases, and the sum."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from gptoss_ref.config import ModelConfig
from gptoss_ref.numerics import FLOAT64, Array, get_policy, widen
from gptoss_ref.verify.mutants.mutant import (
    Mutant,
    Obstacle,
    Right,
    Variant,
    bug,
    misread,
    replacing,
    rewriting,
)
from gptoss_ref.verify.replay.ops import ModelOps, OpContext
from gptoss_ref.weights import Matrix, ModelWeights

NO_LIMIT = 1e30
"""A clamp that clamps nothing."""


def _interleaved(halves: Array) -> Array:
    """(…, 2F) as gates, then ups, put in the order that swiglu reads."""
    gates, ups = np.split(halves, 2, axis=-1)
    return np.stack([gates, ups], axis=-1).reshape(halves.shape)


@bug(
    "gate-up-concatenated",
    op="swiglu",
    stage="mlp.swiglu",
    consequence="Gates and ups are paired wrongly: the output is noise.",
    reports=("vllm#27024", "sglang#27201"),
    obstacle=lambda config, weights: (
        "F is 1: both layouts are the same" if config.intermediate_size == 1 else None
    ),
)
def gate_up_concatenated(right: Right, at: OpContext, x: Array) -> Array:
    """The first half is read as gates and the second half as ups, although they alternate."""
    activated: Array = right(at, _interleaved(x))
    return activated


@bug(
    "gate-up-swapped",
    op="swiglu",
    stage="mlp.swiglu",
    consequence="The sigmoid is taken of the wrong one of the two.",
)
def gate_up_swapped(right: Right, at: OpContext, x: Array) -> Array:
    """Even entries are read as ups and odd ones as gates."""
    pairs = x.reshape(*x.shape[:-1], -1, 2)[..., ::-1]  # (…, F, 2)
    activated: Array = right(at, pairs.reshape(x.shape))
    return activated


@bug(
    "clamp-missing",
    op="swiglu",
    stage="mlp.swiglu",
    consequence="Values beyond ±7 pass: rare, but large where they occur.",
    reports=("transformers#40197", "sglang#39939"),
    note="Shows only if a gate exceeds the limit or an up is outside ±limit.",
)
def clamp_missing(right: Right, at: OpContext, x: Array) -> Array:
    """Neither gate nor up is clamped."""
    activated: Array = right(misread(at, swiglu_limit=NO_LIMIT), x)
    return activated


@bug(
    "clamp-gate-symmetric",
    op="swiglu",
    stage="mlp.swiglu",
    consequence="Strongly negative gates give up to 4e-4 instead of nearly zero.",
    note="Shows only if a gate is below −limit. A public report claims that this is right.",
)
def clamp_gate_symmetric(right: Right, at: OpContext, x: Array) -> Array:
    """The gate is clamped from below as well."""
    limit = at.config.swiglu_limit
    activated: Array = right(at, np.clip(x, -limit, limit))
    return activated


@bug(
    "clamp-after",
    op="swiglu",
    stage="mlp.swiglu",
    consequence="Products, which may reach 56, are clamped at 7, and large inputs are not.",
    note="Shows only if an input or the result is beyond the limit.",
)
def clamp_after(right: Right, at: OpContext, x: Array) -> Array:
    """The result is clamped instead of the inputs."""
    limit = at.config.swiglu_limit
    activated: Array = right(misread(at, swiglu_limit=NO_LIMIT), x)
    return np.clip(activated, -limit, limit)


@bug(
    "alpha-missing",
    op="swiglu",
    stage="mlp.swiglu",
    consequence="The gate opens more gently: every activation is off by some per cent.",
    obstacle=lambda config, weights: "swiglu_alpha is 1" if config.swiglu_alpha == 1 else None,
)
def alpha_missing(right: Right, at: OpContext, x: Array) -> Array:
    """Plain SiLU: the sigmoid's factor of 1.702 is left out."""
    activated: Array = right(misread(at, swiglu_alpha=1.0), x)
    return activated


@bug(
    "up-plus-one-missing",
    op="swiglu",
    stage="mlp.swiglu",
    consequence="The gate's own share of the activation is lost.",
)
def up_plus_one_missing(right: Right, at: OpContext, x: Array) -> Array:
    """The gated value is multiplied by up instead of up + 1."""
    limit = at.config.swiglu_limit
    less = x.astype(at.policy.dtype)
    less[..., 0::2] = np.minimum(less[..., 0::2], limit)
    less[..., 1::2] = np.clip(less[..., 1::2], -limit, limit) - 1
    activated: Array = right(misread(at, swiglu_limit=limit + 1), less)  # clamps nothing more
    return activated


def _no_bias(name: str) -> Obstacle:
    """Obstacle: all biases of that name are zero."""

    def obstacle(config: ModelConfig, weights: ModelWeights) -> str | None:
        biases = (getattr(block.mlp, name) for block in weights.blocks)
        if any(np.any(widen(bias, FLOAT64.dtype)) for bias in biases):
            return None
        return f"every {name} is zero"

    return obstacle


@bug(
    "gate-up-bias-missing",
    op="expert_linear",
    stage="mlp.gate_up",
    consequence="Gates and ups are off by a constant per expert.",
    obstacle=_no_bias("mlp1_bias"),
)
def gate_up_bias_missing(right: Right, *arguments: Any) -> Array:
    """The first matrix of the experts has no bias."""
    return _without_bias("mlp.gate_up")(right, *arguments)


def _without_bias(tap: str) -> Callable[..., Array]:
    """Products of the experts that lack their bias at that tap point."""

    def project(right: Right, at: OpContext, x: Array, weight: Array, bias: Matrix) -> Array:
        y: Array = right(at, x, weight, np.zeros_like(bias) if at.tap == tap else bias)
        return y

    return project


@bug(
    "down-bias-missing",
    op="expert_linear",
    stage="mlp.expert_out",
    consequence="Every answer lacks a constant per expert.",
    obstacle=_no_bias("mlp2_bias"),
)
def down_bias_missing(right: Right, *arguments: Any) -> Array:
    """The second matrix of the experts has no bias."""
    return _without_bias("mlp.expert_out")(right, *arguments)


@bug(
    "down-bias-unweighted",
    op="combine",
    stage="mlp.out",
    consequence="About A times as much bias is added as should be, in every block.",
    reports=("NVIDIA-NeMo/Automodel#2591",),
    note="Modelled with the right answers of the experts; only the sum is wrong.",
    obstacle=_no_bias("mlp2_bias"),
)
def down_bias_unweighted(
    right: Right, at: OpContext, answers: Array, weights: Array, indices: Array, bias: Matrix
) -> Array:
    """The experts' weights multiply only the matrix product; the biases are added unweighted."""
    exact = dataclasses.replace(at, policy=get_policy(at.policy.dtype.name))  # rounded at the end
    biases = widen(bias, at.policy.dtype)[indices]  # (T, A, D)
    excess = np.einsum("ta,tad->td", 1 - weights, biases)
    return at.policy.round(right(exact, answers, weights, indices, bias) + excess)


@bug(
    "experts-summed-twice",
    op="combine",
    stage="mlp.out",
    consequence="The experts move the residual stream twice as far as they should.",
    reports=("sglang#37187",),
    note="Two reductions over two devices give the factor 2; more devices give a larger one.",
    variants=lambda config, tokens: (
        Variant(f"{times} times", replacing(combine=_summed(times))) for times in (4, 8, 16)
    ),
)
def experts_summed_twice(
    right: Right, at: OpContext, answers: Array, weights: Array, indices: Array, bias: Matrix
) -> Array:
    """The weighted sum of the experts' answers is summed once more, over two devices."""
    return _summed(2)(right, at, answers, weights, indices, bias)


def _summed(times: int) -> Callable[..., Array]:
    """A sum of the experts that is too large by a factor."""

    def combine(right: Right, at: OpContext, *arguments: Array) -> Array:
        total: Array = right(at, *arguments)
        return at.policy.round(times * total)

    return combine


@rewriting(
    "gate-up-deinterleaved",
    stage="mlp.gate_up",
    touches="mlp.gate_up",
    consequence="The expert's 2F values are listed as gates, then ups.",
)
def gate_up_deinterleaved(ops: ModelOps) -> ModelOps:
    """Gate rows and up rows are separated at loading, and read as two halves."""

    def apart(right: Right, at: OpContext, x: Array, weight: Array, bias: Matrix) -> Array:
        y: Array = right(at, x, weight, bias)
        if at.tap != "mlp.gate_up":
            return y
        return np.concatenate([y[:, 0::2], y[:, 1::2]], axis=-1)

    return gate_up_concatenated.apply(replacing(expert_linear=apart)(ops))


EXPERTS: tuple[Mutant, ...] = (
    gate_up_concatenated,
    gate_up_swapped,
    clamp_missing,
    clamp_gate_symmetric,
    clamp_after,
    alpha_missing,
    up_plus_one_missing,
    gate_up_bias_missing,
    down_bias_missing,
    down_bias_unweighted,
    experts_summed_twice,
)
REWRITINGS: tuple[Mutant, ...] = (gate_up_deinterleaved,)
