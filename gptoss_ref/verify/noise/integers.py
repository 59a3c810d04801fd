"""Products of the experts in integers: rounding the activations is not a bug.

Kernels for MXFP4 multiply integers. Each block of 32 activations is rounded to whole multiples of a
step, so that its largest magnitude becomes the largest integer. The effect, 2e-5 with 16 bits and
5e-3 with 8, is much larger than float32 rounding explains. But it can be distinguished from a bug:
if the activations are rounded in the same way, the numbers agree as float32 numbers do. Kernels may
round a prompt and single tokens differently, so each row is compared with each rule.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from gptoss_ref.numerics import Array
from gptoss_ref.verify.replay.ops import ModelOps, OpContext
from gptoss_ref.weights import MXFP4_BLOCK


@dataclass(frozen=True)
class Integers:
    """A rule for rounding activations to integers.

    Attributes:
        bits: of an integer.
        largest: the integer that the largest magnitude of a block becomes.
        step: dtype in which the step of a block is kept.
        fused: False if the product of a value and the inverse step is rounded to float32 before it
            is rounded to an integer.
        who: the program that uses the rule.
        dominant: a block is not rounded if the square of its largest magnitude, times this, exceeds
            the row's sum of squares; 0: all are rounded.
    """

    bits: int
    largest: int
    step: type[np.floating[Any]]
    fused: bool
    who: str
    dominant: float = 0.0

    @property
    def effect(self) -> float:
        """The largest relative error of a product's row that the rounding can have.

        A block of 32 that is one large value and small ones has about √32 · 0.29 steps.
        """
        return 16 / self.largest

    def rounded(self, x: Array) -> Array:
        """Round activations (n, M), 32 | M, to whole multiples of their block's step."""
        blocks = x.reshape(len(x), -1, MXFP4_BLOCK).astype(np.float32).astype(np.float64)
        top = np.float32(self.largest)
        largest = np.abs(blocks).max(axis=-1, keepdims=True)  # (n, M/32, 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            up = np.where(largest > 0, top / largest.astype(np.float32), np.float32(0))
        scaled = blocks * up  # exact in float64
        whole = np.rint(scaled if self.fused else scaled.astype(np.float32).astype(np.float64))
        step = (largest.astype(np.float32) / top).astype(self.step).astype(np.float64)
        values = whole * step
        if self.dominant:
            energy = np.square(blocks).sum(axis=(1, 2), keepdims=True)  # (n, 1, 1)
            values = np.where(self.dominant * largest**2 > energy, blocks, values)
        found: Array = values.reshape(x.shape)
        return found

    def __str__(self) -> str:
        return (
            f"the experts' products round their activations to {self.bits}-bit integers, in blocks "
            f"of {MXFP4_BLOCK}, as {self.who} do"
        )


FORMS = (
    Integers(16, 32639, np.float32, True, "this package's kernels"),
    Integers(16, 32639, np.float32, True, "this package's kernels for few tokens", 8.0),
    Integers(16, 32767, np.float32, True, "earlier kernels of this package"),
    Integers(16, 32767, np.float32, False, "some kernels"),
    Integers(8, 127, np.float16, False, "ggml's kernels"),
)
"""The known rules."""


def in_integers(ops: ModelOps, form: Integers) -> ModelOps:
    """Return ``ops`` with rounded activations in the products of the experts."""

    def expert_linear(at: OpContext, x: Array, *rest: Any) -> Array:
        y: Array = ops.expert_linear(at, form.rounded(x).astype(at.policy.dtype), *rest)
        return y

    return dataclasses.replace(ops, expert_linear=expert_linear)
