"""One pass through the model, giving every tap point."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from tests.support.buggy_twin import attention, experts, position
from tests.support.buggy_twin.arithmetic import DTYPES, product, rmsnorm
from tests.support.buggy_twin.checkpoints import Checkpoint
from tests.support.buggy_twin.loading import load
from tests.support.buggy_twin.names import (
    ARRIVED_OTHERWISE,
    BUGS,
    LOADING,
    REWRITINGS,
    ROUNDINGS,
    VARIANTS,
)

Taps = dict[str, np.ndarray]

# What ``load`` looks at.
AT_LOADING = {
    *LOADING,
    *ARRIVED_OTHERWISE,
    "norm-scale-missing/one",
    "tensor-missing/sinks",
    "tensor-missing/router",
    "rows-reordered/q",
    "rows-reordered/v",
    "norm-scale-folded/attention",
    "norm-scale-folded/experts",
    "norm-scale-folded/head",
    "heads-permuted",
    "experts-permuted",
    "qk-basis",
    "values-scaled",
    "shard-lost-rows",
    "shard-lost-rows/remainder",
    "qkv-order/groups",
    "rope-pairs-adjacent",
    "scale-in-query",
    "gate-up-deinterleaved",
    "norm-scale-folded",
}


@torch.no_grad()
def run(
    checkpoint: Checkpoint,
    tokens: Sequence[int],
    dtype: str = "float32",
    bugs: Iterable[str] = (),
) -> Taps:
    """Every tap point by name: float32 arrays, holding 16-bit values exactly, and int64 indices.

    Args:
        checkpoint: the bytes.
        tokens: ids (T,).
        dtype: "float32"; "bfloat16" or "float16", which round where OpenAI's torch model does.
        bugs: names of BUGS, VARIANTS and REWRITINGS.
    """
    bugs = frozenset(bugs)
    unknown = bugs - set(BUGS + VARIANTS + REWRITINGS + ROUNDINGS)
    assert not unknown, f"no such bugs: {sorted(unknown)}"
    taps: Taps = {}

    def keep(name: str, value: Tensor) -> Tensor:
        taps[name] = value.numpy() if name.endswith("indices") else value.float().numpy()
        return value

    config, kind = checkpoint.config, DTYPES[dtype]
    every = load(checkpoint, kind, bugs & AT_LOADING)
    head = config.head_dim
    where = position.positions(len(tokens), bugs)
    cos, sin = position.tables(config, where, kind, bugs)

    x = every["embedding"][torch.as_tensor(tokens, dtype=torch.long)]
    if "embedding-scaled" in bugs:  # Gemma's
        x = x * config.hidden_size**0.5
    keep("embedding", x)
    for n in range(config.num_hidden_layers):
        at = f"block.{n}.attn."
        w = {name[len(at) :]: value for name, value in every.items() if name.startswith(at)}
        t = keep(at + "norm", rmsnorm(x, w["norm.scale"], config.rms_norm_eps, bugs))
        if "qkv-fused" in bugs:
            weight = torch.cat([w[f"{letter}.weight"] for letter in "qkv"])
            fused = product("td,nd->tn", t, weight, bugs=bugs)
            sizes = [len(w[f"{letter}.weight"]) for letter in "qkv"]
            fused = fused + torch.cat([w[f"{letter}.bias"] for letter in "qkv"])
            parts = fused.split(sizes, -1)
        else:
            parts = [
                product("td,nd->tn", t, w[f"{letter}.weight"], w[f"{letter}.bias"], bugs)
                for letter in "qkv"
            ]
        q, k, v = (
            keep(at + letter, part.reshape(len(tokens), -1, head))
            for letter, part in zip("qkv", parts, strict=True)
        )
        windowed = config.windowed[n]
        q = keep(at + "q_rope", position.rotate(q, cos, sin, windowed, bugs))
        k = keep(at + "k_rope", position.rotate(k, cos, sin, windowed, bugs))
        shares = keep(at + "weights", attention.weights(config, n, q, k, w["sinks"], bugs))
        t = keep(at + "mix", attention.mix(config, shares, v, bugs))
        t = keep(at + "out", product("tm,dm->td", t, w["out.weight"], w["out.bias"], bugs))
        x = keep(at + "residual", t if "residual-missing" in bugs else x + t)

        at = f"block.{n}.mlp."
        w = {name[len(at) :]: value for name, value in every.items() if name.startswith(at)}
        t = keep(at + "norm", rmsnorm(x, w["norm.scale"], config.rms_norm_eps, bugs))
        logits, chosen, shares = experts.router(config, t, w, bugs)
        keep(at + "router_logits", logits)
        keep(at + "expert_indices", chosen)
        keep(at + "expert_weights", shares)
        t = experts.experts(
            t, chosen, shares, w, config, lambda name, value, at=at: keep(at + name, value), bugs
        )
        keep(at + "out", t)
        x = keep(at + "residual", t if "residual-missing" in bugs else x + t)
    x = keep("norm", rmsnorm(x, every["norm.scale"], config.rms_norm_eps, bugs))
    table = every["embedding" if "unembedding-tied" in bugs else "unembedding"]
    keep("logits", product("td,vd->tv", x, table, bugs=bugs))
    return taps
