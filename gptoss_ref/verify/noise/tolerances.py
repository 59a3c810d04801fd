"""How exact one operation is: the one table of tolerances, for the tests and for compare.

Relative L2 distance of one operation's result to float64, given the same inputs, by operation (a
stage of :data:`gptoss_ref.tracing.taps.STAGES`) and rounding; ``"*"`` is every operation not named.

float64 and float32: the largest seen in 300 random configurations of each test are 6e-16 and 1e-6
(attention: exp turns the scores' absolute error into a relative one); the other layers stay below
6e-7. The coarser roundings: four roundings, the most that any operation makes one after the other
(SwiGLU), and sixteen where exp stands between scores of size ten and the result.
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
"""How many times larger a relative error may leave an operation than it entered it.

exp makes an absolute error of a score a relative one of a weight, so where scores are of size ten
it grows that much and more. For every other operation, :data:`USUAL_GAIN`.
"""

USUAL_GAIN = 8.0
"""The largest seen is 3, of single tokens whose sums nearly cancel."""


def tolerance(operation: str, rounding: str) -> float:
    """Relative L2 distance to float64 within which one operation is right under a rounding.

    >>> tolerance("attn.q", "float32")
    3e-06
    """
    return TOLERANCES.get((operation, rounding), TOLERANCES["*", rounding])


def gain(operation: str) -> float:
    """How much an operation may magnify the relative error of what it is computed from."""
    return GAINS.get(operation, USUAL_GAIN)
