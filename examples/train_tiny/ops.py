"""Operations of the architecture with forward and backward passes that are quick on a CPU.

They compute what gptoss_ref.layers specifies. Products run in bfloat16, sums and exponentials in
float32. Axis letters as in gptoss_ref; N tokens, B rows of a batch, L queries and S keys of a row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

PAD = 256  # rows of each expert are padded to a multiple: few matrix shapes, each compiled once
ALPHA, LIMIT = 1.702, 7.0


@torch.compile(dynamic=True)
def mxfp4_round(w: Tensor) -> Tensor:
    """Round float32 ``w`` (…, M) to MXFP4 in blocks of 32; the result fits bfloat16 exactly.

    The scale is 2^(floor(log2 max) − 2); ties go to the even code, and 6 is the largest value.
    """
    x = w.reshape(*w.shape[:-1], -1, 32)
    largest = x.abs().amax(-1, keepdim=True).clamp(min=1e-30)
    scale = (((largest.view(torch.int32) >> 23) - 2) << 23).view(torch.float32)
    size = (x / scale).abs()
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    rounded = (torch.round(size / step) * step).clamp(max=6.0)
    return (torch.copysign(rounded, x) * scale).reshape(w.shape).to(torch.bfloat16)


class StraightThrough(Function):
    """MXFP4 rounding whose gradient is that of the identity."""

    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        """Return the rounded weights, bfloat16."""
        return mxfp4_round(w)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Hand the gradient on."""
        return grad.float()


@torch.compile(dynamic=True)
def rmsnorm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Normalise float32 ``x`` (N,D); the result is bfloat16."""
    return (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * scale).to(torch.bfloat16)


@torch.compile(dynamic=True)
def rope(x: Tensor, cos: Tensor, sin: Tensor, scale: float) -> Tensor:
    """Rotate ``x`` (N,H,C) by ``cos`` and ``sin`` (N,C/2), halves paired, and multiply by scale."""
    x1, x2 = x.float().chunk(2, -1)
    c, s = cos[:, None] * scale, sin[:, None] * scale
    return torch.cat((x1 * c - x2 * s, x2 * c + x1 * s), -1).to(x.dtype)


@torch.compile(dynamic=True)
def _swiglu(h: Tensor) -> Tensor:
    gate, up = h.float().chunk(2, 1)
    gate = gate.clamp(max=LIMIT)
    up = up.clamp(-LIMIT, LIMIT)
    return (gate * torch.sigmoid(ALPHA * gate) * (up + 1)).to(h.dtype)


@torch.compile(dynamic=True)
def _swiglu_grad(h: Tensor, grad: Tensor) -> Tensor:
    raw_gate, raw_up = h.float().chunk(2, 1)
    grad = grad.float()
    gate = raw_gate.clamp(max=LIMIT)
    up = raw_up.clamp(-LIMIT, LIMIT)
    s = torch.sigmoid(ALPHA * gate)
    d_gate = grad * (up + 1) * (s + ALPHA * gate * s * (1 - s)) * (raw_gate <= LIMIT)
    d_up = grad * gate * s * (raw_up.abs() <= LIMIT)
    return torch.cat((d_gate, d_up), 1).to(h.dtype)


@torch.compile(dynamic=True)
def _weighted_sum(y: Tensor, w: Tensor) -> Tensor:
    """Sum ``y`` (N,A,D) over A with weights ``w`` (N,A)."""
    return sum(y[:, i].float() * w[:, i : i + 1] for i in range(y.shape[1])).to(y.dtype)  # type: ignore[union-attr]


@torch.compile(dynamic=True)
def _plain_sum(y: Tensor) -> Tensor:
    return sum(y[:, i].float() for i in range(y.shape[1])).to(y.dtype)  # type: ignore[union-attr]


@torch.compile(dynamic=True)
def _spread(grad: Tensor, w: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of the experts' outputs and of their weights."""
    grad = grad.float()
    return (grad * w[:, None]).to(y.dtype), (grad * y.float()).sum(1)


class Experts(Function):
    """All experts on all their tokens: tokens sorted by expert, then matrix products by expert.

    ``x`` (N,D), ``w`` and ``indices`` (N,A), ``w1`` (E,2F,D) with the gate's rows first and then
    up's, ``b1`` (E,2F), ``w2`` (E,D,F), ``b2`` (E,D). Returns (N,D).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        indices: Tensor,
        w1: Tensor,
        b1: Tensor,
        w2: Tensor,
        b2: Tensor,
    ) -> Tensor:
        """Gather, two products for each expert, weighted sum."""
        n, a = indices.shape
        flat = indices.reshape(-1)
        order = torch.argsort(flat, stable=True)
        counts = torch.bincount(flat, minlength=len(w1))
        padded = -(-counts // PAD) * PAD
        shift = (padded.cumsum(0) - padded) - (counts.cumsum(0) - counts)
        place = torch.arange(n * a, device=x.device) + shift[flat[order]]  # row of a sorted pair
        row = torch.empty_like(order)
        row[order] = place  # row of each (token, choice)
        sizes = padded.tolist()
        token = place.new_zeros(sum(sizes))
        token[place] = order // a
        weight = w.new_zeros(sum(sizes))  # 0 on padding
        weight[place] = w.reshape(-1)[order]
        xs = x[token]
        h = xs.new_empty(len(token), w1.shape[1])
        y = xs.new_empty(len(token), x.shape[1])
        for e, rows in _slices(sizes):
            torch.addmm(b1[e], xs[rows], w1[e].t(), out=h[rows])
        act = _swiglu(h)
        for e, rows in _slices(sizes):
            torch.addmm(b2[e], act[rows], w2[e].t(), out=y[rows])
        ctx.save_for_backward(weight, row, token, xs, h, act, y, w1, w2)
        ctx.sizes, ctx.shape = sizes, (n, a)
        return _weighted_sum(y[row].view(n, a, -1), w)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The same in reverse; every scatter is a gather by the inverse order."""
        weight, row, token, xs, h, act, y, w1, w2 = ctx.saved_tensors
        n, a = ctx.shape
        gy, gweight = _spread(grad.contiguous()[token], weight, y)
        gact, gxs = torch.empty_like(act), torch.empty_like(xs)
        gw1, gw2 = torch.zeros_like(w1), torch.zeros_like(w2)
        gb1, gb2 = w1.new_zeros(w1.shape[:2]), w2.new_zeros(w2.shape[:2])
        for e, rows in _slices(ctx.sizes):
            torch.mm(gy[rows], w2[e], out=gact[rows])
            torch.mm(gy[rows].t(), act[rows], out=gw2[e])
            torch.sum(gy[rows], 0, out=gb2[e])
        gh = _swiglu_grad(h, gact)
        for e, rows in _slices(ctx.sizes):
            torch.mm(gh[rows], w1[e], out=gxs[rows])
            torch.mm(gh[rows].t(), xs[rows], out=gw1[e])
            torch.sum(gh[rows], 0, out=gb1[e])
        gx = _plain_sum(gxs[row].view(n, a, -1))
        return gx, gweight[row].view(n, a), None, gw1, gb1, gw2, gb2


def _slices(sizes: list[int]) -> list[tuple[int, slice]]:
    out, start = [], 0
    for e, size in enumerate(sizes):
        out.append((e, slice(start, start + size)))
        start += size
    return out


@torch.compile(dynamic=True)
def _softmax(s: Tensor, mask: Tensor, sink: Tensor) -> Tensor:
    """Softmax of scores (B,K,G,L,S) plus mask (B,L,S) with one sink a head, dropped after."""
    x = s.float() + mask[:, None, None]
    extra = sink[None, :, :, None, None]
    top = torch.maximum(x.amax(-1, keepdim=True), extra)
    p = torch.exp(x - top)
    return (p / (p.sum(-1, keepdim=True) + torch.exp(extra - top))).to(s.dtype)


@torch.compile(dynamic=True)
def _softmax_grad(p: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    weights, grad = p.float(), grad.float()
    mean = (weights * grad).sum(-1, keepdim=True)
    sink = 1 - weights.sum(-1, keepdim=True)
    return (weights * (grad - mean)).to(p.dtype), -(sink * mean).sum((0, 3, 4))


class Attention(Function):
    """Grouped-query attention with sinks.

    ``q`` (B,K,G,L,C) already scaled, ``k`` and ``v`` (B,K,S,C), ``mask`` (B,L,S) to be added,
    ``sink`` (K,G). Returns (B,K,G,L,C). The G heads of a group share one matrix product.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, sink: Tensor) -> Tensor:
        """Scores, softmax, mix."""
        b, kv, g, length, c = q.shape
        s = k.shape[2]
        qs = q.reshape(b * kv, g * length, c)
        ks, vs = k.reshape(b * kv, s, c), v.reshape(b * kv, s, c)
        scores = torch.bmm(qs, ks.transpose(1, 2)).view(b, kv, g, length, s)
        p = _softmax(scores, mask, sink).view(b * kv, g * length, s)
        ctx.save_for_backward(qs, ks, vs, p)
        ctx.shape = (b, kv, g, length, c, s)
        return torch.bmm(p, vs).view(b, kv, g, length, c)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The same in reverse, from the kept weights."""
        qs, ks, vs, p = ctx.saved_tensors
        b, kv, g, length, c, s = ctx.shape
        grad = grad.reshape(b * kv, g * length, c)
        gv = torch.bmm(p.transpose(1, 2), grad)
        gp = torch.bmm(grad, vs.transpose(1, 2)).view(b, kv, g, length, s)
        gs, gsink = _softmax_grad(p.view(b, kv, g, length, s), gp)
        gs = gs.view(b * kv, g * length, s)
        gq = torch.bmm(gs, ks).view(b, kv, g, length, c)
        gk = torch.bmm(gs.transpose(1, 2), qs).view(b, kv, s, c)
        return gq, gk, gv.view(b, kv, s, c), None, gsink
