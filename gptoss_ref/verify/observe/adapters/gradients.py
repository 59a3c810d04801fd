"""Gradients in a dictionary of arrays, and gradients of a live torch model.

``grad.`` and any name of an array of the forward pass is the gradient for that array, in the same
layout. ``grad.weights.`` and the package's name of a weight is the gradient for the weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from gptoss_ref.checkpoint.names import places
from gptoss_ref.config import ModelConfig
from gptoss_ref.errors import TraceError
from gptoss_ref.losses import IGNORED
from gptoss_ref.numerics import Array
from gptoss_ref.tracing.gradients import PREFIX, WEIGHTS
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.verify.observe.adapters.tensors import as_array

Tensors = dict[str, tuple[list[Any], Callable[[list[Any]], Any]]]
"""By name, the tensors whose gradients make up one array, and the function that joins them."""


def of_both_passes(
    read: Callable[..., Trace],
    mapping: Mapping[str, Any],
    tokens: Any,
    config: ModelConfig,
    *,
    names: Mapping[str, Any] | None = None,
    targets: Iterable[int] | Array | None,
    router_aux_loss_coef: float,
    **options: Any,
) -> Trace:
    """A trace from arrays of both passes; ``read`` makes one from arrays of the forward pass.

    Raises:
        TraceError: the error of ``read``, or gradients without targets.
    """
    if targets is None:
        raise TraceError("the arrays hold gradients: expected the targets of their loss (targets=)")
    forward = {name: a for name, a in mapping.items() if not name.startswith(PREFIX)}
    taps = {
        name.removeprefix(PREFIX): a
        for name, a in mapping.items()
        if name.startswith(PREFIX) and not name.startswith(WEIGHTS)
    }
    own = {n: as_array(a, n) for n, a in mapping.items() if n.startswith(WEIGHTS)}
    bare = {name.removeprefix(PREFIX): meaning for name, meaning in (names or {}).items()}
    first = read(forward or taps, tokens, config, names=names if forward else bare, **options)
    kept = {name: first._arrays[name] for name in first} if forward else {}
    skipped = first.skipped if forward else ()
    if taps:
        found = read(taps, tokens, config, names=bare, **options)
        kept |= {PREFIX + name: found._arrays[name] for name in found}
        skipped += tuple(replace(s, name=PREFIX + s.name) for s in found.skipped)
    return Trace(
        kept | own,
        tokens=first.tokens,
        config=config,
        producer=first.producer,
        dtype=options.get("dtype"),
        targets=targets,
        router_aux_loss_coef=router_aux_loss_coef,
        observed=first._observed if forward else None,
        skipped=skipped,
    )


def cross_entropy(torch: Any) -> Callable[[Any, Any], Any]:
    """torch's mean cross entropy of logits (T, V), in float32 or wider, without targets of −100."""

    def loss(logits: Any, targets: Any) -> Any:
        wide = logits if logits.dtype == torch.float64 else logits.float()
        return torch.nn.functional.cross_entropy(wide, targets, ignore_index=IGNORED)

    return loss


def differentiated(
    torch: Any, module: Any, config: ModelConfig, tensors: Tensors, loss: Any
) -> dict[str, Array]:
    """Gradients of a loss for the recorded tensors and for the module's parameters.

    A trainable parameter that the loss does not depend on has the gradient zero; frozen parameters
    are left out.

    Raises:
        TraceError: there is no trainable parameter, or the loss depends on none.
    """
    weights = _weights(module, config)
    parameters = {n: p for n, p in weights.items() if p[0].requires_grad}
    flat = [t for parts, _ in tensors.values() for t in parts]
    unique = {id(p): p for p, _ in parameters.values()}
    if not unique or not loss.requires_grad:
        raise TraceError(
            f"{type(module).__qualname__} has no gradients: expected trainable parameters "
            "(requires_grad) on which the loss depends"
        )
    found = torch.autograd.grad(loss, [*flat, *unique.values()], allow_unused=True)
    of = dict(zip(unique, found[len(flat) :], strict=True))
    arrays: dict[str, Array] = {}
    at = 0
    for name, (parts, assemble) in tensors.items():
        own = found[at : at + len(parts)]
        at += len(parts)
        if all(d is not None for d in own):
            arrays[PREFIX + name] = as_array(assemble(list(own)), PREFIX + name)
    for name, (parameter, take) in parameters.items():
        d = of[id(parameter)]
        d = torch.zeros_like(parameter) if d is None else d
        arrays[WEIGHTS + name] = as_array(take(d), WEIGHTS + name)
    return arrays


def _weights(module: Any, config: ModelConfig) -> dict[str, tuple[Any, Callable[[Any], Any]]]:
    """The parameters by the package's names of the weights, and functions that extract these."""
    named = {_bare(name): p for name, p in module.named_parameters()}
    found: dict[str, tuple[Any, Callable[[Any], Any]]] = {}
    for layout in ("openai", "hf-bfloat16"):
        for place in places(config, layout):
            weight = place.weight.removesuffix(".blocks")
            tensor = place.tensor.removesuffix(".blocks")
            if weight.endswith(".scales") or weight in found:
                continue
            for name in (tensor, tensor.removeprefix("model.")):
                if name in named:
                    found[weight] = named[name], _taker(place.rows, place.transposed)
                    break
    return found


def _taker(rows: tuple[int, int] | None, transposed: bool) -> Callable[[Any], Any]:
    def take(d: Any) -> Any:
        d = d if rows is None else d[rows[0] : rows[1]]
        return d.transpose(-1, -2) if transposed else d

    return take


def _bare(name: str) -> str:
    """A parameter's name without the prefixes of wrappers."""
    for wrapper in ("module.", "_orig_mod.", "base_model.model."):
        name = name.removeprefix(wrapper)
    return name
