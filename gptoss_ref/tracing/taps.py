"""Tap points: the named intermediate arrays of a pass, and their shapes.

A name is ``embedding``, ``norm``, ``logits``, or ``block.{n}.{stage}`` with the stages of
:data:`STAGES`. Axis letters are those of :mod:`gptoss_ref.layers`; in a trace, which starts at
position 0, S equals T.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from itertools import permutations

from gptoss_ref.config import ModelConfig
from gptoss_ref.errors import TraceError

Axes = tuple[str, ...]
"""Axis letters, such as ``("T", "H", "C")``; the last may be a product, ``"2F"``."""

STAGES: dict[str, Axes] = {
    "attn.norm": ("T", "D"),
    "attn.q": ("T", "H", "C"),
    "attn.k": ("T", "K", "C"),
    "attn.v": ("T", "K", "C"),
    "attn.q_rope": ("T", "H", "C"),
    "attn.k_rope": ("T", "K", "C"),
    "attn.weights": ("H", "T", "S"),
    "attn.mix": ("T", "H*C"),
    "attn.out": ("T", "D"),
    "attn.residual": ("T", "D"),
    "mlp.norm": ("T", "D"),
    "mlp.router_logits": ("T", "E"),
    "mlp.expert_indices": ("T", "A"),
    "mlp.expert_weights": ("T", "A"),
    "mlp.gate_up": ("T", "A", "2F"),
    "mlp.swiglu": ("T", "A", "F"),
    "mlp.expert_out": ("T", "A", "D"),
    "mlp.out": ("T", "D"),
    "mlp.residual": ("T", "D"),
}
"""The tap points of each block and their axes, in order of computation."""

BEFORE: dict[str, Axes] = {"embedding": ("T", "D")}
AFTER: dict[str, Axes] = {"norm": ("T", "D"), "logits": ("T", "V")}

TAPS: dict[str, Axes] = {
    **BEFORE,
    **{"block.{n}." + stage: axes for stage, axes in STAGES.items()},
    **AFTER,
}
"""Every tap point in order of computation; ``{n}`` stands for the block."""


def names(config: ModelConfig) -> list[str]:
    """The tap points of a model, in order of computation.

    >>> from gptoss_ref.config import GPT_OSS_20B
    >>> len(names(GPT_OSS_20B)), names(GPT_OSS_20B)[:3]
    (459, ['embedding', 'block.0.attn.norm', 'block.0.attn.q'])
    """
    blocks = [f"block.{n}.{stage}" for n in range(config.num_hidden_layers) for stage in STAGES]
    return [*BEFORE, *blocks, *AFTER]


def gradient_names(config: ModelConfig) -> list[str]:
    """The tap points that have a gradient: all but the expert indices, which are integers."""
    return [name for name in names(config) if not name.endswith("expert_indices")]


def split(name: str) -> tuple[int | None, str]:
    """Block number (None outside the blocks) and stage of a tap point.

    >>> split("block.3.attn.q"), split("logits")
    ((3, 'attn.q'), (None, 'logits'))

    Raises:
        TraceError: no model has such a tap point.
    """
    if name in BEFORE or name in AFTER:
        return None, name
    prefix, _, rest = name.partition(".")
    number, _, stage = rest.partition(".")
    if prefix == "block" and number.isdecimal() and stage in STAGES and str(int(number)) == number:
        return int(number), stage
    known = [*BEFORE, *AFTER, *(f"block.{number or 0}.{stage}" for stage in STAGES)]
    raise TraceError(f"unknown tap point {name!r}{nearest(name, known)}")


def axes(name: str) -> Axes:
    """The axis letters of a tap point.

    >>> axes("block.0.attn.weights")
    ('H', 'T', 'S')
    """
    _, stage = split(name)
    return STAGES.get(stage) or BEFORE.get(stage) or AFTER[stage]


def sizes(config: ModelConfig, length: int) -> dict[str, int]:
    """The size of every axis that :data:`TAPS` names, for ``length`` tokens."""
    heads, channels, width = config.num_attention_heads, config.head_dim, config.intermediate_size
    return {
        "T": length,
        "S": length,
        "D": config.hidden_size,
        "H": heads,
        "K": config.num_key_value_heads,
        "C": channels,
        "H*C": heads * channels,
        "E": config.num_experts,
        "A": config.experts_per_token,
        "F": width,
        "2F": 2 * width,
        "V": config.vocab_size,
    }


def expected_shape(name: str, config: ModelConfig, length: int) -> tuple[int, ...]:
    """The shape of a tap point in a trace of ``length`` tokens."""
    size = sizes(config, length)
    return tuple(size[axis] for axis in axes(name))


def check_name(name: str, config: ModelConfig) -> None:
    """Raises TraceError, with the nearest known name, unless this model has the tap point."""
    if name not in (known := names(config)):
        raise TraceError(f"unknown tap point {name!r}{nearest(name, known)}")


def check_shape(name: str, shape: Sequence[int], config: ModelConfig, length: int) -> None:
    """Raises TraceError, with a way to fix it, unless the shape is the expected one."""
    expected = expected_shape(name, config, length)
    if tuple(shape) != expected:
        letters = ", ".join(axes(name))
        raise TraceError(
            f"{name} has shape {tuple(shape)}: expected ({letters}) = {expected}"
            f"{_remedy(tuple(shape), expected, axes(name))}"
        )


def select(patterns: str | Iterable[str], config: ModelConfig) -> list[str]:
    """The tap points that match at least one shell pattern, in order of computation.

    ``*`` also matches dots: ``"*.residual"`` is every residual, ``"block.0.*"`` a whole block.

    Raises:
        TraceError: a pattern matches nothing.
    """
    return matching(patterns, names(config), "tap point")


def matching(patterns: str | Iterable[str], known: Sequence[str], what: str) -> list[str]:
    """The ``known`` names that match at least one shell pattern, in the order of ``known``.

    Raises:
        TraceError: a pattern matches nothing; ``what`` is the word for the names in the message.
    """
    chosen: set[str] = set()
    several = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(several, Iterable) or not all(isinstance(p, str) for p in several):
        raise TraceError(f"{patterns!r} is no pattern of a {what}: expected text, or several")
    for pattern in several:
        matches = [name for name in known if fnmatchcase(name, pattern)]
        if not matches:
            raise TraceError(f"no {what} matches {pattern!r}{nearest(pattern, known)}")
        chosen.update(matches)
    return [name for name in known if name in chosen]


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of an error message: the nearest known name, or the list of known names."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f": did you mean {close[0]!r}?"
    short = dict.fromkeys(re.sub(r"\bblock\.\d+\.", "block.{n}.", each) for each in known)
    return f": expected one of {', '.join([*short][:40])}"


def _remedy(shape: tuple[int, ...], expected: tuple[int, ...], letters: Axes) -> str:
    """The end of an error message: an obvious way to get the expected shape, if there is one."""
    inner = shape
    lead = ""
    while len(inner) > len(expected) and inner[0] == 1:
        inner, lead = inner[1:], "; drop the leading axis of size 1"
    if inner == expected:
        return lead
    for order in permutations(range(len(inner))):
        if tuple(inner[i] for i in order) == expected:
            return f"{lead}; transposing the axes as {order} would fit"
    if letters == ("H", "T", "S") and inner == (*expected[:2], expected[2] + 1):
        return f"{lead}; the last column is the sink's: drop it"
    tokens = letters.index("T")
    if len(inner) == len(expected) and inner[tokens] != expected[tokens]:
        rest = inner[:tokens] + inner[tokens + 1 :]
        if rest == expected[:tokens] + expected[tokens + 1 :]:
            return f"{lead}; it has {inner[tokens]} tokens, but the trace has {expected[tokens]}"
    if math.prod(inner) == math.prod(expected) and inner[:1] == expected[:1]:
        return f"{lead}; reshaping it to {expected} would fit"
    return ""
