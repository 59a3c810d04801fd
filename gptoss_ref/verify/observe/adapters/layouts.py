"""Layouts: the order of an array's axes in axis letters, and conversions between layouts.

A form lists the axes from the slowest to the fastest, separated by spaces: ``"T KG C"`` is
(T, H, C) with the query heads in the package's order, ``"T KGC"`` the same with one row per token,
``"K G T S"`` the scores of OpenAI's ``sdpa``. The letters are the package's, with H = KG and
with P for the pair gate, up: ``FP`` is interleaved, ``PF`` in halves. Three words are special:
``1`` is an axis of size 1, ``S+1`` the keys and the sink's column, which is dropped, and ``S..``
the keys and padding, which must be zero and is dropped.
"""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np

from gptoss_ref.config import ModelConfig
from gptoss_ref.errors import TraceError
from gptoss_ref.numerics import Array
from gptoss_ref.tracing import taps

_LETTERS = {"H": "KG", "H*C": "KGC", "2F": "FP"}  # those of taps.STAGES that differ

# Other forms that are recognised by their shape, which no other form has.
_ALSO = {
    "attn.q": ("T KGC",),
    "attn.k": ("T KC",),
    "attn.v": ("T KC",),
    "attn.q_rope": ("T KGC",),
    "attn.k_rope": ("T KC",),
    "attn.weights": ("KG T S+1", "K G T S", "K G T S+1"),
    "attn.mix": ("T KG C", "T K G C"),
    "mlp.expert_weights": ("T A 1",),
}


def canonical(tap: str) -> str:
    """The package's form of a tap point.

    >>> canonical("block.0.attn.weights"), canonical("block.3.mlp.gate_up")
    ('KG T S', 'T A FP')
    """
    return " ".join(_LETTERS.get(axis, axis) for axis in taps.axes(tap))


def forms(tap: str) -> tuple[str, ...]:
    """The forms of a tap point that need no ``layout``; the first is the package's."""
    return (canonical(tap), *_ALSO.get(taps.split(tap)[1], ()))


def axis_sizes(config: ModelConfig, length: int, rows: Array | None = None) -> dict[str, int]:
    """The size of every axis letter, for ``length`` tokens or only those at ``rows`` (P,).

    ``s`` is the number of keys up to the last of these rows, as in a decoding step.
    """
    sizes = taps.sizes(config, length)
    one_letter = {axis: size for axis, size in sizes.items() if len(axis) == 1 and axis != "H"}
    some = {} if rows is None else {"T": len(rows), "s": int(rows.max()) + 1}
    return {**one_letter, "G": config.group_size, "P": 2, "1": 1, "s": length, **some}


def check_form(tap: str, form: str) -> None:
    """Raises TraceError unless the form has exactly the letters of the tap point."""
    bare = form.replace("S+1", "S").replace("S..", "S").replace("1", "").replace(" ", "")
    expected = canonical(tap).replace(" ", "")
    if sorted(bare.replace("H", "KG")) != sorted(expected):
        raise TraceError(
            f"layout {form!r} does not fit {tap}: expected the letters of {canonical(tap)!r} "
            f"in some order, such as {forms(tap)[-1]!r}"
        )


def fits(shape: tuple[int, ...], form: str, sizes: dict[str, int]) -> bool:
    """Whether an array of this shape can have that form."""
    axes = form.split()
    return len(shape) == len(axes) and all(
        size > sizes["S"]
        if axis == "S.."
        else size == sizes["S"] + 1
        if axis == "S+1"
        else size == math.prod(sizes[letter] for letter in axis)
        for size, axis in zip(shape, axes, strict=True)
    )


def to_tap(tap: str, values: Array, sizes: dict[str, int], *, form: str | None = None) -> Array:
    """``values`` in the package's form, such as (T, H, C); a batch axis of size 1 is dropped.

    Args:
        tap: the tap point.
        values: in one of the tap point's :func:`forms`, or in ``form``.
        sizes: from :func:`axis_sizes`.
        form: the axes, if they are not in one of the :func:`forms`.

    Raises:
        TraceError: the shape does not fit; the message suggests an order of axes that does.
    """
    accepted = (form.replace("H", "KG"),) if form else forms(tap)
    inner = values
    if not any(fits(inner.shape, f, sizes) for f in accepted) and inner.shape[:1] == (1,):
        inner = inner[0]
    for candidate in accepted:
        if fits(inner.shape, candidate, sizes):
            return _rearranged(inner, candidate, canonical(tap), sizes)
    if sizes["s"] < sizes["S"] and tap.endswith("attn.weights"):  # a step without the later keys
        early = to_tap(tap, values, {**sizes, "S": sizes["s"], "s": sizes["S"]}, form=form)
        return np.pad(early, ((0, 0), (0, 0), (0, sizes["S"] - sizes["s"])))
    batch = values.shape[0] if values.ndim > len(accepted[0].split()) else 1
    if batch > 1 and fits(values.shape[1:], accepted[0], sizes):
        raise TraceError(
            f"shape {values.shape} is a batch of {batch}: expected one prompt, "
            f"({', '.join(accepted[0].split())})"
        )
    raise TraceError(
        f"shape {values.shape} does not fit {tap}: expected {_shapes(accepted, sizes)}"
        f"{_advice(tap, inner.shape, sizes)}"
    )


def _rearranged(values: Array, form: str, target: str, sizes: dict[str, int]) -> Array:
    """``values`` converted from one form to another with the same letters."""
    letters: list[str] = []
    for axis, token in enumerate(form.split()):
        if token in ("S+1", "S.."):
            keys = (slice(None),) * axis
            if token == "S.." and values[(*keys, slice(sizes["S"], None))].any():
                raise TraceError("the columns of later keys are not zero: expected padding there")
            values = values[(*keys, slice(0, sizes["S"]))]
            token = "S"
        letters += [letter for letter in token if letter != "1"]
    values = values.reshape([sizes[letter] for letter in letters])
    values = values.transpose([letters.index(letter) for letter in target.replace(" ", "")])
    return np.ascontiguousarray(
        values.reshape([math.prod(sizes[letter] for letter in token) for token in target.split()])
    )


def _shapes(accepted: tuple[str, ...], sizes: dict[str, int]) -> str:
    """The accepted forms with their sizes, for a message."""
    described = []
    for form in accepted:
        numbers = [
            f"over {sizes['S']}"
            if token == "S.."
            else str(sizes["S"] + 1)
            if token == "S+1"
            else str(math.prod(sizes[letter] for letter in token))
            for token in form.split()
        ]
        described.append(f"{form!r} = ({', '.join(numbers)})")
    return " or ".join(described)


def _advice(tap: str, shape: tuple[int, ...], sizes: dict[str, int]) -> str:
    """The end of an error message: an order of axes or a number of tokens that would fit."""
    for form in forms(tap):
        for order in permutations(form.split()):
            if fits(shape, " ".join(order), sizes):
                return f"; it would fit as layout {' '.join(order)!r}"
    if "G" not in canonical(tap) and fits(shape, canonical(tap).replace("K", "KG"), sizes):
        every = sizes["G"]
        return f"; it repeats each head for {every} query heads: pass [:, ::{every}]"
    for length in {*shape} - {sizes["T"]}:
        if any(fits(shape, f, {**sizes, "T": length, "S": length}) for f in forms(tap)):
            return (
                f"; it has {length} tokens, but the prompt has {sizes['T']}: if it holds only some "
                "of them, name their positions (positions=)"
            )
    return ""
