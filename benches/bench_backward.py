"""The backward pass: a training step of tiny beside torch's, and one block of the 20b's shape.

    python benches/bench_backward.py                       # both
    python benches/bench_backward.py --step --rounds 5     # 32 conversations of 200 tokens
    python benches/bench_backward.py --block --tokens 512

Step: loss and all gradients of one batch in float32, here and by transformers' model on the same
weights (the fastest of its experts' implementations that run on a CPU), in turns, on the same
number of threads. The goal is a ratio of at most 1.

Block: a block of the 20b's shape with random MXFP4 experts; the gradients of its input and of all
its weights from its activations, over the time of its forward pass. The goal is at most 2.5.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import numpy as np

import gptoss_ref as gr


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def in_turns(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, taken in turns after one run of each that does not count."""
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(timed(run))
    return {name: median(values) for name, values in seconds.items()}


def step(rounds: int, threads: int) -> None:
    import torch
    import transformers

    torch.set_num_threads(threads)
    tiny = gr.load("tiny")
    batch = np.random.default_rng(0).integers(0, tiny.config.vocab_size, (32, 200))
    ids = torch.tensor(batch)
    runs: dict[str, Callable[[], object]] = {"gptoss_ref": lambda: gr.backward(tiny, batch)}
    losses: dict[str, float] = {}
    for experts in ("eager", "grouped_mm"):  # batched_mm gathers 3 GB of weights
        model = transformers.AutoModelForCausalLM.from_pretrained(
            tiny.path,
            dtype=torch.float32,
            attn_implementation="eager",
            experts_implementation=experts,
        )

        def torch_step(model: object = model, name: str = experts) -> None:
            loss = model(ids, labels=ids).loss  # type: ignore[operator]
            loss.backward()
            losses[name] = float(loss)
            model.zero_grad()  # type: ignore[attr-defined]

        try:
            torch_step()
            runs[f"torch, {experts}"] = torch_step
        except (RuntimeError, NotImplementedError) as error:
            print(f"torch, {experts}: {error}")
    with gr.threads(threads):
        seconds = in_turns(runs, rounds)
        losses["gptoss_ref"] = gr.backward(tiny, batch, wrt=()).loss
    print(f"training step of tiny, 32 x 200 tokens, float32, {threads} threads")
    best = min(value for name, value in seconds.items() if name != "gptoss_ref")
    for name, value in seconds.items():
        print(f"  {name:20}{value * 1e3:9.0f} ms")
    print(f"  losses {', '.join(f'{n} {v:.5f}' for n, v in losses.items())}")
    print(f"  ratio to torch's fastest {seconds['gptoss_ref'] / best:.2f} (goal: at most 1)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--step", action="store_true")
    parser.add_argument("--block", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.step or not args.block:
        step(args.rounds, args.threads)
