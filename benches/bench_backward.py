"""The backward pass: a training step of tiny beside torch's, and one block of the 20b's shape.

    python benches/bench_backward.py                       # both
    python benches/bench_backward.py --step --rounds 5     # 32 conversations of 200 tokens
    python benches/bench_backward.py --block --tokens 512

Step: loss and all gradients of one batch in float32, here and by transformers' model on the same
weights (the fastest of its experts' implementations that run on a CPU), in turns, on the same
number of threads. The goal is a ratio of at most 1.

Block: a block of the 20b's shape with random MXFP4 experts; the gradients of its input and of its
weights, over the time of its forward pass in a chat. What the pass for training takes longer than
that one, because it keeps activations, counts as backward. The goal is at most 2.5.
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
    tiny = gr.load("tiny", backend="numba")  # "auto" may take the layers
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


def block(rounds: int, threads: int, tokens: int) -> None:
    """One block of the 20b's shape, its experts in MXFP4, the rest in bfloat16."""
    from gptoss_ref.backpropagation.blocks import BackwardPass, Mixture, Watcher
    from gptoss_ref.model import Model
    from gptoss_ref.weights import (
        MXFP4,
        AttentionWeights,
        BlockWeights,
        MLPWeights,
        ModelWeights,
    )

    config = gr.ModelConfig(num_hidden_layers=1, num_experts=32, vocab_size=64)
    rng = np.random.default_rng(0)
    d, f, h, k = 2880, 2880, 64 * 64, 8 * 64

    def half(*shape: int) -> np.ndarray:
        values = rng.standard_normal(shape, dtype=np.float32) * shape[-1] ** -0.5
        return (values.view(np.uint32) >> 16).astype(np.uint16)

    def four(*shape: int) -> MXFP4:
        lead = (*shape[:-1], shape[-1] // 32)
        blocks = rng.integers(0, 256, (*lead, 16), np.uint8)
        return MXFP4(blocks, np.full(lead, 119, np.uint8))

    attn = AttentionWeights(
        *(half(d), half(h, d), half(h), half(k, d), half(k), half(k, d), half(k)),
        *(half(64), half(d, h), half(d)),
    )
    mlp = MLPWeights(
        *(half(d), half(32, d), half(32), four(32, 2 * f, d), half(32, 2 * f)),
        *(four(32, d, f), half(32, d)),
    )
    weights = ModelWeights(half(64, d), (BlockWeights(attn, mlp),), half(d), half(64, d))
    model = Model(config, weights)
    x = rng.standard_normal((tokens, d), dtype=np.float32)
    d_x = rng.standard_normal((tokens, d), dtype=np.float32)
    names = {name for name in weights.named() if name.startswith("block.")}
    ids = [rng.integers(0, 64, tokens)]

    def run_of(wanted: set[str]) -> BackwardPass:
        return BackwardPass(model, ids, Watcher(wanted, lambda *_: None), Watcher(set(), print))

    def chat() -> None:
        run = run_of(set())
        y = run.attention(0, x, attn).residual
        norm, routed = run.routed(y, mlp)
        matrices = (mlp.mlp1_weight, mlp.mlp1_bias, mlp.mlp2_weight, mlp.mlp2_bias)
        model.backend.experts(norm, routed.indices, routed.weights, *matrices)

    def training(keep: bool = True) -> BackwardPass:
        run = run_of(names)
        kept = run.attention(0, x, attn)
        norm, routed = run.routed(kept.residual, mlp)
        _, gate_up = run.experts(norm, routed, mlp, keep)
        if keep:
            run.kept_attention[0], run.kept_mixtures[0] = kept, Mixture(norm, routed, gate_up)
        return run

    filled = training()

    def backwards(wanted: set[str], keep: bool = True) -> None:
        run = run_of(wanted)
        if keep:
            run.kept_attention.update(filled.kept_attention)
            run.kept_mixtures.update(filled.kept_mixtures)
        run.block(0, x, d_x, None)

    with gr.threads(threads):
        seconds = in_turns(
            {
                "forward, chat": chat,
                "forward, training": training,
                "backward, experts frozen": lambda: backwards(names - EXPERTS),
                "backward, all weights": lambda: backwards(names),
                "the same, nothing kept": lambda: backwards(names, False),
            },
            rounds,
        )
    print(f"a block of the 20b's shape, {tokens} tokens, float32, {threads} threads")
    base = seconds["forward, chat"]
    more = seconds["forward, training"] - base
    for name, value in seconds.items():
        note = ""
        if name.startswith("backward"):
            note = f"{(value + more) / base:8.2f} with what the forward pass took longer"
        print(f"  {name:26}{value:8.2f} s{value / base:8.2f} times forward{note}")
    print("  goal: backward at most 2.5 times forward")


EXPERTS = {f"block.0.mlp.mlp{n}_{part}" for n in (1, 2) for part in ("weight", "bias")}


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
    if args.block or not args.step:
        block(args.rounds, args.threads, args.tokens)
