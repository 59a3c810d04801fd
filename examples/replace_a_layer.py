"""Replace the model's attention by your own function, and check whether it is right.

    python examples/replace_a_layer.py

`mine` reads the keys a block at a time and keeps a running maximum, total and mix for each query
(the online softmax, arXiv 1805.02867, of FlashAttention), so a whole row of weights is never in
memory. The running total starts with the sink. Prints, for `mine` and for the same without sinks,
the relative L2 error of the logits (float32 explains 1e-5) and how often the likeliest token is the
same.
"""

import dataclasses

import numpy as np

import gptoss_ref as gr
from gptoss_ref.backend import NUMPY
from gptoss_ref.chat import build_conversation, render_conversation
from gptoss_ref.numerics import widen

BLOCK = 16  # keys


def mine(q, k, v, sinks, q_positions, k_positions, window=None, *, policy):
    """Arguments and result as `gr.layers.attention`: q (T, H, C), k and v (S, K, C) -> (T, H*C)."""
    queries, heads, channels = q.shape
    group = heads // k.shape[1]
    top = np.tile(widen(sinks, policy.dtype), (queries, 1))  # (T, H): the largest score so far
    total = np.ones_like(top)  # the sink's own e^(sink - top)
    mix = np.zeros(q.shape, policy.dtype)  # (T, H, C)
    for start in range(0, len(k), BLOCK):
        rows = slice(start, start + BLOCK)
        keys, values = (x[rows].repeat(group, axis=1) for x in (k, v))  # (s, H, C)
        distance = q_positions[:, None] - k_positions[rows]  # (T, s)
        seen = (distance >= 0) & (distance < (window or np.inf))
        scores = np.einsum("thc,shc->ths", q, keys) / np.float32(np.sqrt(channels))
        scores = np.where(seen[:, None], scores, -np.inf)  # (T, H, s)
        new_top = np.maximum(top, scores.max(-1))
        shrink, weights = np.exp(top - new_top), np.exp(scores - new_top[..., None])
        total = total * shrink + weights.sum(-1)
        mix = mix * shrink[..., None] + np.einsum("ths,shc->thc", weights, values)
        top = new_top
    return (mix / total[..., None]).reshape(queries, -1)


def without_sinks(q, k, v, sinks, *rest, **more):
    """The mistake: the sinks are so low that they take no attention."""
    return mine(q, k, v, np.full(len(sinks), -1e30), *rest, **more)


specification = gr.load("tiny", backend="numpy")
prompt = render_conversation(build_conversation("What is 345 + 678?"), specification.tokenizer)
tokens = [*prompt, *gr.generate(specification, prompt)]
expected = specification(tokens)  # (T, V)
for attention in (mine, without_sinks):
    model = gr.load("tiny", backend=dataclasses.replace(NUMPY, attention=attention))
    logits = model(tokens)
    error = np.linalg.norm(logits - expected) / np.linalg.norm(expected)
    same = (logits.argmax(-1) == expected.argmax(-1)).sum()
    print(
        f"{attention.__name__}: {'right' if error < 1e-5 else 'wrong'}, logits off by {error:.0e}"
    )
    print(f"  the likeliest token is the same at {same} of {len(tokens)} positions")
