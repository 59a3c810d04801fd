"""All of gpt-oss in one file: NumPy, no cache, no kernels.

    python examples/one_file.py

The package has each of these functions in a file with its equation, sources and rounding. Here they
are together, for an overview. Only the weights come from the package. Prints the answer of the
bundled model, and whether the logits are those of the package.

T, S query and key positions   D hidden size    H, K query and key/value heads, G = H / K
C head size                    E, A experts, experts per token      F expert size    V vocabulary
"""

import argparse
import math

import numpy as np

import gptoss_ref as gr
from gptoss_ref.chat import build_conversation, render_conversation


def wide(weight):
    """A stored weight as float64: bfloat16 is the upper half of a float32."""
    return (weight.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def mxfp4(matrix):
    """(…, N, M) float64 of MXFP4: 4-bit codes, and a power of two for each 32 of them."""
    codes = np.stack([matrix.blocks & 15, matrix.blocks >> 4], -1)  # (…, N, M/32, 16, 2)
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])[codes & 7] * np.where(codes & 8, -1, 1)
    scale = 2.0 ** (matrix.scales.astype(int) - 127)  # (…, N, M/32)
    values = values.reshape(*scale.shape, 32) * scale[..., None]
    return values.reshape(matrix.shape)


def linear(x, weight, bias=0):
    return x @ weight.T + bias  # (T, N)


def rmsnorm(x, scale, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale


def softmax(x):
    exps = np.exp(x - x.max(-1, keepdims=True))
    return exps / exps.sum(-1, keepdims=True)


def rope_tables(T, config):
    """cos and sin (T, C/2) of each position and rotary pair, with YaRN."""
    half, base, factor = config.head_dim // 2, config.rope_theta, config.rope_scaling_factor
    frequency = base ** (-np.arange(half) / half)  # radians per position

    def pair(turns):  # the pair that makes this many turns in the original context
        return half * math.log(config.initial_context_length / (turns * 2 * math.pi), base)

    low, high = pair(config.rope_ntk_beta), pair(config.rope_ntk_alpha)
    ramp = np.clip((np.arange(half) - low) / (high - low), 0, 1)  # 0: as trained, 1: stretched
    angles = np.outer(np.arange(T), frequency * (1 - ramp) + frequency / factor * ramp)
    concentration = 0.1 * math.log(factor) + 1
    return np.cos(angles) * concentration, np.sin(angles) * concentration


def rope(x, cos, sin):
    """Turns (T, heads, C): pair i is entries i and i + C/2."""
    x1, x2 = np.split(x, 2, axis=-1)
    cos, sin = cos[:, None], sin[:, None]
    return np.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)


def attention(x, w, config, window, cos, sin):
    T, C = len(x), config.head_dim
    H, K = config.num_attention_heads, config.num_key_value_heads
    x = rmsnorm(x, wide(w.norm_scale), config.rms_norm_eps)
    q = linear(x, wide(w.q_weight), wide(w.q_bias)).reshape(T, H, C)
    k = linear(x, wide(w.k_weight), wide(w.k_bias)).reshape(T, K, C)
    v = linear(x, wide(w.v_weight), wide(w.v_bias)).reshape(T, K, C)
    q = rope(q, cos, sin).reshape(T, K, H // K, C)  # query head h reads key head h // G
    scores = np.einsum("tkgc,skc->kgts", q, rope(k, cos, sin)) / math.sqrt(C)
    behind = np.arange(T)[:, None] - np.arange(T)  # p − j (T, S)
    seen = (behind >= 0) if window is None else (behind >= 0) & (behind < window)
    scores = np.where(seen, scores, -np.inf)
    sinks = np.broadcast_to(wide(w.sinks).reshape(K, H // K, 1, 1), (K, H // K, T, 1))
    weights = softmax(np.concatenate([scores, sinks], -1))[..., :-1]  # the sink takes its share
    mix = np.einsum("kgts,skc->tkgc", weights, v).reshape(T, H * C)
    return linear(mix, wide(w.out_weight), wide(w.out_bias))


def swiglu(x, alpha, limit):
    """(…, 2F) to (…, F): gates and ups alternate; clamped, and one is added to the up."""
    gate, up = np.minimum(x[..., ::2], limit), np.clip(x[..., 1::2], -limit, limit)
    return gate / (1 + np.exp(-alpha * gate)) * (up + 1)


def experts(x, w, config):
    x = rmsnorm(x, wide(w.norm_scale), config.rms_norm_eps)
    logits = linear(x, wide(w.gate_weight), wide(w.gate_bias))  # (T, E)
    chosen = np.argsort(-logits, axis=-1, kind="stable")[:, : config.experts_per_token]  # (T, A)
    share = softmax(np.take_along_axis(logits, chosen, -1))  # over the chosen only
    out = np.zeros_like(x)
    for e in np.unique(chosen):
        t, a = np.nonzero(chosen == e)  # the tokens that chose e
        gate_up = linear(x[t], mxfp4(w.mlp1_weight[int(e)]), wide(w.mlp1_bias[e]))  # (t, 2F)
        h = swiglu(gate_up, config.swiglu_alpha, config.swiglu_limit)
        h = linear(h, mxfp4(w.mlp2_weight[int(e)]), wide(w.mlp2_bias[e]))  # (t, D)
        out[t] += share[t, a, None] * h
    return out


def forward(tokens, weights, config):
    """The logits (T, V) of the token after each of ``tokens`` (T,)."""
    x = wide(weights.embedding)[tokens]  # (T, D)
    cos, sin = rope_tables(len(tokens), config)
    for n, block in enumerate(weights.blocks):
        window = config.sliding_window if n % 2 == 0 else None
        x = x + attention(x, block.attn, config, window, cos, sin)
        x = x + experts(x, block.mlp, config)
    x = rmsnorm(x, wide(weights.norm_scale), config.rms_norm_eps)
    return linear(x, wide(weights.unembedding))


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    model = gr.load("tiny")
    messages = build_conversation("What is 27 + 58?")
    prompt = render_conversation(messages, model.tokenizer)
    tokens = prompt + [int(token) for token in gr.generate(model, prompt)]
    logits = forward(tokens, model.weights, model.config)
    chosen = logits.argmax(-1)[len(prompt) - 1 : -1]  # what this file would have generated
    print(model.tokenizer.decode(chosen.tolist()))
    exact = gr.load("tiny", policy="float64")(tokens)
    print("the package's logits in float64:", np.allclose(logits, exact, rtol=0, atol=1e-10))
