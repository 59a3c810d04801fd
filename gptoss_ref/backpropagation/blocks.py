"""The backward pass over a batch, block by block; ``backward`` calls it.

The forward pass keeps the residual that enters each block, and as many of the other activations as
there is room for. The backward pass goes from the last block to the first: it computes what was not
kept again from the block's residual, uses it, and drops it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from gptoss_ref.backpropagation.rules import gradient_rules
from gptoss_ref.errors import GptOssError
from gptoss_ref.gradients import attention_weights
from gptoss_ref.losses import Counted, Loss, called
from gptoss_ref.model import Model
from gptoss_ref.numerics import Array
from gptoss_ref.weights import AttentionWeights, MLPWeights, RouterOutput

Watch = Callable[[str, Array], None]
"""Called with a name and a gradient."""

KEPT_VALUES = 1 << 26
"""Activations that are kept from the forward pass, over all blocks: 256 MiB of float32. What does
not fit is computed again."""

HEAD_VALUES = 1 << 25
"""Logits held at a time, unless all of them are asked for: 128 MiB of float32, twice."""


class Watcher:
    """Passes on the gradients that were asked for."""

    def __init__(self, wanted: set[str], keep: Watch) -> None:
        self.wanted, self.keep = wanted, keep

    def give(self, name: str, gradient: Array | None) -> None:
        if gradient is not None and name in self.wanted:
            self.keep(name, gradient)

    def any(self, prefix: str, *names: str) -> bool:
        return any(prefix + name in self.wanted for name in names)


class Attention(NamedTuple):
    """The activations of a block's attention that its gradients need."""

    norm: Array  # (T, D)
    q: Array  # (T, H, C), turned
    k: Array  # (T, K, C), turned
    v: Array  # (T, K, C)
    mix: Array  # (T, H*C)
    residual: Array  # (T, D), with what attention added


class Mixture(NamedTuple):
    """The activations of a block's experts that its gradients need."""

    norm: Array  # (T, D)
    routed: RouterOutput
    kept: Array | None  # what the rules keep of the experts, (T·A, 2F) values


class BackwardPass:
    """One forward and backward pass over a batch, whose rows are concatenated along T."""

    def __init__(self, model: Model, ids: list[Array], weights: Watcher, taps: Watcher) -> None:
        self.model, self.backend, self.policy = model, model.backend, model.policy
        self.weights, self.taps = weights, taps
        self.rules = gradient_rules(model.backend)
        self.ids = np.concatenate(ids)
        ends = np.cumsum([len(row) for row in ids])
        self.rows = [slice(end - len(row), end) for row, end in zip(ids, ends, strict=True)]
        self.positions = np.concatenate([np.arange(len(row)) for row in ids])
        self.tables = model._rope_tables(self.positions)
        self.kept_attention: dict[int, Attention] = {}
        self.kept_mixtures: dict[int, Mixture] = {}
        self.room = KEPT_VALUES
        self.lowest = lowest_block(weights.wanted | taps.wanted, model.config.num_hidden_layers)

    def forward(self, keep_routing: bool) -> tuple[list[Array], Array, list[RouterOutput]]:
        """The residual that enters each block, the last one, and the routing if it is asked for."""
        weights, r = self.model.weights, self.policy.round
        x = self.backend.embedding(self.ids, weights.embedding, policy=self.policy)
        residuals, routing = [], []
        for n, block in enumerate(weights.blocks):
            residuals.append(x)
            attention = self.attention(n, x, block.attn)
            if n >= self.lowest and self.has_room(sum(a.size for a in attention)):
                self.kept_attention[n] = attention
            x = attention.residual
            norm, routed = self.routed(x, block.mlp)
            values = (
                norm.size + routed.logits.size + routed.indices.size * len(block.mlp.mlp1_bias[0])
            )
            keep = n >= self.lowest and self.has_room(values)
            answer, kept = self.experts(norm, routed, block.mlp, keep)
            if keep:
                self.kept_mixtures[n] = Mixture(norm, routed, kept)
            x = r(x + answer)
            if keep_routing:
                routing.append(routed)
        return residuals, x, routing

    def has_room(self, values: int) -> bool:
        """Whether there is room for ``values`` more; if so, they count as kept."""
        if values > self.room:
            return False
        self.room -= values
        return True

    def attention(self, n: int, x: Array, w: AttentionWeights) -> Attention:
        backend, policy = self.backend, self.policy
        norm = self.norm(x, w.norm_scale)
        projections = ((w.q_weight, w.q_bias), (w.k_weight, w.k_bias), (w.v_weight, w.v_bias))
        q, k, v = (
            projected.reshape(len(x), -1, self.model.config.head_dim)
            for projected in (backend.linear(norm, *pair, policy=policy) for pair in projections)
        )
        q, k = (backend.rope(a, *self.tables, policy=policy) for a in (q, k))
        window = self.model.config.window(n)
        parts = [
            backend.attention(q[at], k[at], v[at], w.sinks, *self.where(at), window, policy=policy)
            for at in self.rows
        ]
        mix = parts[0] if len(parts) == 1 else np.concatenate(parts)
        out = backend.linear(mix, w.out_weight, w.out_bias, policy=policy)
        return Attention(norm, q, k, v, mix, policy.round(x + out))

    def where(self, row: slice) -> tuple[Array, Array]:
        return self.positions[row], self.positions[row]

    def routed(self, x: Array, w: MLPWeights) -> tuple[Array, RouterOutput]:
        norm = self.norm(x, w.norm_scale)
        active = self.model.config.experts_per_token
        return norm, self.backend.router(
            norm, w.gate_weight, w.gate_bias, active, policy=self.policy
        )

    def norm(self, x: Array, scale: Array) -> Array:
        return self.backend.rmsnorm(x, scale, self.model.config.rms_norm_eps, policy=self.policy)

    def experts(
        self, norm: Array, routed: RouterOutput, w: MLPWeights, keep: bool
    ) -> tuple[Array, Array | None]:
        config = self.model.config
        return self.rules.kept_experts(
            norm,
            routed.indices,
            routed.weights,
            *(w.mlp1_weight, w.mlp1_bias, w.mlp2_weight, w.mlp2_bias),
            alpha=config.swiglu_alpha,
            limit=config.swiglu_limit,
            policy=self.policy,
            keep=keep,
        )

    def head(self, x: Array, loss: Loss | None, counted: Counted | None) -> tuple[float, Array]:
        """The loss, and the gradient (T, D) of what leaves the last block, ``x`` (T, D)."""
        weights, policy, rules = self.model.weights, self.policy, self.rules
        norm = self.norm(x, weights.norm_scale)
        own = self.weights.any("", "unembedding")
        d_norm = np.zeros_like(norm)
        d_unembedding = np.zeros(weights.unembedding.shape, policy.dtype) if own else None
        whole = loss is not None or self.taps.any("", "logits") or policy.name == "bfloat16"
        if counted is None or whole:
            rows, size = np.arange(len(x)), len(x)
        else:
            rows = np.flatnonzero(counted.mask)
            size = max(1, HEAD_VALUES // len(weights.unembedding))
        value = 0.0
        for start in range(0, len(rows), size):
            at = rows[start : start + size]
            logits = self.backend.linear(norm[at], weights.unembedding, policy=policy)
            if counted is None:
                assert loss is not None
                part, d_logits = called(loss, logits)
            else:
                part, d_logits = rules.cross_entropy(
                    logits,
                    counted.targets[at],
                    counted.mask[at],
                    count=int(counted.mask.sum()),
                    policy=policy,
                )
            value += part
            self.taps.give("logits", d_logits)
            found = rules.linear(
                d_logits, norm[at], weights.unembedding, weight_gradients=own, policy=policy
            )
            d_norm[at] = found.d_x
            if d_unembedding is not None:
                d_unembedding += found.d_weight
        self.weights.give("unembedding", d_unembedding)
        self.taps.give("norm", d_norm)
        d_x, d_scale = self.norm_gradients(d_norm, x, weights.norm_scale)
        self.weights.give("norm_scale", d_scale)
        return value, d_x

    def norm_gradients(self, d_norm: Array, x: Array, scale: Array) -> tuple[Array, Array]:
        eps = self.model.config.rms_norm_eps
        d_x, d_scale = self.rules.rmsnorm(d_norm, x, scale, eps, policy=self.policy)
        return d_x, d_scale

    def block(self, n: int, x: Array, d_x: Array, d_router: Array | None) -> Array:
        """From the gradient ``d_x`` (T, D) of what leaves block ``n``, that of what enters it."""
        block = self.model.weights.blocks[n]
        kept = self.kept_attention.pop(n, None) or self.attention(n, x, block.attn)
        d_residual = self.mlp_gradients(n, kept.residual, d_x, d_router, block.mlp)
        return self.attention_gradients(n, x, kept, d_residual, block.attn)

    def mlp_gradients(
        self, n: int, x: Array, d_x: Array, d_router: Array | None, w: MLPWeights
    ) -> Array:
        policy, config, at = self.policy, self.model.config, f"block.{n}.mlp."
        found = self.kept_mixtures.pop(n, None)
        norm, routed, kept = found or Mixture(*self.routed(x, w), None)
        self.taps.give(at + "residual", d_x)
        self.taps.give(at + "out", d_x)
        stages = ("gate_up", "swiglu", "expert_out")
        names = ("mlp1_weight", "mlp1_bias", "mlp2_weight", "mlp2_bias")
        d = self.rules.experts(
            d_x,
            norm,
            routed.indices,
            routed.weights,
            *(getattr(w, name) for name in names),
            alpha=config.swiglu_alpha,
            limit=config.swiglu_limit,
            weight_gradients=self.weights.any(at, *names),
            policy=policy,
            tap=(lambda name, d: self.taps.give(at + name, d))
            if self.taps.any(at, *stages)
            else None,
            kept=kept,
        )
        for name in names:
            self.weights.give(at + name, getattr(d, "d_" + name))
        self.taps.give(at + "expert_weights", d.d_weights)
        router = self.rules.router(
            d.d_weights,
            norm,
            w.gate_weight,
            routed.indices,
            routed.weights,
            d_logits=d_router,
            weight_gradients=self.weights.any(at, "gate_weight", "gate_bias"),
            policy=policy,
        )
        self.taps.give(at + "router_logits", router.d_logits)
        self.weights.give(at + "gate_weight", router.d_weight)
        self.weights.give(at + "gate_bias", router.d_bias)
        d_norm = policy.round(d.d_x + router.d_x)
        self.taps.give(at + "norm", d_norm)
        d_residual, d_scale = self.norm_gradients(d_norm, x, w.norm_scale)
        self.weights.give(at + "norm_scale", d_scale)
        return policy.round(d_x + d_residual)

    def attention_gradients(
        self, n: int, x: Array, kept: Attention, d_x: Array, w: AttentionWeights
    ) -> Array:
        policy, rules, at = self.policy, self.rules, f"block.{n}.attn."
        self.taps.give(at + "residual", d_x)
        self.taps.give(at + "out", d_x)
        out = rules.linear(
            d_x,
            kept.mix,
            w.out_weight,
            weight_gradients=self.weights.any(at, "out_weight", "out_bias"),
            policy=policy,
        )
        self.weights.give(at + "out_weight", out.d_weight)
        self.weights.give(at + "out_bias", out.d_bias)
        self.taps.give(at + "mix", out.d_x)
        d_q, d_k, d_v = self.attention_core(n, kept, out.d_x, w)
        self.taps.give(at + "v", d_v)
        self.taps.give(at + "q_rope", d_q)
        self.taps.give(at + "k_rope", d_k)
        d_q, d_k = (rules.rope(d, *self.tables, policy=policy) for d in (d_q, d_k))
        self.taps.give(at + "q", d_q)
        self.taps.give(at + "k", d_k)
        d_norm, parameters = rules.projections(
            [d.reshape(len(x), -1) for d in (d_q, d_k, d_v)],
            kept.norm,
            [w.q_weight, w.k_weight, w.v_weight],
            weight_gradients=[self.weights.any(at + c, "_weight", "_bias") for c in "qkv"],
            policy=policy,
        )
        for letter, (d_weight, d_bias) in zip("qkv", parameters, strict=True):
            self.weights.give(f"{at}{letter}_weight", d_weight)
            self.weights.give(f"{at}{letter}_bias", d_bias)
        self.taps.give(at + "norm", d_norm)
        d_residual, d_scale = self.norm_gradients(d_norm, x, w.norm_scale)
        self.weights.give(at + "norm_scale", d_scale)
        return policy.round(d_x + d_residual)

    def attention_core(
        self, n: int, kept: Attention, d_mix: Array, w: AttentionWeights
    ) -> tuple[Array, ...]:
        """Gradients of q, k (both turned) and v."""
        policy, window = self.policy, self.model.config.window(n)
        name = f"block.{n}.attn.weights"
        if self.taps.any(name, ""):
            if len(self.rows) > 1:
                raise GptOssError(f"{name} of a batch has no one shape: expected one row")
            self.taps.give(name, attention_weights(d_mix, kept.v, policy=policy))
        found = self.rules.attention(
            d_mix,
            kept.q,
            kept.k,
            kept.v,
            w.sinks,
            self.positions,
            self.positions,
            window,
            rows=self.rows,
            policy=policy,
        )
        self.weights.give(f"block.{n}.attn.sinks", found.d_sinks)
        return found.d_q, found.d_k, found.d_v

    def embedding(self, d_x: Array) -> None:
        if self.weights.any("", "embedding"):
            vocabulary = self.model.config.vocab_size
            d = self.rules.embedding(d_x, self.ids, vocabulary, policy=self.policy)
            self.weights.give("embedding", d)


def lowest_block(names: Iterable[str], blocks: int) -> int:
    """The first block of which a gradient is wanted, or whose gradients lead to one."""
    lowest = blocks
    for name in names:
        if name == "embedding":
            return 0
        if name.startswith("block."):
            lowest = min(lowest, int(name.split(".")[1]))
    return lowest
