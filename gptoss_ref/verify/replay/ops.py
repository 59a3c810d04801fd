"""The operations of the model as replaceable functions.

``ModelOps()`` is the specification, computed by :mod:`gptoss_ref.layers`. A wrong implementation is
a copy with another function::

    def swiglu(at, x):                       # plain SiLU: alpha is forgotten
        return layers.swiglu(x, 1.0, at.config.swiglu_limit, policy=at.policy)

    wrong = dataclasses.replace(ModelOps(), swiglu=swiglu)

The first argument of every function says *where* it is used (:class:`OpContext`): the
configuration, the policy that rounds, the layer and the tap point. A replacement that calls the
operation it replaces can be combined with other replacements. Shapes use the axis letters of
:mod:`gptoss_ref.layers`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gptoss_ref import layers
from gptoss_ref.config import ModelConfig
from gptoss_ref.layers.attention import attention_mix as spec_attention_mix
from gptoss_ref.layers.experts import expert_linear as spec_expert_linear
from gptoss_ref.layers.linear import dense
from gptoss_ref.layers.router import shares, top_k
from gptoss_ref.numerics import Array, Policy
from gptoss_ref.verify.replay.yarn import RIGHT, Parts, frequencies
from gptoss_ref.weights import BlockWeights, ExpertMatrix, Matrix, ModelWeights


@dataclass(frozen=True)
class OpContext:
    """Where an operation is applied.

    Attributes:
        config: dimensions and constants.
        policy: where to round.
        tap: the tap point that is being computed, without its block, e.g. ``"attn.q"``.
        layer: number of the block; None outside the blocks.
        expert: number of the expert, in the operations that are applied to one expert at a time.
        length: number of tokens of the whole prompt, if only its beginning is computed.
    """

    config: ModelConfig
    policy: Policy
    tap: str
    layer: int | None = None
    expert: int | None = None
    length: int | None = None


def end_weights(at: OpContext, weights: ModelWeights) -> ModelWeights:
    """Return the weights outside the blocks, as they were loaded; ``blocks`` is not used here."""
    return weights


def block_weights(at: OpContext, weights: BlockWeights) -> BlockWeights:
    """One block's weights as they were loaded."""
    return weights


def expert_matrix(at: OpContext, matrix: ExpertMatrix) -> Array:
    """Values (N, M) of one expert's matrix as stored: mlp1 at ``mlp.gate_up``, else mlp2."""
    return dense(matrix, at.policy)


def embedding(at: OpContext, tokens: Array, weight: Matrix) -> Array:
    """(T,) -> (T, D)."""
    return layers.embedding(tokens, weight, policy=at.policy)


def rmsnorm(at: OpContext, x: Array, scale: Matrix) -> Array:
    """(T, D) -> (T, D), at ``attn.norm``, ``mlp.norm`` and ``norm``."""
    return layers.rmsnorm(x, scale, at.config.rms_norm_eps, policy=at.policy)


def linear(at: OpContext, x: Array, weight: Matrix, bias: Matrix | None) -> Array:
    """(T, M) -> (T, N), at ``attn.q``, ``.k``, ``.v``, ``.out``, the router and the logits.

    The last (``logits``) has no bias.
    """
    return layers.linear(x, weight, bias, policy=at.policy)


def yarn(at: OpContext, parts: Parts = RIGHT) -> tuple[Array, float]:
    """Return the angular frequencies (C/2,) and the concentration.

    A wrong part is passed on to the replaced operation, so that several parts can be wrong
    together.
    """
    return frequencies(at.config, parts)


def rope_tables(
    at: OpContext, positions: Array, inv_freq: Array, concentration: float
) -> tuple[Array, Array]:
    """Cosines and sines (T, C/2) of the positions (T,), times the concentration."""
    return layers.rope_tables(positions, inv_freq, concentration, policy=at.policy)


def rope(at: OpContext, x: Array, cos: Array, sin: Array) -> Array:
    """Queries (T, H, C) at ``attn.q_rope`` or keys (T, K, C) at ``attn.k_rope``, rotated."""
    return layers.rope(x, cos, sin, policy=at.policy)


def window(at: OpContext) -> int | None:
    """Number of keys that a query of this layer sees, including its own; None: all before it."""
    assert at.layer is not None
    return at.config.window(at.layer)


def attention_weights(
    at: OpContext,
    q: Array,
    k: Array,
    sinks: Matrix,
    q_positions: Array,
    k_positions: Array,
    window: int | None,
) -> Array:
    """Queries (t, H, C), keys (S, K, C), sinks (H,) -> (H, t, S): softmax, sink column dropped.

    May be called for some of the queries at a time.
    """
    return layers.attention_weights(q, k, sinks, q_positions, k_positions, window, policy=at.policy)


def attention_mix(
    at: OpContext,
    weights: Array,
    v: Array,
    q_positions: Array,
    k_positions: Array,
    window: int | None,
) -> Array:
    """Weights (H, t, S), values (S, K, C) -> (t, H*C)."""
    return spec_attention_mix(weights, v, policy=at.policy)


def choose(at: OpContext, logits: Array) -> Array:
    """Router logits (T, E) -> indices of the chosen experts (T, A), largest logit first."""
    return top_k(logits, at.config.experts_per_token)


def expert_weights(at: OpContext, logits: Array, indices: Array) -> Array:
    """Router logits (T, E), chosen experts (T, A) -> their weights (T, A)."""
    return shares(logits, indices, policy=at.policy)


def expert_linear(at: OpContext, x: Array, weight: ExpertMatrix, bias: Matrix) -> Array:
    """One expert's matrix (N, M), as :func:`expert_matrix` gives it, and bias (N,).

    (n, M) -> (n, N), at ``mlp.gate_up`` (mlp1) and ``mlp.expert_out`` (mlp2).
    """
    return spec_expert_linear(x, weight, bias, at.policy)


def swiglu(at: OpContext, x: Array) -> Array:
    """(…, 2F) -> (…, F)."""
    return layers.swiglu(x, at.config.swiglu_alpha, at.config.swiglu_limit, policy=at.policy)


def combine(at: OpContext, answers: Array, weights: Array, indices: Array, bias: Matrix) -> Array:
    """Sum of the experts' outputs (T, A, D), with the bias of mlp2, by weights (T, A): (T, D).

    Args:
        indices: (T, A), the experts of these outputs; they are summed by ascending expert, as in
            the layer.
        bias: (E, D), of mlp2.
    """
    policy = at.policy
    out = np.zeros((answers.shape[0], answers.shape[2]), policy.dtype)
    order = np.argsort(indices, axis=1)  # (T, A)
    rows = np.arange(len(out))
    for place in order.T:  # (T,)
        out += weights[rows, place, None] * answers[rows, place]
    return policy.round(out)


def residual(at: OpContext, x: Array, out: Array) -> Array:
    """The residual stream (T, D) after ``out`` (T, D), at ``attn.residual``, ``mlp.residual``."""
    return at.policy.round(x + out)


@dataclass(frozen=True)
class ModelOps:
    """Functions that together are the model; the defaults are this module's, the specification."""

    end_weights: Callable[..., ModelWeights] = end_weights
    block_weights: Callable[..., BlockWeights] = block_weights
    expert_matrix: Callable[..., Array] = expert_matrix
    embedding: Callable[..., Array] = embedding
    rmsnorm: Callable[..., Array] = rmsnorm
    linear: Callable[..., Array] = linear
    yarn: Callable[..., tuple[Array, float]] = yarn
    rope_tables: Callable[..., tuple[Array, Array]] = rope_tables
    rope: Callable[..., Array] = rope
    window: Callable[..., int | None] = window
    attention_weights: Callable[..., Array] = attention_weights
    attention_mix: Callable[..., Array] = attention_mix
    choose: Callable[..., Array] = choose
    expert_weights: Callable[..., Array] = expert_weights
    expert_linear: Callable[..., Array] = expert_linear
    swiglu: Callable[..., Array] = swiglu
    combine: Callable[..., Array] = combine
    residual: Callable[..., Array] = residual


SPECIFICATION = ModelOps()
