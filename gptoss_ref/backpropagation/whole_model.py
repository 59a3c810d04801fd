"""The whole model's backward pass: the gradient of a loss for every weight and every tap point.

    out = gr.backward(model, tokens)             # cross entropy of the next token
    out.loss, out.weights["block.3.attn.sinks"], out.taps["block.3.attn.q"]

The forward pass keeps the residual that enters each block, and up to 256 MiB of other activations.
The backward pass goes from the last block to the first: it computes activations that were not kept
again from the block's residual, uses them, and drops them. So memory is that of one block and one
residual a block, and a small model computes nothing twice. The backend decides whether
:mod:`gptoss_ref.gradients` or the kernels compute the gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gptoss_ref.backpropagation.blocks import BackwardPass, Watch, Watcher
from gptoss_ref.errors import GptOssError
from gptoss_ref.gradients import load_balancing
from gptoss_ref.losses import (
    Loss,
    Targets,
    batch_of,
    check_range,
    checked_targets,
    first_non_finite,
)
from gptoss_ref.model import Model
from gptoss_ref.numerics import Array
from gptoss_ref.tracing.taps import gradient_names, matching, nearest


class TapGradients(dict[str, Array]):
    """Gradients by tap point. One that was not asked for costs another pass when it is looked up.

    Raises:
        GptOssError: at a look-up of what is not a tap point with a gradient.
    """

    def __init__(self, found: dict[str, Array], again: Callable[[str], dict[str, Array]]) -> None:
        super().__init__(found)
        self._again = again

    def __missing__(self, name: str) -> Array:
        found = dict(self._again(name))
        if name not in found:
            raise GptOssError(
                f"{name!r} is a pattern: expected the name of one tap point, such as "
                f"{next(iter(found))!r}"
            )
        self[name] = found[name]
        return self[name]


class WeightGradients(dict[str, Array]):
    """Gradients by weight, those that ``wrt`` chose.

    Raises:
        GptOssError: at a look-up of another.
    """

    def __missing__(self, name: str) -> Array:
        chosen = nearest(name, list(self)) if self else ": wrt chose none, or on_weight took them"
        raise GptOssError(f"there is no gradient of the weight {name!r}{chosen}")


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
    weights: WeightGradients
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
            computed without padding, with its rows concatenated along T, as in ``out.taps``.
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
            pattern that matches nothing, a loss function that returns something else, or a loss
            that is not finite: then the message names the first tap point with a value that is not.
        CheckpointError: a chosen expert's scales hold a byte of 255.

    >>> import gptoss_ref as gr
    >>> tiny = gr.load("tiny", backend="numpy")
    >>> out = gr.backward(tiny, [1, 2, 3, 4], wrt="*.sinks", taps="block.3.attn.q")
    >>> out.count, list(out.weights)[3], out.weights["block.3.attn.sinks"].shape
    (3, 'block.3.attn.sinks', (6,))
    >>> out.taps["block.3.attn.q"].shape
    (4, 6, 32)
    """
    if not isinstance(model, Model):
        raise GptOssError(f"{model!r} is no model: expected one that gr.load gives")
    factor = router_aux_loss_coef
    if not isinstance(factor, (int, float, np.number)) or not 0 <= factor < np.inf:
        raise GptOssError(f"router_aux_loss_coef is {factor!r}: expected a number of 0 or more")
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
    run = BackwardPass(
        model,
        ids,
        Watcher(set(wanted_weights), on_weight or found_weights.__setitem__),
        Watcher(set(wanted_taps), on_tap or found_taps.__setitem__),
    )
    residuals, x, routed = run.forward(bool(router_aux_loss_coef))
    value, d_x = run.head(x, loss, counted)
    aux_loss, d_logits = None, None
    if router_aux_loss_coef:
        aux_loss, d_logits = load_balancing(
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
        weights=WeightGradients(
            {name: found_weights[name] for name in wanted_weights if name in found_weights}
        ),
        aux_loss=aux_loss,
    )
