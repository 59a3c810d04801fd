"""The gradients of the suite's operations: ``swiglu_backward`` and so on.

Each takes the gradient of its operation's output, then the operation's inputs, and returns the
gradients of the inputs. :mod:`gptoss_ref.gradients` computes them in float64; mutants of the
forward pass do not apply.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from gptoss_ref import gradients
from gptoss_ref.layers import rope_tables, yarn
from gptoss_ref.layers.router import shares
from gptoss_ref.numerics import FLOAT64
from gptoss_ref.verify.replay.ops import ModelOps
from gptoss_ref.verify.vectors.operation import Operation, Values


def _wide(v: SimpleNamespace) -> SimpleNamespace:
    """The inputs with floats in float64; integers unchanged."""
    wide = {
        name: value.astype(np.float64)
        if isinstance(value, np.ndarray) and value.dtype.kind == "f"
        else value
        for name, value in vars(v).items()
    }
    return SimpleNamespace(**wide)


def _embedding(_: ModelOps, v: SimpleNamespace) -> Values:
    found = gradients.embedding(v.d_x, v.tokens, v.vocabulary, policy=FLOAT64)
    return {"d_weight": found}


def _rmsnorm(_: ModelOps, v: SimpleNamespace) -> Values:
    v = _wide(v)
    return gradients.rmsnorm(v.d_y, v.x, v.scale, v.eps, policy=FLOAT64)._asdict()


def _linear(_: ModelOps, v: SimpleNamespace) -> Values:
    v = _wide(v)
    found = gradients.linear(v.d_y, v.x, v.weight, policy=FLOAT64)
    return {name: d for name, d in found._asdict().items() if d is not None}


def _rope(_: ModelOps, v: SimpleNamespace) -> Values:
    rotary = yarn(v.head_dim, v.theta, v.factor, v.original_length, v.beta_fast, v.beta_slow)
    tables = rope_tables(v.positions.astype(np.int64), *rotary, policy=FLOAT64)
    return {"d_x": gradients.rope(v.d_y.astype(np.float64), *tables, policy=FLOAT64)}


def _attention(_: ModelOps, v: SimpleNamespace) -> Values:
    v = _wide(v)
    where = (v.q_positions.astype(np.int64), v.k_positions.astype(np.int64), v.window)
    arrays = (v.d_mix, v.q, v.k, v.v, v.sinks)
    return gradients.attention(*arrays, *where, policy=FLOAT64)._asdict()


def _router(_: ModelOps, v: SimpleNamespace) -> Values:
    v = _wide(v)
    indices = v.indices.astype(np.int64)
    weights = shares(v.logits, indices, policy=FLOAT64)
    x, matrix = np.zeros((len(indices), 1)), np.zeros((v.logits.shape[1], 1))
    found = gradients.router(v.d_weights, x, matrix, indices, weights, policy=FLOAT64)
    return {"d_logits": found.d_logits}


def _swiglu(_: ModelOps, v: SimpleNamespace) -> Values:
    v = _wide(v)
    return {"d_x": gradients.swiglu(v.d_y, v.x, v.alpha, v.limit, policy=FLOAT64)}


def _experts(_: ModelOps, v: SimpleNamespace) -> Values:
    v = _wide(v)
    found = gradients.experts(
        *(v.d_y, v.x, v.indices, v.weights),
        *(v.mlp1_weight, v.mlp1_bias, v.mlp2_weight, v.mlp2_bias),
        alpha=v.alpha,
        limit=v.limit,
        policy=FLOAT64,
    )
    return {name: d for name, d in found._asdict().items() if d is not None}


def _cross_entropy(_: ModelOps, v: SimpleNamespace) -> Values:
    mask = v.mask.astype(bool)
    loss, d_logits = gradients.cross_entropy(
        v.logits.astype(np.float64), v.targets, mask, policy=FLOAT64
    )
    return {"loss": np.array([loss]), "d_logits": d_logits}


_FLOAT = {"float32": 2e-5, "bfloat16": 5e-2}
_ROTARY = {
    "head_dim": "C",
    "theta": "base of the frequencies",
    "factor": "YaRN's factor; 1: plain RoPE",
    "original_length": "length of the original context",
    "beta_fast": "pairs with more turns keep their frequency",
    "beta_slow": "pairs with fewer turns are slowed by the factor",
}

GRADIENTS: tuple[Operation, ...] = (
    Operation(
        "embedding_backward", "dW_v = Σ_t [token_t = v] dx_t", {"d_x": "T D", "tokens": "T"},
        {"vocabulary": "V"}, {"d_weight": "V D"}, _embedding, _FLOAT,
    ),
    Operation(
        "rmsnorm_backward",
        "u = x / sqrt(mean(x²) + eps); du = dy · scale; "
        "dx = (du − u · mean(u · du)) / sqrt(mean(x²) + eps); dscale = Σ_t dy · u",
        {"d_y": "T D", "x": "T D", "scale": "D"}, {"eps": "under the root"},
        {"d_x": "T D", "d_scale": "D"}, _rmsnorm, _FLOAT,
    ),
    Operation(
        "linear_backward", "dx = Wᵀ dy; dW = Σ_t dy xᵀ; db = Σ_t dy",
        {"d_y": "T N", "x": "T M", "weight": "N M"}, {},
        {"d_x": "T M", "d_weight": "N M", "d_bias": "N"}, _linear, _FLOAT,
    ),
    Operation(
        "rope_backward", "each pair rotated back, times the concentration",
        {"d_y": "T H C", "positions": "T"}, _ROTARY, {"d_x": "T H C"}, _rope, _FLOAT,
    ),
    Operation(
        "attention_backward",
        "dw = dmix · v; dscore = w (dw − Σ w dw); dsink = −Σ_p w_sink Σ w dw; "
        "dq = Σ dscore k / sqrt(C); dk = Σ dscore q / sqrt(C), over the group's heads, too",
        {
            "d_mix": "T H*C", "q": "T H C", "k": "S K C", "v": "S K C", "sinks": "H",
            "q_positions": "T", "k_positions": "S",
        },
        {"window": "visible keys, the query's own included; null: all"},
        {"d_q": "T H C", "d_k": "S K C", "d_v": "S K C", "d_sinks": "H"}, _attention, _FLOAT,
    ),
    Operation(
        "router_backward", "dlogit = w (dw − Σ w dw) for the chosen, 0 for the others",
        {"d_weights": "T A", "logits": "T E", "indices": "T A"}, {}, {"d_logits": "T E"},
        _router, _FLOAT,
    ),
    Operation(
        "swiglu_backward",
        "s = sigmoid(alpha · gate); dup = dy · gate · s; "
        "dgate = dy · (up + 1) · (s + alpha · gate · s · (1 − s)); 0 beyond the clamps",
        {"d_y": "T F", "x": "T 2F"}, {"alpha": "of the sigmoid", "limit": "of the clamps"},
        {"d_x": "T 2F"}, _swiglu, _FLOAT,
    ),
    Operation(
        "experts_backward", "through each token's experts; their matrices as numbers",
        {
            "d_y": "T D", "x": "T D", "indices": "T A", "weights": "T A",
            "mlp1_weight": "E 2F D", "mlp1_bias": "E 2F", "mlp2_weight": "E D F",
            "mlp2_bias": "E D",
        },
        {"alpha": "of SwiGLU", "limit": "of SwiGLU"},
        {
            "d_x": "T D", "d_weights": "T A", "d_mlp1_weight": "E 2F D", "d_mlp1_bias": "E 2F",
            "d_mlp2_weight": "E D F", "d_mlp2_bias": "E D",
        },
        _experts, _FLOAT,
    ),
    Operation(
        "cross_entropy", "−mean log softmax(logits)[target] over the mask, and its gradient",
        {"logits": "T V", "targets": "T", "mask": "T"}, {},
        {"loss": "1", "d_logits": "T V"}, _cross_entropy, _FLOAT,
    ),
)  # fmt: skip
"""The gradients, in the order of their operations."""
