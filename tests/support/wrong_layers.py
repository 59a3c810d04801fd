"""Layers that follow some :class:`ModelOps`, with the signatures of ``gptoss_ref.layers``.

So the checks that the package's own layers must pass can be given the catalogue's mutants.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from gptoss_ref.config import FULL, SLIDING, ModelConfig
from gptoss_ref.numerics import FLOAT32, FLOAT64, Policy
from gptoss_ref.verify.mutants import by_name
from gptoss_ref.verify.replay.ops import ModelOps, OpContext
from gptoss_ref.weights import MXFP4, RouterOutput
from tests.support.agreement import Array
from tests.support.strategies import small_config

CONFIG = small_config()


class LayersOf:
    """One attribute per layer function, as a mutant computes it."""

    def __init__(self, name: str) -> None:
        self.ops: ModelOps = by_name(name).apply()

    def yarn(
        self,
        head_dim: int,
        theta: float,
        factor: float,
        original_length: int,
        beta_fast: float,
        beta_slow: float,
    ) -> tuple[Array, float]:
        config = small_config(
            head_dim=head_dim,
            rope_theta=theta,
            rope_scaling_factor=factor,
            initial_context_length=original_length,
            rope_ntk_beta=beta_fast,
            rope_ntk_alpha=beta_slow,
        )
        return self.ops.yarn(OpContext(config, FLOAT64, "attn.q_rope", 0))

    def rope_tables(
        self, positions: Array, inv_freq: Array, concentration: float, *, policy: Policy = FLOAT32
    ) -> tuple[Array, Array]:
        at = OpContext(CONFIG, policy, "attn.q_rope", 0)
        return self.ops.rope_tables(at, positions, inv_freq, concentration)

    def rope(self, x: Array, cos: Array, sin: Array, *, policy: Policy = FLOAT32) -> Array:
        return self.ops.rope(OpContext(CONFIG, policy, "attn.q_rope", 0), x, cos, sin)

    def attention(
        self,
        q: Array,
        k: Array,
        v: Array,
        sinks: Array,
        q_positions: Array,
        k_positions: Array,
        window: int | None = None,
        *,
        policy: Policy = FLOAT32,
    ) -> Array:
        config = small_config(
            layers=1,
            n_kv=k.shape[1],
            group=q.shape[1] // k.shape[1],
            head_dim=q.shape[2],
            window=window or 1,
            layer_types=(SLIDING if window else FULL,),
            rope_scaling_factor=1.0,
        )
        at = OpContext(config, policy, "attn.weights", 0)
        where = (q_positions, k_positions, self.ops.window(at))
        weights = self.ops.attention_weights(at, q, k, sinks, *where)
        return self.ops.attention_mix(OpContext(config, policy, "attn.mix", 0), weights, v, *where)

    def router(
        self, x: Array, weight: Array, bias: Array, n_chosen: int, *, policy: Policy = FLOAT32
    ) -> RouterOutput:
        config = small_config(experts=len(weight), n_chosen=n_chosen)
        logits = self.ops.linear(OpContext(config, policy, "mlp.router_logits", 0), x, weight, bias)
        indices = self.ops.choose(OpContext(config, policy, "mlp.expert_indices", 0), logits)
        at = OpContext(config, policy, "mlp.expert_weights", 0)
        return RouterOutput(logits, indices, self.ops.expert_weights(at, logits, indices))

    def swiglu(
        self, x: Array, alpha: float = 1.702, limit: float = 7.0, *, policy: Policy = FLOAT32
    ) -> Array:
        config = dataclasses.replace(CONFIG, swiglu_alpha=alpha, swiglu_limit=limit)
        return self.ops.swiglu(OpContext(config, policy, "mlp.swiglu", 0), x)

    def experts(
        self, x: Array, indices: Array, weights: Array, w1: Any, b1: Array, w2: Any, b2: Array,
        *, alpha: float, limit: float, policy: Policy, tap: Any,
    ) -> Array:  # fmt: skip
        config = dataclasses.replace(CONFIG, swiglu_alpha=alpha, swiglu_limit=limit)
        taps = {
            "gate_up": np.empty((*indices.shape, b1.shape[1]), policy.dtype),
            "swiglu": np.empty((*indices.shape, b1.shape[1] // 2), policy.dtype),
            "expert_out": np.empty((*indices.shape, x.shape[1]), policy.dtype),
        }
        for e in np.unique(indices).tolist():
            t, a = np.nonzero(indices == e)
            taps["gate_up"][t, a] = self._product(config, policy, "gate_up", e, x[t], w1, b1)
            inner = self.ops.swiglu(
                OpContext(config, policy, "mlp.swiglu", 0), taps["gate_up"][t, a]
            )
            taps["swiglu"][t, a] = inner
            taps["expert_out"][t, a] = self._product(config, policy, "expert_out", e, inner, w2, b2)
        for name, values in taps.items():
            tap(name, values)
        at = OpContext(config, policy, "mlp.out", 0)
        return self.ops.combine(at, taps["expert_out"], weights, indices, b2)

    def _product(
        self, config: ModelConfig, policy: Policy, tap: str, e: int, x: Array, w: Any, b: Array
    ) -> Array:
        at = OpContext(config, policy, "mlp." + tap, 0, e)
        return self.ops.expert_linear(at, x, self.ops.expert_matrix(at, w[e]), b[e])

    def decode(self, blocks: Array, scales: Array, *, dtype: Any = np.float32) -> Array:
        policy = FLOAT64 if dtype == np.float64 else FLOAT32
        return self.ops.expert_matrix(
            OpContext(CONFIG, policy, "mlp.gate_up", 0, 0), MXFP4(blocks, scales)
        )

    def rmsnorm(
        self, x: Array, scale: Array, eps: float = 1e-5, *, policy: Policy = FLOAT32
    ) -> Array:
        config = dataclasses.replace(CONFIG, rms_norm_eps=eps)
        return self.ops.rmsnorm(OpContext(config, policy, "attn.norm", 0), x, scale)
