"""Solutions of chapter 8: attention on keys in any order, and a model with a cache of its own.

gptoss-ref check 08_cache.py:attention attention
gptoss-ref check 08_cache.py:model model
"""

import numpy as np

import gptoss_ref as gr
from gptoss_ref import layers
from gptoss_ref.numerics import FLOAT64


def attention(q, k, v, sinks, q_positions, k_positions, window):
    """q (T, H, C), k and v (S, K, C) to weights (H, T, S) and mix (T, H·C)."""
    (tokens, heads, channels), kv_heads = q.shape, k.shape[1]
    group = heads // kv_heads
    q = q.reshape(tokens, kv_heads, group, channels)  # head h = k · G + g reads key head k

    scores = np.einsum("tkgc,skc->kgts", q, k) / np.sqrt(channels)

    # Who sees whom is a statement about positions. Nothing here asks where a key lies in memory,
    # so keys may come in any order, and keys ahead of the query may be among them.
    distance = q_positions[:, None] - k_positions[None, :]  # (T, S)
    visible = distance >= 0
    if window is not None:
        visible &= distance < window  # W keys, the query's own included
    scores = np.where(visible, scores, -np.inf)

    # The sink is one more logit in the softmax, whose share is then left out. Subtracting the
    # largest keeps exp from overflowing; the sink may be that largest.
    sink = sinks.reshape(kv_heads, group, 1, 1)
    top = np.maximum(scores.max(axis=-1, keepdims=True), sink)  # (K, G, T, 1)
    exp = np.exp(scores - top)
    weights = exp / (exp.sum(axis=-1, keepdims=True) + np.exp(sink - top))  # (K, G, T, S)

    mix = np.einsum("kgts,skc->tkgc", weights, v)
    return weights.reshape(heads, tokens, -1), mix.reshape(tokens, heads * channels)


class Ring:
    """Keys and values of one layer: slot p mod n holds position p; n = None keeps all."""

    def __init__(self, slots):
        self.slots = slots
        self.keys, self.values, self.positions = [], [], []

    def add(self, position, key, value):
        """Store one position. One at a time a ring needs no more slots than its window."""
        if self.slots is None or len(self.keys) < self.slots:
            self.keys.append(key)
            self.values.append(value)
            self.positions.append(position)
        else:
            slot = position % self.slots
            self.keys[slot], self.values[slot], self.positions[slot] = key, value, position


def model(tokens):
    """The logits of `tiny`, one token at a time: residual (L, T, D) and logits (T, V)."""
    checkpoint = gr.load_checkpoint("tiny")
    config, weights = checkpoint.config, checkpoint.weights
    exact = {"policy": FLOAT64}
    inv_freq, concentration = layers.yarn(
        config.head_dim,
        config.rope_theta,
        config.rope_scaling_factor,
        config.initial_context_length,
        config.rope_ntk_beta,
        config.rope_ntk_alpha,
    )
    rings = [Ring(config.window(n)) for n in range(config.num_hidden_layers)]
    residual = np.empty((config.num_hidden_layers, len(tokens), config.hidden_size))
    logits = np.empty((len(tokens), config.vocab_size))

    for p, token in enumerate(tokens):
        here = np.array([p])
        tables = layers.rope_tables(here, inv_freq, concentration, **exact)
        x = layers.embedding(np.array([token]), weights.embedding, **exact)  # (1, D)
        for n, block in enumerate(weights.blocks):
            w = block.attn
            norm = layers.rmsnorm(x, w.norm_scale, config.rms_norm_eps, **exact)
            q, k, v = (
                layers.linear(norm, matrix, bias, **exact).reshape(1, -1, config.head_dim)
                for matrix, bias in (
                    (w.q_weight, w.q_bias),
                    (w.k_weight, w.k_bias),
                    (w.v_weight, w.v_bias),
                )
            )
            q, k = layers.rope(q, *tables, **exact), layers.rope(k, *tables, **exact)

            # The cache: this position's key, already turned, and its value join the others.
            ring = rings[n]
            ring.add(p, k[0], v[0])
            _, mix = attention(
                q,
                np.array(ring.keys),
                np.array(ring.values),
                layers.embedding(np.arange(len(w.sinks)), w.sinks[:, None], **exact)[:, 0],
                here,
                np.array(ring.positions),
                config.window(n),
            )
            x = x + layers.linear(mix, w.out_weight, w.out_bias, **exact)

            m = block.mlp
            norm = layers.rmsnorm(x, m.norm_scale, config.rms_norm_eps, **exact)
            active = config.experts_per_token
            routed = layers.router(norm, m.gate_weight, m.gate_bias, active, **exact)
            x = x + layers.experts(
                norm,
                routed.indices,
                routed.weights,
                m.mlp1_weight,
                m.mlp1_bias,
                m.mlp2_weight,
                m.mlp2_bias,
                **exact,
            )
            residual[n, p] = x[0]
        norm = layers.rmsnorm(x, weights.norm_scale, config.rms_norm_eps, **exact)
        logits[p] = layers.linear(norm, weights.unembedding, **exact)[0]
    return residual, logits
