"""Which functions compute gradients: a record of them for each backend.

``NUMPY`` is :mod:`gptoss_ref.gradients`, the specification, under every policy. For the backend
``numba`` it is :mod:`gptoss_ref.kernels.gradients`, under the float32 policy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from gptoss_ref import gradients
from gptoss_ref.backend import Backend
from gptoss_ref.numerics import Array, Policy, get_policy
from gptoss_ref.weights import (
    AttentionGradients,
    ExpertGradients,
    LinearGradients,
    RMSNormGradients,
    RouterGradients,
)


@dataclass(frozen=True)
class GradientRules:
    """Gradients of the layers, with the signatures of :mod:`gptoss_ref.gradients`.

    Attributes:
        attention: of all rows of a batch, see :func:`attention_of_rows`.
        experts: as there; with ``kept`` it computes less again.
        kept_experts: the experts' answer (T, D), and what ``experts`` wants as ``kept``: an array,
            or None if nothing is kept. Takes ``keep``, whether there is room for it, and for the
            rest what the layer takes.
    """

    cross_entropy: Callable[..., tuple[float, Array]]
    linear: Callable[..., LinearGradients]
    projections: Callable[..., tuple[Array, list[tuple[Array | None, Array | None]]]]
    rmsnorm: Callable[..., RMSNormGradients]
    rope: Callable[..., Array]
    attention: Callable[..., AttentionGradients]
    router: Callable[..., RouterGradients]
    experts: Callable[..., ExpertGradients]
    embedding: Callable[..., Array]
    kept_experts: Callable[..., tuple[Array, Array | None]]


def gradient_rules(backend: Backend) -> GradientRules:
    """The rules that go with a backend: compiled with ``numba``, else NumPy."""
    if backend.name == "numba":
        return _numba()
    return GradientRules(
        cross_entropy=gradients.cross_entropy,
        linear=gradients.linear,
        projections=gradients.projections,
        rmsnorm=gradients.rmsnorm,
        rope=gradients.rope,
        attention=attention_of_rows,
        router=gradients.router,
        experts=_experts,
        embedding=gradients.embedding,
        kept_experts=partial(_nothing_kept, backend.experts),
    )


@cache
def _numba() -> GradientRules:
    from gptoss_ref.kernels import gradients as kernels

    return GradientRules(
        cross_entropy=kernels.cross_entropy,
        linear=kernels.linear,
        projections=kernels.projections,
        rmsnorm=kernels.rmsnorm,
        rope=kernels.rope,
        attention=kernels.attention,
        router=kernels.router,
        experts=kernels.experts,
        embedding=kernels.embedding,
        kept_experts=kernels.kept_experts,
    )


def attention_of_rows(
    d_mix: Array,
    q: Array,
    k: Array,
    v: Array,
    sinks: Array,
    q_positions: Array,
    k_positions: Array,
    window: int | None = None,
    *,
    rows: Sequence[slice],
    policy: str | Policy,
) -> AttentionGradients:
    """:func:`gptoss_ref.gradients.attention` for each row of a batch, whose rows lie along T.

    Args:
        d_mix: (T, H*C).
        q: (T, H, C).
        k, v: (T, K, C).
        sinks: (H,).
        q_positions, k_positions: (T,), from 0 in each row.
        rows: where each row lies along T.

    Returns:
        ``d_q`` (T, H, C), ``d_k`` (T, K, C), ``d_v`` (T, K, C), ``d_sinks`` (H,).
    """
    policy = get_policy(policy)
    found = [
        gradients.attention(
            d_mix[at], q[at], k[at], v[at], sinks, q_positions[at], k_positions[at], window,
            policy=policy,
        )
        for at in rows
    ]  # fmt: skip
    d_q, d_k, d_v = (np.concatenate([part[i] for part in found]) for i in range(3))
    d_sinks = np.sum([part.d_sinks for part in found], axis=0)
    return AttentionGradients(d_q, d_k, d_v, policy.round(d_sinks))


def _experts(*arguments: Any, kept: Array | None, **options: Any) -> ExpertGradients:
    return gradients.experts(*arguments, **options)


def _nothing_kept(
    layer: Callable[..., Array], *arguments: Any, keep: bool, **options: Any
) -> tuple[Array, None]:
    return layer(*arguments, **options), None
