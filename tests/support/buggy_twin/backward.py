"""The torch model with the bugs of backward passes built in, apart from the catalogue.

Nothing here comes from ``gptoss_ref.verify``: the faults are made of torch's own means (``detach``,
an autograd function with another backward, a change of the loss or of the gradients afterwards), so
that a diagnosis is tried on numbers that its own mutants did not make. ``FAULTS`` are named as the
catalogue names them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptoss_ref.config import ModelConfig
from gptoss_ref.tracing.trace import Trace
from tests.support.strategies import Arrays
from tests.support.torch_backward import ModelGradients, Ops, model_gradients
from tests.support.torch_twin import wide

AUX = 0.7
"""Coefficient of the load-balancing loss, for the faults that are about it."""


class _Bent(torch.autograd.Function):
    """The identity, whose gradient ``bend`` changes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bend: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.bend = bend
        return x.clone()

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.bend(d), None


def bent(x: Tensor, bend: Callable[[Tensor], Tensor]) -> Tensor:
    return _Bent.apply(x, bend)  # type: ignore[no-any-return,no-untyped-call]


def surrogate(value: Tensor, gradient_of: Tensor) -> Tensor:
    """``value`` in the forward pass, with the gradient of ``gradient_of``."""
    return value.detach() + (gradient_of - gradient_of.detach())


class SinksWithoutGradient(Ops):
    def softmax(self, scores: Tensor, sinks: Tensor, hidden: Tensor) -> Tensor:
        return super().softmax(scores, sinks.detach(), hidden)


class SinksBent(Ops):
    factor = -1.0

    def softmax(self, scores: Tensor, sinks: Tensor, hidden: Tensor) -> Tensor:
        return super().softmax(scores, bent(sinks, lambda d: self.factor * d), hidden)


class SinksTwice(SinksBent):
    factor = 2.0


class SoftmaxWithoutGradient(Ops):
    def softmax(self, scores: Tensor, sinks: Tensor, hidden: Tensor) -> Tensor:
        return super().softmax(bent(scores, torch.zeros_like), sinks, hidden)


class LseDropped(Ops):
    """As torchtitan does it: softmax without a sink, times sigmoid(lse − sink)."""

    def softmax(self, scores: Tensor, sinks: Tensor, hidden: Tensor) -> Tensor:
        scores = wide(scores).masked_fill(hidden, -math.inf)
        lse = torch.logsumexp(scores, -1, keepdim=True).detach()
        sink = wide(sinks).reshape(*scores.shape[:2], 1, 1)
        return (torch.softmax(scores, -1) * torch.sigmoid(lse - sink)).to(sinks.dtype)


class _Softmax(torch.autograd.Function):
    """Softmax with a sink, whose backward takes other weights or leaves out a term."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, sinks: Tensor, hidden: Tensor, kind: Any) -> Tensor:
        right = Ops().softmax(scores, sinks, hidden)
        sink = wide(sinks).reshape(*scores.shape[:2], 1, 1)
        total = torch.logaddexp(
            torch.logsumexp(wide(scores).masked_fill(hidden, -math.inf), -1, keepdim=True), sink
        )
        ctx.save_for_backward(right, torch.exp(sink - total), scores, total, hidden)
        ctx.kind = kind
        return right

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Any:  # type: ignore[override]
        w, share, scores, total, _ = ctx.saved_tensors
        dtype, d, w = d.dtype, wide(d), wide(w)
        d_sinks = (-share[..., 0] * (w * d).sum(-1)).sum(-1).reshape(-1)
        used = _weights_of(ctx.kind, w, share, scores, total)
        delta = 0 if ctx.kind == "no delta" else (used * d).sum(-1, keepdim=True)
        return (used * (d - delta)).to(dtype), d_sinks.to(dtype), None, None


def _weights_of(kind: Any, w: Tensor, share: Tensor, scores: Tensor, total: Tensor) -> Tensor:
    if kind == "no sink":
        return w / (1 - share)
    if isinstance(kind, tuple):  # another window
        window, extra = kind
        length = w.shape[-1]
        age = torch.arange(length)[:, None] - torch.arange(length)
        visible = (age >= 0) & (age < window + extra)
        return torch.where(visible, torch.exp(wide(scores) - total), 0.0).to(w.dtype)
    return w


class _Mix(torch.autograd.Function):
    """weights · v, whose gradient for v takes other weights."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, v: Tensor, used: Tensor) -> Tensor:
        ctx.save_for_backward(v, used)
        return Ops().mix(weights, v)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Any:  # type: ignore[override]
        v, used = ctx.saved_tensors
        d_w = torch.einsum("qkgc,skgc->kgqs", wide(d), wide(v)).to(d.dtype)
        d_v = torch.einsum("kgqs,qkgc->skgc", wide(used), wide(d)).to(d.dtype)
        return d_w, d_v, None


class OtherWeights(Ops):
    """The backward pass recomputes the weights wrongly: for the scores, and for the values."""

    kind: Any = "no sink"
    values = True

    def softmax(self, scores: Tensor, sinks: Tensor, hidden: Tensor) -> Tensor:
        kind = self.kind
        if isinstance(kind, int):
            kind = (self.window, kind) if self.window is not None else "right"
        with torch.no_grad():
            sink = wide(sinks).reshape(*scores.shape[:2], 1, 1)
            masked = wide(scores).masked_fill(hidden, -math.inf)
            total = torch.logaddexp(torch.logsumexp(masked, -1, keepdim=True), sink)
            w = wide(Ops().softmax(scores, sinks, hidden))
            self.used = _weights_of(kind, w, torch.exp(sink - total), scores, total)
        return _Softmax.apply(scores, sinks, hidden, kind)  # type: ignore[no-any-return,no-untyped-call]

    def mix(self, weights: Tensor, v: Tensor) -> Tensor:
        if not self.values:
            return super().mix(weights, v)
        return _Mix.apply(weights, v, self.used.to(v.dtype))  # type: ignore[no-any-return,no-untyped-call]

    def attended(self, *args: Any, **kwargs: Any) -> Tensor:
        self.window = args[5]
        return super().attended(*args, **kwargs)


class NoDelta(OtherWeights):
    kind = "no delta"
    values = False


class WindowMinusOne(OtherWeights):
    kind = -1


class WindowPlusOne(OtherWeights):
    kind = 1


class OneHead(Ops):
    of = "k"

    def spread(self, x: Tensor, group: int, name: str) -> Tensor:
        out = super().spread(x, group, name)
        if name != self.of:
            return out
        last = torch.arange(group) == group - 1
        return bent(out, lambda d: d * last[:, None].to(d.dtype))


class OneHeadOfValues(OneHead):
    of = "v"


class ScaleMissing(Ops):
    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return bent(super().scores(q, k), lambda d: d * math.sqrt(q.shape[-1]))


class RopeSameWay(Ops):
    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        right = super().rope
        return surrogate(right(x, cos, sin), right(x, cos, -sin))


class RopeWithoutGradient(Ops):
    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return bent(super().rope(x, cos, sin), torch.zeros_like)


class RopeInverse(Ops):
    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        out = super().rope(x, cos, sin)
        length = (cos[0] ** 2 + sin[0] ** 2)[0]
        return bent(out, lambda d: d) if length == 1 else _scaled_before(x, out, cos, sin, length)


def _scaled_before(x: Tensor, out: Tensor, cos: Tensor, sin: Tensor, length: Tensor) -> Tensor:
    return surrogate(out, Ops().rope(bent(x, lambda d: d / length), cos, sin))


class NormSecondTerm(Ops):
    def norm(self, x: Tensor, scale: Tensor, eps: float) -> Tensor:
        t = wide(x)
        root = torch.rsqrt((t * t).mean(-1, keepdim=True) + eps).detach()
        return (t * root * wide(scale)).to(x.dtype)


class NormWithoutGradient(Ops):
    def norm(self, x: Tensor, scale: Tensor, eps: float) -> Tensor:
        return super().norm(bent(x, torch.zeros_like), scale, eps)


class NormScaleWithoutGradient(Ops):
    def norm(self, x: Tensor, scale: Tensor, eps: float) -> Tensor:
        return super().norm(x, scale.detach(), eps)


class NormScaleUnnormalised(Ops):
    def norm(self, x: Tensor, scale: Tensor, eps: float) -> Tensor:
        right = super().norm(x, scale.detach(), eps)
        extra = wide(x.detach()) * (scale - scale.detach())
        return right + extra.to(x.dtype)


class ResidualDropped(Ops):
    def residual(self, x: Tensor, t: Tensor) -> Tensor:
        return bent(x, torch.zeros_like) + t


def gated(x: Tensor, alpha: float, limit: float, inner: float, plus: float) -> Tensor:
    """What has the gradient of SwiGLU, clamps apart, with other constants in the derivative."""
    gate, up = x[..., 0::2], x[..., 1::2]
    g, u = gate.detach().clamp(max=limit), up.detach().clamp(-limit, limit)
    s = torch.sigmoid(alpha * g)
    slope = (u + plus) * (s + inner * g * s * (1 - s))
    return slope * gate + g * s * up


class ClampPassed(Ops):
    def swiglu(self, x: Tensor, alpha: float, limit: float) -> Tensor:
        return surrogate(super().swiglu(x, alpha, limit), gated(x, alpha, limit, alpha, 1.0))


class ClampBothSides(Ops):
    def swiglu(self, x: Tensor, alpha: float, limit: float) -> Tensor:
        inside = torch.ones_like(x, dtype=torch.bool)
        inside[..., 0::2] = x[..., 0::2] >= -limit
        return super().swiglu(bent(x, lambda d: d * inside.to(d.dtype)), alpha, limit)


class ClampWrongSide(Ops):
    def swiglu(self, x: Tensor, alpha: float, limit: float) -> Tensor:
        inside = _inside(x, limit)
        passed = bent(x, lambda d: d * (~inside).to(d.dtype))
        return surrogate(super().swiglu(x, alpha, limit), gated(passed, alpha, limit, alpha, 1.0))


def _inside(x: Tensor, limit: float) -> Tensor:
    inside = x.abs() <= limit
    inside[..., 0::2] = x[..., 0::2] <= limit
    return inside


class Constants(Ops):
    inner, plus = 1.0, 1.0

    def swiglu(self, x: Tensor, alpha: float, limit: float) -> Tensor:
        inside = _inside(x, limit)
        passed = bent(x, lambda d: d * inside.to(d.dtype))
        inner = self.inner or alpha
        return surrogate(
            super().swiglu(x, alpha, limit), gated(passed, alpha, limit, inner, self.plus)
        )


class UpWithoutOne(Constants):
    inner, plus = 0.0, 0.0


class Swapped(Ops):
    def swiglu(self, x: Tensor, alpha: float, limit: float) -> Tensor:
        def swap(d: Tensor) -> Tensor:
            return torch.stack([d[..., 1::2], d[..., 0::2]], -1).reshape(d.shape)

        return super().swiglu(bent(x, swap), alpha, limit)


class BoundaryStops(Ops):
    def swiglu(self, x: Tensor, alpha: float, limit: float) -> Tensor:
        at = x.abs() == limit
        at[..., 0::2] = x[..., 0::2] == limit
        return super().swiglu(bent(x, lambda d: d * (~at).to(d.dtype)), alpha, limit)


class RouterWeightMissing(Ops):
    def combined(self, answers: Tensor, shares: Tensor, bias: Tensor, indices: Tensor) -> Tensor:
        right = super().combined(answers.detach(), shares, bias, indices)
        return right + (answers - answers.detach()).sum(1)


class ExpertBiasMissing(Ops):
    def combined(self, answers: Tensor, shares: Tensor, bias: Tensor, indices: Tensor) -> Tensor:
        right = super().combined(answers, shares.detach(), bias, indices)
        without = (answers - bias[indices]).detach()
        return right + torch.einsum("tad,ta->td", without, shares - shares.detach())


class ExpertParallel(Ops):
    count = 0

    def gathered(
        self, equation: str, a: Tensor, weight: Tensor, bias: Tensor, indices: Tensor
    ) -> Tensor:
        right = super().gathered
        if a.ndim == 3:
            return right(equation, a, weight, bias, indices)
        own = (indices < len(weight) // 2)[..., None]
        full = right(equation, a, weight, bias, indices)
        elsewhere = right(equation, a.detach(), weight, bias, indices)
        return torch.where(own, full, elsewhere)


class ExpertsFrozen(Ops):
    def gathered(
        self, equation: str, a: Tensor, weight: Tensor, bias: Tensor, indices: Tensor
    ) -> Tensor:
        return super().gathered(equation, a, weight.detach(), bias, indices)


class _GatheredBias(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, bias: Tensor, indices: Tensor) -> Tensor:
        ctx.count = len(bias)
        return bias[indices]

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Any:  # type: ignore[override]
        return d.sum((0, 1)).expand(ctx.count, -1), None


class UnchosenBiases(Ops):
    def gathered(
        self, equation: str, a: Tensor, weight: Tensor, bias: Tensor, indices: Tensor
    ) -> Tensor:
        y = super().gathered(equation, a, weight, bias.detach() * 0, indices)
        return y + _GatheredBias.apply(wide(bias), indices).to(y.dtype)  # type: ignore[no-untyped-call]


class RouterDetached(Ops):
    def combined(self, answers: Tensor, shares: Tensor, bias: Tensor, indices: Tensor) -> Tensor:
        return super().combined(answers, bent(shares, torch.zeros_like), bias, indices)


class SharesOverAll(Ops):
    def shares(self, logits: Tensor, order: Tensor) -> Tensor:
        over_all = torch.softmax(logits, -1).gather(-1, order)
        return surrogate(super().shares(logits, order), over_all)


class EmbeddingOverwritten(Ops):
    def embedding(self, table: Tensor, tokens: Tensor) -> Tensor:
        last = {int(t): n for n, t in enumerate(tokens)}
        kept = torch.tensor([last[int(t)] == n for n, t in enumerate(tokens)])
        return bent(super().embedding(table, tokens), lambda d: d * kept[:, None].to(d.dtype))


class EmbeddingFrozen(Ops):
    def embedding(self, table: Tensor, tokens: Tensor) -> Tensor:
        return super().embedding(bent(table, torch.zeros_like), tokens)


Loss = Callable[[Tensor, list[Tensor], Tensor, Tensor, int], Tensor]
"""Of logits, router logits, tokens, targets, and the number of experts that a token gets."""
Afterwards = Callable[[ModelGradients], None]


def cross_entropy(
    logits: Tensor, routers: list[Tensor], tokens: Tensor, targets: Tensor, active: int
) -> Tensor:
    return torch.nn.functional.cross_entropy(wide(logits), targets)


def balance(routers: list[Tensor], active: int) -> Tensor:
    """transformers' load-balancing loss, in the dtype of the logits."""
    logits = torch.cat([wide(r) for r in routers])
    chosen = torch.zeros_like(logits).scatter_(1, logits.topk(active)[1], 1.0)
    p = torch.softmax(logits, -1)
    return logits.shape[1] * (chosen.mean(0) * p.mean(0)).sum()


def aux_loss(times: float, *, softmaxed: bool = False, arrives: bool = True) -> Loss:
    def loss(
        logits: Tensor, routers: list[Tensor], tokens: Tensor, targets: Tensor, active: int
    ) -> Tensor:
        given = [r if arrives else r.detach() for r in routers]
        if softmaxed:
            given = [torch.softmax(r, -1) for r in given]
        main = cross_entropy(logits, routers, tokens, targets, active)
        return main + times * balance(given, active)

    return loss


def averaged_over_all(
    logits: Tensor, routers: list[Tensor], tokens: Tensor, targets: Tensor, active: int
) -> Tensor:
    total = torch.nn.functional.cross_entropy(wide(logits), targets, reduction="sum")
    return total / len(targets)


def divided(
    logits: Tensor, routers: list[Tensor], tokens: Tensor, targets: Tensor, active: int
) -> Tensor:
    return cross_entropy(logits, routers, tokens, targets, active) / 4


def not_shifted(
    logits: Tensor, routers: list[Tensor], tokens: Tensor, targets: Tensor, active: int
) -> Tensor:
    return torch.nn.functional.cross_entropy(wide(logits), torch.where(targets < 0, -100, tokens))


def tied(found: ModelGradients) -> None:
    found.weights["embedding"] += found.weights["unembedding"]


def zeroed(*parts: str) -> Afterwards:
    def change(found: ModelGradients) -> None:
        for name, d in found.weights.items():
            if name.endswith(parts):
                d[:] = 0

    return change


def uninitialised(found: ModelGradients) -> None:
    for name, d in found.weights.items():
        if name.endswith(("mlp1_weight", "mlp2_weight")):
            d[~d.reshape(len(d), -1).any(1)] = np.nan


@dataclass(frozen=True)
class Fault:
    """One bug: other operations, another loss, or gradients changed afterwards."""

    ops: type[Ops] = Ops
    loss: Loss = cross_entropy
    afterwards: Afterwards | None = None
    aux: float = 0.0


FAULTS: dict[str, Fault] = {
    "sinks-without-gradient": Fault(SinksWithoutGradient),
    "sinks-gradient-sign": Fault(SinksBent),
    "sinks-gradient-summed-twice": Fault(SinksTwice),
    "softmax-without-gradient": Fault(SoftmaxWithoutGradient),
    "lse-gradient-dropped": Fault(LseDropped),
    "softmax-delta-missing": Fault(NoDelta),
    "backward-without-sink": Fault(OtherWeights),
    "window-edge-in-backward": Fault(WindowMinusOne),
    "window-edge-in-backward/one key more": Fault(WindowPlusOne),
    "key-gradient-of-one-head": Fault(OneHead),
    "value-gradient-of-one-head": Fault(OneHeadOfValues),
    "score-scale-missing-in-backward": Fault(ScaleMissing),
    "rope-turned-the-same-way": Fault(RopeSameWay),
    "rope-without-gradient": Fault(RopeWithoutGradient),
    "rope-inverse-instead-of-transpose": Fault(RopeInverse),
    "norm-second-term-missing": Fault(NormSecondTerm),
    "norm-without-gradient": Fault(NormWithoutGradient),
    "norm-scale-without-gradient": Fault(NormScaleWithoutGradient),
    "norm-scale-gradient-unnormalised": Fault(NormScaleUnnormalised),
    "residual-gradient-dropped": Fault(ResidualDropped),
    "clamp-gradient-passed": Fault(ClampPassed),
    "clamp-gradient-of-both-sides": Fault(ClampBothSides),
    "clamp-gradient-on-the-wrong-side": Fault(ClampWrongSide),
    "alpha-missing-in-derivative": Fault(Constants),
    "up-without-one-in-derivative": Fault(UpWithoutOne),
    "gate-and-up-gradients-swapped": Fault(Swapped),
    "router-weight-missing-in-backward": Fault(RouterWeightMissing),
    "expert-bias-missing-in-router-gradient": Fault(ExpertBiasMissing),
    "expert-parallel-gradient-not-summed": Fault(ExpertParallel),
    "experts-frozen": Fault(ExpertsFrozen),
    "unchosen-experts-uninitialised": Fault(afterwards=uninitialised),
    "biases-of-unchosen-experts-touched": Fault(UnchosenBiases),
    "router-weights-detached": Fault(RouterDetached),
    "router-softmax-over-all-in-backward": Fault(SharesOverAll),
    "router-bias-without-gradient": Fault(afterwards=zeroed("gate_bias")),
    "auxiliary-loss-twice": Fault(loss=aux_loss(2 * AUX), aux=AUX),
    "auxiliary-loss-unscaled": Fault(loss=aux_loss(1.0), aux=AUX),
    "auxiliary-loss-without-gradient": Fault(loss=aux_loss(AUX, arrives=False), aux=AUX),
    "auxiliary-loss-of-softmaxed-logits": Fault(loss=aux_loss(AUX, softmaxed=True), aux=AUX),
    "loss-averaged-over-padding": Fault(loss=averaged_over_all),
    "accumulation-divided-twice": Fault(loss=divided),
    "targets-not-shifted": Fault(loss=not_shifted),
    "unembedding-gradient-added-to-embedding": Fault(afterwards=tied),
    "embedding-gradient-overwritten": Fault(EmbeddingOverwritten),
    "embedding-frozen": Fault(EmbeddingFrozen),
}
RIGHT = {"none": Fault(), "none, balanced": Fault(loss=aux_loss(AUX), aux=AUX)}
CONVENTIONS = {"clamp-boundary-stops": Fault(BoundaryStops)}


def faulty_trace(
    config: ModelConfig,
    arrays: Arrays,
    tokens: list[int],
    targets: list[int],
    fault: Fault,
    policy: str = "float32",
) -> Trace:
    """Forward values and gradients of the model with one fault, as a trace."""
    ids, wanted = torch.tensor(tokens), torch.tensor(targets)
    found = model_gradients(
        config,
        arrays,
        tokens,
        lambda logits, routers: fault.loss(logits, routers, ids, wanted, config.experts_per_token),
        policy,
        fault.ops(),
    )
    if fault.afterwards is not None:
        fault.afterwards(found)
    dtype = np.float64 if policy == "float64" else np.float32

    def stored(values: Any) -> Any:
        return values if values.dtype.kind in "iu" else values.astype(dtype)

    return Trace(
        {
            **{name: stored(values) for name, values in found.forward.items()},
            **{f"grad.{name}": stored(values) for name, values in found.taps.items()},
            **{f"grad.weights.{name}": stored(values) for name, values in found.weights.items()},
        },
        tokens=tokens,
        config=config,
        producer="the faulty twin",
        dtype=policy,
        targets=targets,
        router_aux_loss_coef=fault.aux,
    )
