"""The experts kernel at the released sizes: one token against memory, many against NumPy.

    python benches/bench_experts.py [--experts 32] [--tokens 512]

Random MXFP4 weights and routing; each pass of one token takes other experts, so that weights come
from memory. Figures as in ``bench_linear.py``; a value times a weight counts as two operations.
"""

from __future__ import annotations

import argparse

import numpy as np
from rates import in_turns, product, read_rate

from gptoss_ref.kernels import experts
from gptoss_ref.kernels._jit import path_name
from gptoss_ref.kernels.threads import current_threads
from gptoss_ref.weights import MXFP4

WIDTH, INNER, CHOSEN = 2880, 2880, 4


def random_mxfp4(rng: np.random.Generator, count: int, outputs: int, inputs: int) -> MXFP4:
    shape = (count, outputs, inputs // 32)
    blocks = rng.integers(0, 256, (*shape, 16), np.uint8)  # NumPy asks for large pages
    return MXFP4(blocks, rng.integers(118, 123, shape, dtype=np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=512)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    first = random_mxfp4(rng, args.experts, 2 * INNER, WIDTH)
    second = random_mxfp4(rng, args.experts, WIDTH, INNER)
    b1 = np.zeros((args.experts, 2 * INNER), np.uint16)
    b2 = np.zeros((args.experts, WIDTH), np.uint16)

    def routed(tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        indices = np.argsort(rng.random((tokens, args.experts)), axis=-1)[:, :CHOSEN]
        weights = np.full(indices.shape, np.float32(1 / CHOSEN))
        return rng.standard_normal((tokens, WIDTH), np.float32), indices, weights

    turn = 0

    def one_token() -> None:
        nonlocal turn
        indices = (np.arange(CHOSEN) + CHOSEN * turn)[None] % args.experts
        turn += 1
        experts(single[0], indices, single[2], first, b1, second, b2)

    single, many = routed(1), routed(args.tokens)
    print(f"{current_threads()} threads, {path_name()}")
    touched = (first.blocks.nbytes + first.scales.nbytes) / args.experts * CHOSEN * 1.5
    taken = in_turns({"one": one_token})
    rate, ceiling = touched / taken["one"], read_rate()
    print(f"one token: {rate / 1e9:.2f} GB/s, {rate / ceiling:.2f} of a read's {ceiling / 1e9:.2f}")
    numpy_product, operations = product(args.tokens, WIDTH, 4096)
    taken = in_turns(
        {"kernel": lambda: experts(*many, first, b1, second, b2), "numpy": numpy_product},
        rounds=5,
    )
    ours = 2.0 * args.tokens * CHOSEN * 3 * WIDTH * INNER / taken["kernel"] / 1e9
    theirs = operations / taken["numpy"] / 1e9
    print(
        f"{args.tokens} tokens: {ours:.0f} GFLOP/s, {ours / theirs:.2f} times NumPy's {theirs:.0f}"
    )


if __name__ == "__main__":
    main()
