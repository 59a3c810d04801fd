"""Products of the experts in integers: rounding the activations is not a bug.

Kernels for MXFP4 multiply integers. Each block of 32 activations is rounded to whole multiples of a
step, so that its largest magnitude becomes the largest integer. The effect, 2e-5 with 16 bits and
5e-3 with 8, is much larger than float32 rounding explains. But it can be distinguished from a bug:
if the activations are rounded in the same way, the numbers agree as float32 numbers do.
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
        step: dtype in which the step of a block is kept.
        fused: False if the product of a value and the inverse step is rounded to float32 before it
            is rounded to an integer.
        who: the program that uses the rule.
    """

    bits: int
    step: type[np.floating[Any]]
    fused: bool
    who: str

    def rounded(self, x: Array) -> Array:
        """Round activations (n, M), 32 | M, to whole multiples of their block's step."""
        blocks = x.reshape(len(x), -1, MXFP4_BLOCK).astype(np.float32).astype(np.float64)
        top = np.float32((1 << (self.bits - 1)) - 1)
        largest = np.abs(blocks).max(axis=-1, keepdims=True)  # (n, M/32, 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            up = np.where(largest > 0, top / largest.astype(np.float32), np.float32(0))
        scaled = blocks * up  # exact in float64
        whole = np.rint(scaled if self.fused else scaled.astype(np.float32).astype(np.float64))
        step = (largest.astype(np.float32) / top).astype(self.step).astype(np.float64)
        values: Array = (whole * step).reshape(x.shape)
        return values

    def __str__(self) -> str:
        return (
            f"the experts' products round their activations to {self.bits}-bit integers, in blocks "
            f"of {MXFP4_BLOCK}, as {self.who} do"
        )


FORMS = (
    Integers(16, np.float32, True, "this package's kernels"),
    Integers(16, np.float32, False, "some kernels"),
    Integers(8, np.float16, False, "ggml's kernels"),
)
"""The known rules."""


def in_integers(ops: ModelOps, form: Integers) -> ModelOps:
    """Return ``ops`` with rounded activations in the products of the experts."""

    def expert_linear(at: OpContext, x: Array, *rest: Any) -> Array:
        y: Array = ops.expert_linear(at, form.rounded(x).astype(at.policy.dtype), *rest)
        return y

    return dataclasses.replace(ops, expert_linear=expert_linear)
