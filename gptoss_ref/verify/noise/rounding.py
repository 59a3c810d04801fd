"""Roundings a producer may have, and policies that imitate them for the noise floor.

The noise floor asks: how far from float64 does a *correct* run with this rounding land? So it must
be no stricter than any correct implementation. Two conventions differ from this package's policies:
float32 producers usually compute rotary angles in float32 too (off by up to p·2⁻²⁴ rad at position
p), and some producers round to float16, for which the package has no policy.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from gptoss_ref.errors import TraceError
from gptoss_ref.numerics import BFLOAT16, FLOAT64, Array, Policy, format_name

UNITS = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Unit roundoff: the largest relative error of one rounding to nearest."""

FINEST_FIRST = tuple(UNITS)


def known(rounding: str | None) -> str:
    """A rounding by its name.

    Raises:
        TraceError: it is None, for what shows no rounding and none was stated, or unknown.
    """
    expected = ", ".join(UNITS)
    if rounding is None:
        raise TraceError(
            "the rounding of OTHER cannot be told from its numbers: state it, one of " + expected
        )
    name = format_name(rounding)
    if name not in UNITS:
        raise TraceError(f"unknown rounding {rounding!r}: expected one of {expected}")
    return name


class Float16(Policy):
    """float32 arithmetic, rounded to float16 wherever the bfloat16 policy rounds to bfloat16."""

    def round(self, x: Array) -> Array:
        with np.errstate(over="ignore"):
            return np.asarray(x).astype(np.float16).astype(np.float32)


_SINGLE = np.dtype(np.float32)
FLOAT16 = Float16("float16", _SINGLE, _SINGLE)
FLOAT32_ANGLES = Policy("float32", _SINGLE, _SINGLE)

POLICIES: dict[str, Policy] = {
    "float64": FLOAT64,
    "float32": FLOAT32_ANGLES,
    "bfloat16": BFLOAT16,
    "float16": FLOAT16,
}


@dataclass(frozen=True)
class Dithered(Policy):
    """Another policy whose every rounding is first pushed by up to half a step, at random.

    One run is one sample of what rounding does. Short prompts have few values, and one sample of
    their error may happen to be small; dithered runs are further samples.
    """

    base: Policy = field(default=FLOAT32_ANGLES)
    generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def round(self, x: Array) -> Array:
        push = self.generator.uniform(-1, 1, np.shape(x)).astype(self.dtype)
        return self.base.round(x * (1 + push * self.dtype.type(UNITS[self.base.name])))


def dithered(rounding: str, seed: int) -> Policy:
    """A policy that samples what this rounding may do; seed 0 is the rounding itself."""
    base = POLICIES[rounding]
    if seed == 0:
        return base
    return Dithered(
        base.name, base.dtype, base.angle_dtype, base, np.random.default_rng([seed, 271])
    )
