"""The roundings of other implementations, and policies that imitate them for the noise floor.

The noise floor is the distance from float64 of a *correct* run with this rounding. So it must not
be stricter than any correct implementation. Two conventions differ from this package's policies:
float32 implementations usually compute rotary angles in float32 too (an error of up to p·2⁻²⁴ rad
at position p), and some implementations round to float16, for which the package has no policy.
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
    """Return a rounding by its name.

    Raises:
        TraceError: it is unknown; or it is None, because the numbers show no rounding and the
            caller stated none.
    """
    expected = ", ".join(UNITS)
    if rounding is None:
        raise TraceError(
            "the rounding of OTHER cannot be told from its numbers: state it with rounding= or "
            "--rounding, one of " + expected
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
    """A policy that adds a random shift of up to half a step before each rounding of another.

    One run is one sample of the effect of rounding. Short prompts have few values, and the error of
    one sample may be small by chance; dithered runs are further samples.
    """

    base: Policy = field(default=FLOAT32_ANGLES)
    generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def round(self, x: Array) -> Array:
        push = self.generator.uniform(-1, 1, np.shape(x)).astype(self.dtype)
        return self.base.round(x * (1 + push * self.dtype.type(UNITS[self.base.name])))


def dithered(rounding: str, seed: int) -> Policy:
    """Return a policy that samples the effect of this rounding; seed 0 is the rounding itself."""
    base = POLICIES[rounding]
    if seed == 0:
        return base
    return Dithered(
        base.name, base.dtype, base.angle_dtype, base, np.random.default_rng([seed, 271])
    )
