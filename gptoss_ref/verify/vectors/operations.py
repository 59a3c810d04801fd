"""The operations of the suite: their inputs, parameters, outputs and computation.

An operation is computed in float64 from a set of :class:`~gptoss_ref.verify.replay.ops.ModelOps`:
with those of the specification it gives the expected values, with those of a mutant it shows
whether a case catches that bug.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from gptoss_ref.checkpoint import load_checkpoint
from gptoss_ref.config import FULL, SLIDING, ModelConfig
from gptoss_ref.layers import mxfp4
from gptoss_ref.numerics import FLOAT64, Array
from gptoss_ref.sampling import token_probabilities
from gptoss_ref.verify.replay.evaluate import predict
from gptoss_ref.verify.replay.ops import ModelOps, OpContext
from gptoss_ref.verify.vectors.operation import Operation, Values
from gptoss_ref.verify.vectors.operations_gradients import GRADIENTS
from gptoss_ref.weights import MXFP4, AttentionWeights, BlockWeights, MLPWeights, ModelWeights


def small_config(**fields: Any) -> ModelConfig:
    """A configuration for one case; fields that the operation does not use are small."""
    small: dict[str, Any] = {
        "num_hidden_layers": 2,
        "num_experts": 4,
        "experts_per_token": 2,
        "vocab_size": 16,
        "hidden_size": 32,
        "intermediate_size": 32,
        "head_dim": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_scaling_factor": 1.0,
    }
    return ModelConfig(**{**small, **fields})


def _at(tap: str, layer: int | None = None, expert: int | None = None, **fields: Any) -> OpContext:
    return OpContext(small_config(**fields), FLOAT64, tap, layer, expert)


def _embedding(ops: ModelOps, v: SimpleNamespace) -> Values:
    at = _at("embedding", hidden_size=v.weight.shape[1], vocab_size=v.weight.shape[0])
    end = ops.end_weights(
        at, ModelWeights(v.weight, (), np.ones(v.weight.shape[1]), np.zeros(v.weight.shape))
    )
    return {"x": ops.embedding(at, v.tokens, end.embedding)}


def _rmsnorm(ops: ModelOps, v: SimpleNamespace) -> Values:
    at = _at("attn.norm", 0, hidden_size=v.x.shape[1], rms_norm_eps=v.eps)
    return {"y": ops.rmsnorm(at, v.x.astype(np.float64), v.scale)}


def _linear(ops: ModelOps, v: SimpleNamespace) -> Values:
    at = _at("attn.out", 0, hidden_size=v.x.shape[1])
    return {"y": ops.linear(at, v.x.astype(np.float64), v.weight, v.bias)}


def _rotary(v: SimpleNamespace) -> dict[str, Any]:
    return {
        "head_dim": v.head_dim,
        "rope_theta": v.theta,
        "rope_scaling_factor": v.factor,
        "initial_context_length": v.original_length,
        "rope_ntk_beta": v.beta_fast,
        "rope_ntk_alpha": v.beta_slow,
    }


def _yarn(ops: ModelOps, v: SimpleNamespace) -> Values:
    inv_freq, concentration = ops.yarn(_at("attn.q_rope", 1, **_rotary(v)))
    return {"inv_freq": inv_freq, "concentration": np.array([concentration])}


def _rope(ops: ModelOps, v: SimpleNamespace) -> Values:
    heads = v.x.shape[1]
    at = _at("attn.q_rope", 1, num_attention_heads=heads, num_key_value_heads=heads, **_rotary(v))
    inv_freq, concentration = ops.yarn(at)
    cos, sin = ops.rope_tables(at, v.positions.astype(np.int64), inv_freq, concentration)
    return {"y": ops.rope(at, v.x.astype(np.float64), cos, sin)}


def _attention(ops: ModelOps, v: SimpleNamespace) -> Values:
    heads, channels = v.q.shape[1:]
    kv_heads = v.k.shape[1]
    windowed = v.window is not None
    shape = {
        "hidden_size": heads * channels + 1,
        "head_dim": channels,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "sliding_window": v.window or 128,
        "layer_types": (SLIDING, FULL),
    }
    layer = 0 if windowed else 1
    at = _at("attn.weights", layer, **shape)
    weights = _only_sinks(ops, at, v.sinks)
    window = ops.window(at)
    where = (v.q_positions.astype(np.int64), v.k_positions.astype(np.int64), window)
    q, k, values = (np.asarray(x, np.float64) for x in (v.q, v.k, v.v))
    shares = ops.attention_weights(at, q, k, weights, *where)
    return {
        "weights": shares,
        "mix": ops.attention_mix(_at("attn.mix", layer, **shape), shares, values, *where),
    }


def _only_sinks(ops: ModelOps, at: OpContext, sinks: Array) -> Array:
    """The sinks after the operation that loads them."""
    c = at.config
    d, h, k, e, f = c.hidden_size, c.num_attention_heads, c.num_key_value_heads, 1, 1
    hc, kc = h * c.head_dim, k * c.head_dim
    attn = AttentionWeights(
        *(np.ones(d), np.zeros((hc, d)), np.zeros(hc), np.zeros((kc, d)), np.zeros(kc)),
        *(np.zeros((kc, d)), np.zeros(kc), np.asarray(sinks), np.zeros((d, hc)), np.zeros(d)),
    )
    mlp = MLPWeights(
        *(np.ones(d), np.zeros((e, d)), np.zeros(e), np.zeros((e, 2 * f, d))),
        *(np.zeros((e, 2 * f)), np.zeros((e, d, f)), np.zeros((e, d))),
    )
    return ops.block_weights(at, BlockWeights(attn, mlp)).attn.sinks


def _router(ops: ModelOps, v: SimpleNamespace) -> Values:
    shape = {
        "num_experts": len(v.weight),
        "experts_per_token": v.experts_per_token,
        "hidden_size": v.x.shape[1],
    }
    logits = ops.linear(
        _at("mlp.router_logits", 0, **shape), v.x.astype(np.float64), v.weight, v.bias
    )
    indices = ops.choose(_at("mlp.expert_indices", 0, **shape), logits)
    weights = ops.expert_weights(_at("mlp.expert_weights", 0, **shape), logits, indices)
    return {"logits": logits, "indices": indices, "weights": weights}


def _swiglu(ops: ModelOps, v: SimpleNamespace) -> Values:
    at = _at("mlp.swiglu", 0, swiglu_alpha=v.alpha, swiglu_limit=v.limit)
    return {"y": ops.swiglu(at, v.x.astype(np.float64))}


def _experts(ops: ModelOps, v: SimpleNamespace) -> Values:
    count, doubled = v.mlp1_bias.shape
    tokens, active = v.indices.shape
    shape = {
        "num_experts": count,
        "experts_per_token": active,
        "hidden_size": v.x.shape[1],
        "intermediate_size": doubled // 2,
        "swiglu_alpha": v.alpha,
        "swiglu_limit": v.limit,
    }
    stored1 = MXFP4(v.mlp1_blocks, v.mlp1_scales)
    stored2 = MXFP4(v.mlp2_blocks, v.mlp2_scales)
    x = v.x.astype(np.float64)
    answers = np.zeros((tokens, active, x.shape[1]))
    for e in range(count):
        t, a = np.nonzero(v.indices == e)
        if not t.size:
            continue
        at = _at("mlp.gate_up", 0, e, **shape)
        w1 = ops.expert_matrix(at, stored1[e])
        gate_up = ops.expert_linear(at, x[t], w1, v.mlp1_bias[e])
        activated = ops.swiglu(_at("mlp.swiglu", 0, e, **shape), gate_up)
        at = _at("mlp.expert_out", 0, e, **shape)
        w2 = ops.expert_matrix(at, stored2[e])
        answers[t, a] = ops.expert_linear(at, activated, w2, v.mlp2_bias[e])
    at = _at("mlp.out", 0, **shape)
    weights = v.weights.astype(np.float64)
    return {"y": ops.combine(at, answers, weights, v.indices, v.mlp2_bias)}


def _mxfp4_decode(ops: ModelOps, v: SimpleNamespace) -> Values:
    at = _at("mlp.gate_up", 0, 0, hidden_size=32 * v.scales.shape[1])
    return {"values": ops.expert_matrix(at, MXFP4(v.blocks, v.scales))}


def _mxfp4_encode(ops: ModelOps, v: SimpleNamespace) -> Values:
    blocks, scales = mxfp4.encode(v.values)
    return {"blocks": blocks, "scales": scales}


def _sampling(ops: ModelOps, v: SimpleNamespace) -> Values:
    return {"probabilities": token_probabilities(v.logits, v.temperature, v.top_k, v.top_p)}


@cache
def tiny() -> tuple[ModelConfig, ModelWeights]:
    """The bundled model, for the cases of the operation ``model``."""
    checkpoint = load_checkpoint("tiny")
    return checkpoint.config, checkpoint.weights


def _model(ops: ModelOps, v: SimpleNamespace) -> Values:
    config, weights = tiny()
    streams = [f"block.{n}.mlp.residual" for n in range(config.num_hidden_layers)]
    taps = predict(weights, config, ops, v.tokens, {}, [*streams, "logits"])
    return {"residual": np.stack([taps[tap] for tap in streams]), "logits": taps["logits"]}


_FLOAT = {"float32": 1e-5, "bfloat16": 2e-2}
_ROTARY = {
    "head_dim": "C",
    "theta": "base of the frequencies",
    "factor": "YaRN's factor; 1: plain RoPE",
    "original_length": "length of the original context",
    "beta_fast": "pairs with more turns keep their frequency",
    "beta_slow": "pairs with fewer turns are slowed by the factor",
}

OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for operation in (
        Operation(
            "embedding", "x_t = W[token_t]", {"tokens": "T", "weight": "V D"}, {},
            {"x": "T D"}, _embedding, {"float32": 0.0, "bfloat16": 0.0},
        ),
        Operation(
            "rmsnorm", "y = x / sqrt(mean(x²) + eps) · scale", {"x": "T D", "scale": "D"},
            {"eps": "under the root"}, {"y": "T D"}, _rmsnorm, _FLOAT,
        ),
        Operation(
            "linear", "y = W x + b", {"x": "T M", "weight": "N M", "bias": "N"}, {},
            {"y": "T N"}, _linear, _FLOAT,
        ),
        Operation(
            "yarn", "frequencies (radians per position) and concentration", {}, _ROTARY,
            {"inv_freq": "C/2", "concentration": "1"}, _yarn, {"float32": 1e-6, "bfloat16": 1e-2},
        ),
        Operation(
            "rope", "pair (i, i + C/2) rotated by position · inv_freq[i], times the concentration",
            {"x": "T H C", "positions": "T"}, _ROTARY, {"y": "T H C"}, _rope,
            {"float32": 1e-5, "bfloat16": 2e-2},
        ),
        Operation(
            "attention",
            "softmax([q·k / sqrt(C) over visible keys, sink]) without the sink's share; "
            "query head h reads key/value head h // (H / K)",
            {
                "q": "T H C", "k": "S K C", "v": "S K C", "sinks": "H",
                "q_positions": "T", "k_positions": "S",
            },
            {"window": "visible keys, the query's own included; null: all"},
            {"weights": "H T S", "mix": "T H*C"}, _attention, _FLOAT,
        ),
        Operation(
            "router", "logits = W x + b; the A largest; softmax over those",
            {"x": "T D", "weight": "E D", "bias": "E"}, {"experts_per_token": "A"},
            {"logits": "T E", "indices": "T A", "weights": "T A"}, _router, _FLOAT,
        ),
        Operation(
            "swiglu",
            "gate = min(x[even], limit); up = clamp(x[odd], ±limit); "
            "gate · sigmoid(alpha · gate) · (up + 1)",
            {"x": "T 2F"}, {"alpha": "of the sigmoid", "limit": "of the clamps"},
            {"y": "T F"}, _swiglu, {"float32": 1e-5, "bfloat16": 5e-2},
        ),
        Operation(
            "experts", "y_t = Σ_a weight_ta · (W2 · swiglu(W1 · x_t + b1) + b2), expert index_ta",
            {
                "x": "T D", "indices": "T A", "weights": "T A",
                "mlp1_blocks": "E 2F D/32 16", "mlp1_scales": "E 2F D/32", "mlp1_bias": "E 2F",
                "mlp2_blocks": "E D F/32 16", "mlp2_scales": "E D F/32", "mlp2_bias": "E D",
            },
            {"alpha": "of SwiGLU", "limit": "of SwiGLU"}, {"y": "T D"}, _experts,
            {"float32": 1e-4, "bfloat16": 3e-2},
        ),
        Operation(
            "mxfp4_decode", "value = E2M1[code] · 2^(scale − 127), the low nibble first",
            {"blocks": "N M/32 16", "scales": "N M/32"}, {}, {"values": "N M"}, _mxfp4_decode,
            {"float32": 0.0, "bfloat16": 0.0},
        ),
        Operation(
            "mxfp4_encode",
            "scale 2^(floor(log2 max) − 2), elements to the nearest code, ties to even",
            {"values": "N M"}, {}, {"blocks": "N M/32 16", "scales": "N M/32"}, _mxfp4_encode,
            {"float32": 0.0, "bfloat16": 0.0},
        ),
        Operation(
            "sampling",
            "softmax(logits / temperature), the top_k largest of it, then the fewest that sum to "
            "top_p; renormalised",
            {"logits": "V"},
            {
                "temperature": "above 0", "top_k": "0: all; those equal to the k-th are kept",
                "top_p": "the token that crosses it is kept",
            },
            {"probabilities": "V"}, _sampling, _FLOAT,
        ),
        Operation(
            "model", "the bundled tiny model: the residual stream after each block, and logits",
            {"tokens": "T"}, {}, {"residual": "L T D", "logits": "T V"}, _model,
            {"float32": 1e-4},
        ),
        *GRADIENTS,
    )
}  # fmt: skip
"""Operations by name, in the order of the suite."""
