"""Gradients in a trace: their names and axes.

``grad.`` and the name of a tap point is the gradient of the loss with respect to that array:
``grad.block.3.attn.q``. ``grad.weights.`` and the name of a weight, by the fields of
``model.weights``, is the gradient with respect to the weight: ``grad.weights.block.3.attn.sinks``.
"""

from __future__ import annotations

from gptoss_ref.config import ModelConfig
from gptoss_ref.tracing import taps
from gptoss_ref.tracing.taps import Axes

PREFIX = "grad."
WEIGHTS = "grad.weights."

WEIGHT_STAGES: dict[str, Axes] = {
    "attn.norm_scale": ("D",),
    "attn.q_weight": ("H*C", "D"),
    "attn.q_bias": ("H*C",),
    "attn.k_weight": ("K*C", "D"),
    "attn.k_bias": ("K*C",),
    "attn.v_weight": ("K*C", "D"),
    "attn.v_bias": ("K*C",),
    "attn.sinks": ("H",),
    "attn.out_weight": ("D", "H*C"),
    "attn.out_bias": ("D",),
    "mlp.norm_scale": ("D",),
    "mlp.gate_weight": ("E", "D"),
    "mlp.gate_bias": ("E",),
    "mlp.mlp1_weight": ("E", "2F", "D"),
    "mlp.mlp1_bias": ("E", "2F"),
    "mlp.mlp2_weight": ("E", "D", "F"),
    "mlp.mlp2_bias": ("E", "D"),
}
"""The weights of each block, with their axes."""

WEIGHT_ENDS: dict[str, Axes] = {
    "embedding": ("V", "D"),
    "norm_scale": ("D",),
    "unembedding": ("V", "D"),
}
"""The weights outside the blocks."""


def is_gradient(name: str) -> bool:
    """Whether a name is that of a gradient."""
    return name.startswith(PREFIX)


def of_tap(name: str) -> str | None:
    """The tap point of a gradient; None for the gradient of a weight.

    >>> of_tap("grad.block.3.attn.q"), of_tap("grad.weights.embedding")
    ('block.3.attn.q', None)
    """
    return None if name.startswith(WEIGHTS) else name.removeprefix(PREFIX)


def names(config: ModelConfig) -> list[str]:
    """Every gradient of a model: of the tap points, then of the weights."""
    blocks = range(config.num_hidden_layers)
    weights = [f"block.{n}.{stage}" for n in blocks for stage in WEIGHT_STAGES]
    return [
        *(PREFIX + name for name in taps.gradient_names(config)),
        *(WEIGHTS + name for name in ("embedding", *weights, "norm_scale", "unembedding")),
    ]


def split(name: str) -> tuple[int | None, str]:
    """Block (None outside the blocks) and stage of a gradient, or of a tap point.

    >>> split("grad.block.3.attn.q"), split("grad.weights.block.0.attn.sinks")
    ((3, 'grad.attn.q'), (0, 'grad.weights.attn.sinks'))
    """
    if not is_gradient(name):
        return taps.split(name)
    prefix = WEIGHTS if name.startswith(WEIGHTS) else PREFIX
    rest = name.removeprefix(prefix)
    if not rest.startswith("block."):
        return None, name
    _, number, stage = rest.split(".", 2)
    return int(number), prefix + stage


def axes(name: str) -> Axes:
    """The axis letters of a gradient.

    >>> axes("grad.block.0.attn.q"), axes("grad.weights.block.0.attn.sinks")
    (('T', 'H', 'C'), ('H',))
    """
    tap = of_tap(name)
    if tap is not None:
        return taps.axes(tap)
    stage = split(name)[1].removeprefix(WEIGHTS)
    return WEIGHT_STAGES.get(stage) or WEIGHT_ENDS[stage]


def expected_shape(name: str, config: ModelConfig, length: int) -> tuple[int, ...]:
    """The shape of a gradient in a trace of ``length`` tokens."""
    size = taps.sizes(config, length)
    size["K*C"] = config.num_key_value_heads * config.head_dim
    return tuple(size[axis] for axis in axes(name))
