"""The error of one operation: the table of tolerances for the tests and for ``compare``.

It has the relative L2 distance of one operation's result to float64, given the same inputs, by
operation (a stage of :data:`gptoss_ref.tracing.taps.STAGES`) and rounding; ``"*"`` is every other
operation.

float64 and float32: the largest errors in 300 random configurations of each test are 6e-16 and 1e-6
(attention, because exp turns the absolute error of a score into a relative one); the other layers
stay below 6e-7. The coarser roundings: four roundings, the largest number of successive roundings
in an operation (SwiGLU), and sixteen if exp lies between scores of size ten and the result.
"""

from __future__ import annotations

from gptoss_ref.verify.noise.rounding import UNITS

TOLERANCES: dict[tuple[str, str], float] = {
    ("*", "float64"): 1e-14,
    ("*", "float32"): 3e-6,
    ("*", "bfloat16"): 4 * UNITS["bfloat16"],
    ("*", "float16"): 4 * UNITS["float16"],
    ("attn.weights", "bfloat16"): 16 * UNITS["bfloat16"],
    ("attn.weights", "float16"): 16 * UNITS["float16"],
    ("attn.mix", "bfloat16"): 16 * UNITS["bfloat16"],
    ("attn.mix", "float16"): 16 * UNITS["float16"],
}

GAINS: dict[str, float] = {"attn.weights": 30.0, "attn.mix": 30.0, "mlp.expert_weights": 30.0}
"""Largest factor by which an operation may magnify the relative error of its inputs.

exp turns an absolute error of a score into a relative error of a weight, so with scores of size ten
it grows by this factor or more. For every other operation, :data:`USUAL_GAIN`.
"""

USUAL_GAIN = 8.0
"""The largest observed factor is 3, for single tokens whose sums nearly cancel."""


def tolerance(operation: str, rounding: str) -> float:
    """Return the largest relative L2 distance to float64 of a correct operation with a rounding.

    >>> tolerance("attn.q", "float32")
    3e-06
    """
    return TOLERANCES.get((operation, rounding), TOLERANCES["*", rounding])


def gain(operation: str) -> float:
    """Return the largest factor by which an operation magnifies its inputs' relative error."""
    return GAINS.get(operation, USUAL_GAIN)
