"""Router and mixture of experts, and what went wrong there."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tests.support.buggy_twin.arithmetic import Bugs, product
from tests.support.buggy_twin.checkpoints import Config


def router(
    config: Config, x: Tensor, w: Mapping[str, Tensor], bugs: Bugs
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (T, E), the chosen experts (T, A) and their weights (T, A)."""
    bias = None if "router-bias-missing" in bugs else w["gate.bias"]  # torchtitan#2258
    logits = product("td,ed->te", x, w["gate.weight"], bias, bugs)
    if "router-bf16" in bugs:  # vllm#58076
        logits = logits.bfloat16().to(x.dtype)
    n = config.experts_per_token
    ordered, order = torch.sort(logits, dim=-1, descending=True, stable=True)
    chosen, shares = order[:, :n], torch.softmax(ordered[:, :n], -1)
    if "softmax-before-topk" in bugs:  # torchtitan#2258: route_norm=False
        shares = torch.softmax(logits, -1).gather(1, chosen)
    if "softmax-renormalised" in bugs:
        shares = torch.softmax(logits, -1).gather(1, chosen)
        shares = shares / shares.sum(-1, keepdim=True)
    if "experts-in-id-order" in bugs:
        chosen, by_id = chosen.sort(-1)
        shares = shares.gather(1, by_id)
    return logits, chosen, shares


def activation(config: Config, x: Tensor, bugs: Bugs) -> Tensor:
    """(..., 2F) -> (..., F)."""
    limit, alpha = config.swiglu_limit, config.swiglu_alpha
    if "swiglu-limit" in bugs:
        limit = 2.5
    if "swiglu-alpha" in bugs:
        alpha = 1.3
    gate, up = x[..., 0::2], x[..., 1::2]
    if bugs & {"gate-up-concatenated", "gate-up-deinterleaved"}:  # vllm#27024, sglang#27201: halves
        gate, up = x.chunk(2, -1)
    if "gate-up-swapped" in bugs:
        gate, up = up, gate
    if not bugs & {"clamp-missing", "clamp-after"}:  # transformers#40197: limit not passed on
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        if "clamp-gate-symmetric" in bugs:
            gate = gate.clamp(min=-limit)
    if "alpha-missing" in bugs:
        alpha = 1.0
    out = gate * torch.sigmoid(alpha * gate)
    if "up-plus-one-missing" not in bugs:  # sglang#39939: beta defaults to 0
        up = up + 1
    out = out * up
    if "clamp-after" in bugs:
        out = out.clamp(-limit, limit)
    return out


def experts(
    x: Tensor,
    chosen: Tensor,
    shares: Tensor,
    w: Mapping[str, Tensor],
    config: Config,
    tap: Callable[[str, Tensor], None],
    bugs: Bugs,
) -> Tensor:
    """(T, D) -> (T, D)."""
    tokens, n = chosen.shape
    gate_up = x.new_empty(tokens, n, 2 * config.intermediate_size)
    act = x.new_empty(tokens, n, config.intermediate_size)
    out = x.new_empty(tokens, n, config.hidden_size)
    bare = torch.empty_like(out)
    for e in range(config.num_experts):
        t, a = (chosen == e).nonzero(as_tuple=True)
        h = product("td,fd->tf", x[t], w["mlp1_weight"][e], bugs=bugs)
        if "gate-up-bias-missing" not in bugs:
            h = h + w["mlp1_bias"][e]
        gate_up[t, a] = h
        act[t, a] = h = activation(config, h, bugs)
        bare[t, a] = h = product("tf,df->td", h, w["mlp2_weight"][e], bugs=bugs)
        if not bugs & {"down-bias-missing", "down-bias-after-sum"}:
            h = h + w["mlp2_bias"][e]
        out[t, a] = h
    tap("gate_up", gate_up)
    tap("swiglu", act)
    tap("expert_out", out)
    if "down-bias-unweighted" in bugs:  # Automodel#2591: the weight is at the activation
        total = product("tad,ta->td", bare, shares, bugs=bugs) + w["mlp2_bias"][chosen].sum(1)
    elif "down-bias-after-sum" in bugs:
        total = product("tad,ta->td", out, shares, bugs=bugs)
        total = total + product("tad,ta->td", w["mlp2_bias"][chosen], shares, bugs=bugs)
    elif "experts-accumulated" in bugs:  # one expert after the other onto the sum, by number
        total = torch.zeros_like(x)
        for e in range(config.num_experts):
            t, a = (chosen == e).nonzero(as_tuple=True)
            total[t] = total[t] + out[t, a] * shares[t, a, None]
    else:
        total = product("tad,ta->td", out, shares, bugs=bugs)
    if "experts-summed-twice" in bugs:  # sglang#37187: reduced over two ranks by both layers
        total = total + total
    return total
