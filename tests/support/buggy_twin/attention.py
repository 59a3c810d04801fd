"""Attention with a window, sinks and grouped queries, and what went wrong there."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.support.buggy_twin.arithmetic import Bugs, product, wide
from tests.support.buggy_twin.checkpoints import Config
from tests.support.buggy_twin.position import concentration


def window(config: Config, layer: int, bugs: Bugs) -> int | None:
    """Keys that a query of this layer sees, itself included; None: all before it."""
    windowed = config.windowed[layer]
    if "window-odd-layers" in bugs:
        windowed = not windowed
    if "window-everywhere" in bugs:
        windowed = True
    if "window-nowhere" in bugs:  # openvino#32911: a stub of 0 stood for the window
        windowed = False
    if not windowed:
        return None
    width = config.sliding_window
    if "window-plus-one" in bugs:  # Megatron-LM#2771: (128, 0) is 128 to the left and itself
        width += 1
    if "window-minus-one" in bugs:
        width -= 1
    if "window-width" in bugs:  # not the configuration's
        width = 17
    return width


def key_head(config: Config, bugs: Bugs) -> Tensor:
    """(H,): the key/value head that each query head reads."""
    heads, kv = config.num_attention_heads, config.num_key_value_heads
    if "gqa-axes-swapped" in bugs:  # view(G, K) where (K, G) was meant
        return torch.arange(heads) % kv
    return torch.arange(heads) // (heads // kv)


def score_scale(config: Config, bugs: Bugs) -> float:
    scale = 1 / math.sqrt(config.head_dim)
    if bugs & {"scale-missing", "scale-in-query"}:
        scale = 1.0
    if "scale-by-hidden" in bugs:  # the width of the model, not of a head
        scale = 1 / math.sqrt(config.hidden_size)
    if "score-scale" in bugs:
        scale = 0.3
    if "yarn-concentration-in-scores" in bugs:  # q and k both carry it, hence its square
        scale *= concentration(config) ** 2
    return scale


def sink_columns(config: Config, sinks: Tensor, scale: float, bugs: Bugs) -> Tensor:
    """(H, 0 to 2): the logits that join the softmax."""
    heads = config.num_attention_heads
    if "sinks-dropped" in bugs:  # transformers#42533, vllm#52156
        return sinks[:, None][:, :0]
    if "sinks-wrong-head" in bugs:  # each head has its left neighbour's
        sinks = sinks[(torch.arange(heads) - 1) % heads]
    if "sinks-wrong-head/ranks" in bugs:  # SkyRL#558: each of two ranks reads from sink 0 on
        sinks = sinks[torch.arange(heads) % (heads // 2)]
    if "sinks-scaled" in bugs:  # joined before the scores are scaled
        sinks = sinks * scale
    if "sinks-counted-twice" in bugs:  # rocm-libraries#12227: by two splits of the keys
        return torch.stack([sinks, sinks], -1)
    return sinks[:, None]


def visible(config: Config, layer: int, length: int, bugs: Bugs) -> tuple[Tensor, Tensor, Tensor]:
    """Which keys a query sees, which ones are too old for it, and its empty cache slots.

    Two masks (T, S), and a number (T,). A key that its cache does not hold is neither.
    """
    query, key = torch.arange(length)[:, None], torch.arange(length)[None, :]
    seen = key <= query
    if "causal-off-by-one" in bugs:  # triu(diagonal=2): the next token is seen
        seen = key <= query + 1
    held = torch.ones_like(seen)
    old = torch.zeros_like(seen)
    empty = torch.zeros(length, dtype=torch.long)
    width = window(config, layer, bugs)
    if width is not None:
        old = query - key >= width
        if "ring-boundary" in bugs:
            ring, empty = early_ring(length, width)
            held = held & ring
        if "chunk-longer-than-ring" in bugs:  # executorch#20346: all is written, then it is read
            held = held & (key >= length - width)
        if "chunk-longer-than-ring/chunks" in bugs:  # chunks and ring are two windows long
            held = held & (key // (2 * width) == query // (2 * width))
        if "chunk-longer-than-ring/13" in bugs:
            held = held & (key // 13 == query // 13)
    if "prefill-skips-cache/19" in bugs:
        held = held & ((key >= 19) | (query < 19))
    if "prefill-skips-cache" in bugs:  # gpt-oss#196: a second prefill sees only itself
        held = held & ((key >= length // 2) | (query < length // 2))
    if "padding-attended" in bugs:  # unsloth#3982: a row of zeros on the left
        empty = empty + 1
    return held & seen & ~old, held & old, empty


def early_ring(length: int, width: int) -> tuple[Tensor, Tensor]:
    """A cache of ``width`` slots, token by token, that rolls one step before it is full.

    transformers#37574: ``cache_position >= window - 1`` decides whether to roll. The slot that was
    empty then stays, and counts as filled. Which tokens it holds (T, S), and how many empty slots
    are read (T,).
    """
    holds = torch.zeros(length, length, dtype=torch.bool)
    empty = torch.zeros(length, dtype=torch.long)
    slots: list[int | None] = [None] * width
    for token in range(length):
        if token >= width - 1:
            slots = [*slots[1:], token]
            empty[token] = slots.count(None)
        else:
            slots[token] = token
        for slot in slots:
            if slot is not None:
                holds[token, slot] = True
    return holds, empty


def weights(config: Config, layer: int, q: Tensor, k: Tensor, sinks: Tensor, bugs: Bugs) -> Tensor:
    """q (T, H, C), k (S, K, C) -> (H, T, S), without the sink's column."""
    scale = score_scale(config, bugs)
    seen, old, empty = visible(config, layer, len(q), bugs)
    scores = product("thc,shc->hts", q, k[:, key_head(config, bugs)], bugs=bugs) * scale
    columns = sink_columns(config, sinks, scale, bugs)[:, None, :].expand(-1, len(q), -1)
    slots = torch.arange(int(empty.max())) < empty[:, None]
    nothing = torch.where(slots, 0.0, -math.inf).to(q.dtype).expand(len(columns), -1, -1)
    columns = torch.cat([columns, nothing], -1)  # the score with a key of zeros
    if "window-scores-zero" in bugs:  # multiplied by the mask
        scores, seen = scores.masked_fill(old, 0.0), seen | old
    scores = scores.masked_fill(~seen, -math.inf)
    if "window-scores-zero/denominator" in bugs:  # keys and values cleared, not masked
        cleared = torch.where(old, 0.0, -math.inf).to(q.dtype)
        columns = torch.cat([columns, cleared.expand_as(scores)], -1)
    if "sinks-by-lse" in bugs:  # flash attention's way: softmax of the keys, then the sink's share
        share = torch.sigmoid(wide(scores).logsumexp(-1, keepdim=True) - wide(columns))
        return (torch.softmax(wide(scores), -1) * share).to(q.dtype)
    return torch.softmax(torch.cat([scores, columns], -1), -1)[..., : len(k)]


def mix(config: Config, shares: Tensor, v: Tensor, bugs: Bugs) -> Tensor:
    """(H, T, S), v (S, K, C) -> (T, H*C)."""
    return product("hts,shc->thc", shares, v[:, key_head(config, bugs)], bugs=bugs).flatten(1)
