"""Small models on which the faults of backward passes show, and their traces."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from gptoss_ref.config import ModelConfig
from gptoss_ref.model import Model
from gptoss_ref.tracing.trace import Trace
from tests.support.buggy_twin.backward import FAULTS, RIGHT, Fault, faulty_trace
from tests.support.strategies import Arrays, as_weights, random_arrays, random_tokens, small_config
from tests.support.torch_backward import Ops

SIZES: dict[str, dict[str, Any]] = {
    "two blocks": {"layers": 2, "d_model": 19, "d_ff": 11, "window": 5, "n_chosen": 5},
    "three blocks": {"layers": 3, "d_model": 23, "d_ff": 13, "window": 7, "n_chosen": 5},
}


class BackwardCase(NamedTuple):
    """A model, and what it is trained on."""

    config: ModelConfig
    arrays: Arrays
    tokens: list[int]
    targets: list[int]
    model: Model


@cache
def backward_case(size: str = "two blocks", seed: int = 0) -> BackwardCase:
    """Some windows; clamps hit; a token twice; some positions masked; an unchosen expert."""
    config = small_config(**SIZES[size])
    arrays = random_arrays(config, 3 + seed, clamp=6.0)
    for n in range(config.num_hidden_layers):
        at = f"block.{n}.mlp.mlp1_"  # a gate and an up at the clamp itself, and gates far below
        arrays[at + "weight"][:, :2] = 0
        arrays[at + "bias"][:, :2] = 7.0
        arrays[at + "bias"][:, 4] = -9.0
        arrays[f"block.{n}.mlp.gate.bias"][8] = -20
    tokens = random_tokens(config, 22, 1 + seed)
    tokens[9] = tokens[3]
    targets = [*tokens[1:], -100]
    targets[2] = targets[11] = -100
    weights = as_weights(arrays, "float64")
    return BackwardCase(
        config, arrays, tokens, targets, Model(config, weights, policy="float64", backend="numpy")
    )


def backward_trace(
    case: BackwardCase, fault: Fault | str = "none", rounding: str = "float32"
) -> Trace:
    """What the twin with that fault, or with the one of ``FAULTS`` of that name, computes."""
    if isinstance(fault, str):
        fault = {**FAULTS, **RIGHT}[fault]
    return faulty_trace(case.config, case.arrays, case.tokens, case.targets, fault, rounding)


def together(one: str, other: str) -> Fault | None:
    """Both faults at once, or None if they change the same operation or both change the loss."""
    a, b = FAULTS[one], FAULTS[other]
    if _changed(a) & _changed(b):
        return None
    ops = type("Both", tuple({a.ops, b.ops} - {Ops}) or (Ops,), {})
    of_loss = a if a.loss is not Fault().loss else b
    afterwards = a.afterwards or b.afterwards
    return Fault(ops, of_loss.loss, afterwards, of_loss.aux)


def _changed(fault: Fault) -> set[str]:
    """Operations of the model, or what else a fault changes."""
    changed = {
        name
        for class_ in fault.ops.__mro__
        if class_ not in (Ops, object)
        for name in vars(class_)
        if hasattr(Ops, name) and not name.startswith("__")
    }
    if fault.loss is not Fault().loss:
        changed.add("loss")
    if fault.afterwards is not None:
        changed.add("afterwards")
    return changed
