"""The whole model's backward pass: the gradient of a loss for every weight and every tap point.

    out = gr.backward(model, tokens)             # cross entropy of the next token
    out.loss, out.weights["block.3.attn.sinks"], out.taps["block.3.attn.q"]

The forward pass keeps the residual that enters each block and nothing else. Then the blocks are
gone through from the last to the first: each block's activations are computed again from its
residual, used, and dropped, so memory is that of one block and one residual a block (and of at most
256 MiB of attention's activations, where they spare computing). Which functions compute the
gradients, :mod:`gptoss_ref.gradients` or the kernels, follows the backend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gptoss_ref import gradients
from gptoss_ref.errors import GptOssError
from gptoss_ref.layers.experts import expert_linear
from gptoss_ref.losses import (
    Counted,
    Loss,
    Targets,
    batch_of,
    check_range,
    checked_targets,
    first_non_finite,
)
from gptoss_ref.model import Model
from gptoss_ref.numerics import Array, Policy
from gptoss_ref.tracing.taps import gradient_names, matching
from gptoss_ref.weights import AttentionWeights, ExpertMatrix, MLPWeights, RouterOutput

Watch = Callable[[str, Array], None]
"""Called with a name and a gradient."""

MANY = 256
"""Tokens an expert from which on BLAS on decoded matrices is faster than the expert kernels, which
are made for the few tokens of inference."""

KEPT_VALUES = 1 << 26
"""Activations of attention that are kept from the forward pass, over all blocks: 256 MiB of
float32. What does not fit is computed again."""

HEAD_VALUES = 1 << 25
"""Logits held at a time where nobody wants to see them all: 128 MiB of float32, twice."""


class TapGradients(dict[str, Array]):
    """Gradients by tap point. One that was not asked for costs another pass when it is looked up.

    Raises:
        GptOssError: at a look-up of what is not a tap point with a gradient.
    """

    def __init__(self, found: dict[str, Array], again: Callable[[str], dict[str, Array]]) -> None:
        super().__init__(found)
        self._again = again

    def __missing__(self, name: str) -> Array:
        self[name] = dict(self._again(name))[name]
        return self[name]


@dataclass(frozen=True)
class Gradients:
    """What :func:`backward` returns.

    Attributes:
        loss: the loss that was differentiated, the load-balancing part included.
        count: positions that counted (all, with a loss of the caller's own).
        taps: gradient by tap point, in the tap point's shape, in the order of the forward pass;
            those that were not asked for are computed when they are looked up.
        weights: gradient by weight, in the weight's shape, in the order of the forward pass.
        aux_loss: the load-balancing loss before its coefficient, or None.
    """

    loss: float
    count: int
    taps: TapGradients
    weights: dict[str, Array]
    aux_loss: float | None = None


def backward(
    model: Model,
    tokens: Iterable[int] | Array | Sequence[Iterable[int] | Array],
    targets: Targets = None,
    mask: Targets = None,
    *,
    loss: Loss | None = None,
    wrt: str | Iterable[str] = "*",
    taps: str | Iterable[str] = (),
    router_aux_loss_coef: float = 0.0,
    on_weight: Watch | None = None,
    on_tap: Watch | None = None,
) -> Gradients:
    """Gradients of a loss for the weights and the tap points of ``model``.

    The loss is the cross entropy (natural logarithm) of the targets, averaged over the positions
    that count. Weights in MXFP4 get the gradient of their dequantised values.

    Args:
        tokens: (T,) ids from position 0, or several such rows: a batch, of any lengths. A batch is
            computed without padding, its rows one behind the other along T; so are ``out.taps``.
        targets: (T,), the id that the logits at each position should predict; −100 does not count.
            Rows like those of ``tokens`` for a batch. None: the next token, and the last position
            of a row does not count. (transformers' ``labels`` are not shifted; these are.)
        mask: (T,) booleans (or 0 and 1) like ``targets``: False leaves a position out of the loss.
        loss: instead of targets and mask, a function of the logits (T, V) that returns the loss
            and its gradient (T, V).
        wrt: shell patterns of the weights, named by the fields of ``model.weights``:
            ``"embedding"``, ``"block.*.attn.q_weight"``, ``"*.mlp.mlp?_weight"``; ``()`` for none.
        taps: shell patterns of the tap points whose gradients are kept. Any other is computed by
            another pass when ``out.taps[name]`` is looked up.
        router_aux_loss_coef: factor of the load-balancing loss of transformers; see
            :mod:`gptoss_ref.gradients.router`.
        on_weight: called with each weight's name and gradient as soon as it is known, from the last
            block to the first; the result then keeps none.
        on_tap: the same for tap points.

    Raises:
        TokenError: as calling the model does.
        GptOssError: targets or a mask of other lengths or out of range, no position that counts, a
            pattern that matches nothing, or a loss that is not finite: then the message names the
            first tap point with a value that is not.
        CheckpointError: a chosen expert's scales hold a byte of 255.

    >>> import gptoss_ref as gr
    >>> tiny = gr.load("tiny", backend="numpy")
    >>> out = gr.backward(tiny, [1, 2, 3, 4], wrt="*.sinks", taps="block.3.attn.q")
    >>> out.count, list(out.weights)[3], out.weights["block.3.attn.sinks"].shape
    (3, 'block.3.attn.sinks', (6,))
    >>> out.taps["block.3.attn.q"].shape
    (4, 6, 32)
    """
    rows, batched = batch_of(tokens)
    ids = [model.checked(row) for row in rows]
    wanted_weights = matching(wrt, list(model.weights.named()), "weight")
    wanted_taps = matching(taps, gradient_names(model.config), "tap point with a gradient")
    if loss is not None and (targets is not None or mask is not None):
        raise GptOssError("a loss function and targets or a mask: expected one or the other")
    counted = None
    if loss is None:
        counted = checked_targets(ids, targets, mask, batched)
        check_range(counted, model.config.vocab_size)

    def again(name: str) -> dict[str, Array]:
        options: dict[str, Any] = {"loss": loss, "router_aux_loss_coef": router_aux_loss_coef}
        prompt = ids if batched else ids[0]
        return backward(model, prompt, targets, mask, wrt=(), taps=name, **options).taps

    found_weights: dict[str, Array] = {}
    found_taps: dict[str, Array] = {}
    run = _Pass(
        model,
        ids,
        _Watcher(set(wanted_weights), on_weight or found_weights.__setitem__),
        _Watcher(set(wanted_taps), on_tap or found_taps.__setitem__),
    )
    residuals, x, routed = run.forward(bool(router_aux_loss_coef))
    value, d_x = run.head(x, loss, counted)
    aux_loss, d_logits = None, None
    if router_aux_loss_coef:
        aux_loss, d_logits = run.rules.load_balancing(
            [r.logits for r in routed], [r.indices for r in routed], policy=model.policy
        )
        value += router_aux_loss_coef * aux_loss
    if not np.isfinite(value):
        raise GptOssError(f"the loss is {value}: {first_non_finite(model, ids)}")
    for n in reversed(range(run.lowest, len(residuals))):
        extra = None if d_logits is None else router_aux_loss_coef * d_logits[n]
        d_x = run.block(n, residuals.pop(), d_x, extra)
    if run.lowest == 0:
        run.taps.give("embedding", d_x)
        run.embedding(d_x)
    return Gradients(
        loss=float(value),
        count=sum(map(len, ids)) if counted is None else int(counted.mask.sum()),
        taps=TapGradients(
            {name: found_taps[name] for name in wanted_taps if name in found_taps}, again
        ),
        weights={name: found_weights[name] for name in wanted_weights if name in found_weights},
        aux_loss=aux_loss,
    )


class _Watcher:
    """Hands on the gradients that somebody wants."""

    def __init__(self, wanted: set[str], keep: Watch) -> None:
        self.wanted, self.keep = wanted, keep

    def give(self, name: str, gradient: Array | None) -> None:
        if gradient is not None and name in self.wanted:
            self.keep(name, gradient)

    def any(self, prefix: str, *names: str) -> bool:
        return any(prefix + name in self.wanted for name in names)


class _Attention(NamedTuple):
    """The activations of a block's attention that its gradients need."""

    norm: Array  # (T, D)
    q: Array  # (T, H, C), turned
    k: Array  # (T, K, C), turned
    v: Array  # (T, K, C)
    mix: Array  # (T, H*C)
    residual: Array  # (T, D), with what attention added


class _Pass:
    """One forward and backward pass over a batch, whose rows lie one behind the other along T."""

    def __init__(self, model: Model, ids: list[Array], weights: _Watcher, taps: _Watcher) -> None:
        self.model, self.backend, self.policy = model, model.backend, model.policy
        self.weights, self.taps = weights, taps
        self.rules = _rules(model)
        dense = sum(map(len, ids)) * model.config.experts_per_token >= MANY * (
            model.config.num_experts
        )
        self.expert_layer = self.rules.forward_experts if dense else self.backend.experts
        self.ids = np.concatenate(ids)
        ends = np.cumsum([len(row) for row in ids])
        self.rows = [slice(end - len(row), end) for row, end in zip(ids, ends, strict=True)]
        self.positions = np.concatenate([np.arange(len(row)) for row in ids])
        self.tables = model._rope_tables(self.positions)
        self.kept: dict[int, _Attention] = {}
        self.lowest = _lowest(weights.wanted | taps.wanted, model.config.num_hidden_layers)

    def forward(self, keep_routing: bool) -> tuple[list[Array], Array, list[RouterOutput]]:
        """The residual that enters each block, the last one, and the routing if it is asked for."""
        weights, r = self.model.weights, self.policy.round
        x = self.backend.embedding(self.ids, weights.embedding, policy=self.policy)
        residuals, routing = [], []
        room = KEPT_VALUES
        for n, block in enumerate(weights.blocks):
            residuals.append(x)
            kept = self.attention(n, x, block.attn)
            room -= sum(a.size for a in kept)
            if room >= 0 and n >= self.lowest:
                self.kept[n] = kept
            x = kept.residual
            norm, routed = self.routed(x, block.mlp)
            x = r(x + self.experts(norm, routed, block.mlp))
            if keep_routing:
                routing.append(routed)
        return residuals, x, routing

    def attention(self, n: int, x: Array, w: AttentionWeights) -> _Attention:
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
        return _Attention(norm, q, k, v, mix, policy.round(x + out))

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

    def experts(self, norm: Array, routed: RouterOutput, w: MLPWeights) -> Array:
        matrices = (w.mlp1_weight, w.mlp1_bias, w.mlp2_weight, w.mlp2_bias)
        config = self.model.config
        return self.expert_layer(
            norm,
            routed.indices,
            routed.weights,
            *matrices,
            alpha=config.swiglu_alpha,
            limit=config.swiglu_limit,
            policy=self.policy,
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
                part, d_logits = _called(loss, logits)
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
        kept = self.kept.pop(n, None) or self.attention(n, x, block.attn)
        d_residual = self.mlp_gradients(n, kept.residual, d_x, d_router, block.mlp)
        return self.attention_gradients(n, x, kept, d_residual, block.attn)

    def mlp_gradients(
        self, n: int, x: Array, d_x: Array, d_router: Array | None, w: MLPWeights
    ) -> Array:
        policy, config, at = self.policy, self.model.config, f"block.{n}.mlp."
        norm, routed = self.routed(x, w)
        self.taps.give(at + "residual", d_x)
        self.taps.give(at + "out", d_x)
        stages = ("gate_up", "swiglu", "expert_out")
        names = ("mlp1_weight", "mlp1_bias", "mlp2_weight", "mlp2_bias")
        found = self.rules.experts(
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
        )
        for name in names:
            self.weights.give(at + name, getattr(found, "d_" + name))
        self.taps.give(at + "expert_weights", found.d_weights)
        router = self.rules.router(
            found.d_weights,
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
        d_norm = policy.round(found.d_x + router.d_x)
        self.taps.give(at + "norm", d_norm)
        d_residual, d_scale = self.norm_gradients(d_norm, x, w.norm_scale)
        self.weights.give(at + "norm_scale", d_scale)
        return policy.round(d_x + d_residual)

    def attention_gradients(
        self, n: int, x: Array, kept: _Attention, d_x: Array, w: AttentionWeights
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
        self, n: int, kept: _Attention, d_mix: Array, w: AttentionWeights
    ) -> tuple[Array, ...]:
        """Gradients of q, k (both turned) and v, row by row of the batch."""
        policy, window = self.policy, self.model.config.window(n)
        name = f"block.{n}.attn.weights"
        found = []
        for at in self.rows:
            if self.taps.any(name, ""):
                if len(self.rows) > 1:
                    raise GptOssError(f"{name} of a batch has no one shape: expected one row")
                self.taps.give(name, gradients.attention_weights(d_mix, kept.v, policy=policy))
            found.append(
                self.rules.attention(
                    d_mix[at],
                    kept.q[at],
                    kept.k[at],
                    kept.v[at],
                    w.sinks,
                    *self.where(at),
                    window,
                    policy=policy,
                )
            )
        d_sinks = policy.round(sum(part.d_sinks for part in found))
        self.weights.give(f"block.{n}.attn.sinks", d_sinks)
        if len(found) == 1:
            return found[0].d_q, found[0].d_k, found[0].d_v
        return tuple(
            np.concatenate([getattr(part, name) for part in found])
            for name in ("d_q", "d_k", "d_v")
        )

    def embedding(self, d_x: Array) -> None:
        if self.weights.any("", "embedding"):
            vocabulary = self.model.config.vocab_size
            d = self.rules.embedding(d_x, self.ids, vocabulary, policy=self.policy)
            self.weights.give("embedding", d)


def _rules(model: Model) -> Any:
    """What computes the gradients: the kernels there are for the ``numba`` backend, else NumPy."""
    named = {name: getattr(gradients, name) for name in gradients.__all__}
    if model.backend.name != "numba":
        return SimpleNamespace(**named, forward_experts=model.backend.experts)
    from gptoss_ref.kernels import gradients as kernels
    from gptoss_ref.kernels import swiglu

    named["attention"] = kernels.attention
    named["experts"] = partial(gradients.experts, activation=kernels.swiglu, forward=swiglu)
    return SimpleNamespace(**named, forward_experts=partial(_many_tokens, swiglu))


def _many_tokens(
    activation: Callable[..., Array],
    x: Array,
    indices: Array,
    weights: Array,
    mlp1_weight: ExpertMatrix,
    mlp1_bias: Array,
    mlp2_weight: ExpertMatrix,
    mlp2_bias: Array,
    *,
    alpha: float,
    limit: float,
    policy: Policy,
) -> Array:
    """The experts' sum (T, D) by NumPy's products on decoded matrices; see MANY."""
    out = np.zeros_like(x)
    for expert in np.unique(indices):
        e = int(expert)
        t, a = np.nonzero(indices == e)
        gate_up = expert_linear(x[t], mlp1_weight[e], mlp1_bias[e], policy)
        activated = activation(gate_up, alpha, limit, policy=policy)
        out[t] += weights[t, a, None] * expert_linear(
            activated, mlp2_weight[e], mlp2_bias[e], policy
        )
    return out


def _lowest(names: Iterable[str], blocks: int) -> int:
    """The first block of which a gradient is wanted, or whose gradients lead to one."""
    lowest = blocks
    for name in names:
        if name == "embedding":
            return 0
        if name.startswith("block."):
            lowest = min(lowest, int(name.split(".")[1]))
    return lowest


def _called(loss: Loss, logits: Array) -> tuple[float, NDArray[Any]]:
    """What the caller's loss function says, if it can be used."""
    answer = loss(logits)
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise GptOssError(
            f"the loss function returned {type(answer).__name__}: expected a pair "
            f"of the loss and its gradient {logits.shape}"
        )
    value, d_logits = answer
    d_logits = np.asarray(d_logits, logits.dtype)
    if d_logits.shape != logits.shape:
        raise GptOssError(
            f"the loss function returned a gradient of shape {d_logits.shape}: expected that of "
            f"the logits, {logits.shape}"
        )
    return float(value), d_logits
