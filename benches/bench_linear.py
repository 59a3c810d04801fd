"""The linear kernel at the released sizes: one token against memory, many against NumPy.

    python benches/bench_linear.py [--rows 201088] [--tokens 512]

One token: bytes of weights a second, as a share of the best streaming read of the same run.
Many tokens: floating-point operations a second, as a multiple of NumPy's float32 product.
"""

from __future__ import annotations

import argparse

import numpy as np
from rates import in_turns, product, read_rate

from gptoss_ref.kernels import linear
from gptoss_ref.kernels._jit import path_name
from gptoss_ref.kernels.threads import current_threads

WIDTH = 2880


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=201088)
    parser.add_argument("--tokens", type=int, default=512)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    weight = rng.integers(0x3C00, 0x3F00, (args.rows, WIDTH)).astype(np.uint16)
    one = rng.standard_normal((1, WIDTH), np.float32)
    many = rng.standard_normal((args.tokens, WIDTH), np.float32)
    part = weight[:4096]
    numpy_product, operations = product(args.tokens, WIDTH, len(part))
    print(f"{current_threads()} threads, {path_name()}")
    taken = in_turns({"one": lambda: linear(one, weight)})
    rate, ceiling = weight.nbytes / taken["one"], read_rate()
    print(f"one token: {rate / 1e9:.2f} GB/s, {rate / ceiling:.2f} of a read's {ceiling / 1e9:.2f}")
    taken = in_turns({"kernel": lambda: linear(many, part), "numpy": numpy_product})
    ours, theirs = (operations / taken[name] / 1e9 for name in ("kernel", "numpy"))
    print(
        f"{args.tokens} tokens: {ours:.0f} GFLOP/s, {ours / theirs:.2f} times NumPy's {theirs:.0f}"
    )


if __name__ == "__main__":
    main()
