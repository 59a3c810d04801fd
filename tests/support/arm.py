"""A few kernels against their layers: what an emulated ARM machine compiles in ten minutes.

    python -m tests.support.arm

Each shape of portable leaf is among them: loops over slices, the dot product, the register tile,
the online softmax and MXFP4's decoding. Ends with status 1 if one is beyond its bound.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gptoss_ref import kernels, layers
from gptoss_ref.kernels.runtime.isa import path_name
from gptoss_ref.numerics import FLOAT64
from tests.support.distance import relative_l2
from tests.support.kernel_cases import FLOAT_BOUND, bits, gaussian, random_mxfp4

Case = tuple[str, Callable[..., Any], Callable[..., Any], tuple[Any, ...]]


def cases() -> Iterator[Case]:
    """Name, kernel, layer, arguments."""
    rng = np.random.default_rng(0)
    one, nine = gaussian(rng, 1, 96), gaussian(rng, 9, 96)
    weight, packed = bits(gaussian(rng, 7, 96)), random_mxfp4(rng, 7, 96)
    positions = np.arange(70)
    q, k, v = gaussian(rng, 1, 6, 16), gaussian(rng, 70, 2, 16), gaussian(rng, 70, 2, 16)
    attention = (q, k, v, bits(gaussian(rng, 6)), positions[-1:], positions)
    yield "rmsnorm", kernels.rmsnorm, layers.rmsnorm, (nine, weight[0])
    yield "linear bfloat16, 1 token", kernels.linear, layers.linear, (one, weight)
    yield "linear bfloat16, 9 tokens", kernels.linear, layers.linear, (nine, weight)
    yield "attention, 1 query", kernels.attention, layers.attention, attention
    yield "linear MXFP4, 1 token", kernels.linear, layers.linear, (one, packed)
    yield "linear MXFP4, 9 tokens", kernels.linear, layers.linear, (nine, packed)


def main() -> int:
    start, failed = time.perf_counter(), False
    print(
        f"{platform.machine()}, instruction path {path_name()}, bound {FLOAT_BOUND:g}", flush=True
    )
    for name, kernel, layer, arguments in cases():
        error = relative_l2(kernel(*arguments), layer(*arguments, policy=FLOAT64))
        wrong = not error <= FLOAT_BOUND
        failed = failed or wrong
        seconds = time.perf_counter() - start
        print(f"{seconds:5.0f} s  {name:<28}{error:.1e}{'  WRONG' if wrong else ''}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
