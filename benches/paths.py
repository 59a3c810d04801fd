"""Every kernel that multiplies, on every instruction path of this CPU, beside the NumPy layer.

    python -m benches.paths [--write]      a minute or two; `--write` puts the table into
                                           docs/performance.md, at the marks of this class of CPU

A cell is the rate in GFLOP/s and, behind it, how many times as fast as the NumPy layer the kernel
is: the best of some calls each, all in one process, on the threads that kernels and NumPy use now
(OPENBLAS_NUM_THREADS=1 NUMBA_NUM_THREADS=1 for one). Attention is of 64 heads on 8, C = 64, causal;
experts are E = 8, A = 2, D = F = 960; linear layers are 2880 to 512.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import llvmlite.binding
import numpy as np

from benches.page import write_page
from gptoss_ref import kernels, layers
from gptoss_ref.kernels.runtime.isa import available_paths, instructions
from gptoss_ref.kernels.runtime.threads import current_threads
from gptoss_ref.weights import MXFP4

TOKENS = (1, 4, 16, 128, 512)
SECONDS = 0.15
"""A cell is measured for about so long."""


def best(function: Callable[[], object]) -> float:
    """Least seconds of a call."""
    function()
    least, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        function()
        least = min(least, time.perf_counter() - start)
    return least


def _mxfp4(rng: np.random.Generator, *shape: int) -> MXFP4:
    *lead, inputs = shape
    blocks = rng.integers(0, 256, (*lead, inputs // 32, 16), np.uint8)
    return MXFP4(blocks, rng.integers(118, 128, (*lead, inputs // 32)).astype(np.uint8))


def cases() -> Iterator[tuple[str, str, float, tuple[Any, ...]]]:
    """Name of a row, kernel, floating-point operations, arguments."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape, np.float32)

    floats = normal(512, 2880)
    bits = (floats.view(np.uint32) >> 16).astype(np.uint16)
    stored = {"bfloat16": bits, "float32": floats, "MXFP4": _mxfp4(rng, 512, 2880)}
    first, second = _mxfp4(rng, 8, 1920, 960), _mxfp4(rng, 8, 960, 960)
    biases = (normal(8, 1920), normal(8, 960))
    for tokens in TOKENS:
        x = normal(tokens, 2880)
        for name, weight in stored.items():
            work = 2.0 * tokens * weight.shape[0] * weight.shape[1]
            yield f"linear {name}, {tokens}", "linear", work, (x, weight)
        indices = np.stack([rng.permutation(8)[:2] for _ in range(tokens)])
        weights = np.full(indices.shape, 0.5, np.float32)
        mixed = (normal(tokens, 960), indices, weights, first, biases[0], second, biases[1])
        yield f"experts, {tokens}", "experts", 2.0 * tokens * 2 * 3 * 960 * 960, mixed
        for keys in (2048,) if tokens > 1 else (2048, 32768):
            q, k, v = normal(tokens, 64, 64), normal(keys, 8, 64), normal(keys, 8, 64)
            where = np.arange(keys)
            seen = sum(keys - t for t in range(tokens))
            attention = (q, k, v, normal(64), where[-tokens:], where)
            name = f"attention, {tokens} on {keys} keys"
            yield name, "attention", 4.0 * 64 * 64 * seen, attention


def table() -> str:
    """The table, as Markdown."""
    paths = available_paths()
    cpu = llvmlite.binding.get_host_cpu_name()
    a, b = np.ones((512, 2880), np.float32), np.ones((2880, 4096), np.float32)
    product = 2.0 * 512 * 2880 * 4096 / best(lambda: a @ b) / 1e9
    lines = [
        f"{cpu}, {current_threads()} thread(s); NumPy's float32 product of 512 tokens: "
        f"{product:.0f} GFLOP/s.",
        "",
        "| kernel, tokens | layer | " + " | ".join(paths) + " |",
        "|---|---:|" + "---:|" * len(paths),
    ]
    for name, kernel, work, arguments in cases():
        layer = best(lambda: getattr(layers, kernel)(*arguments))  # noqa: B023
        cells = [f"{work / layer / 1e9:.1f}"]
        for path in paths:
            with instructions(path):
                ours = best(lambda: getattr(kernels, kernel)(*arguments))  # noqa: B023
            cells.append(f"{work / ours / 1e9:.1f} ({layer / ours:.1f} ×)")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    args = parser.parse_args()
    written = table()
    print(written)
    if args.write:
        write_page("paths.py", available_paths()[0], written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
