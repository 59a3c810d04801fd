"""compare and diagnose on the bundled model: seconds, from a trace and from logits alone.

    python benches/bench_verify.py [--rounds 3]
    python benches/bench_verify.py --checkpoint DIR     # of gpt-oss-20b's shape

compare judges two trace files of 1,000 tokens, with the model at hand to measure the yardstick, as
the command does. diagnose searches the whole catalogue on a prompt of 300 tokens: for a run that is
right, for one with a window of one key more, and for one that no known bug explains. Each figure is
the median of the rounds.

With a checkpoint, such as make_random_20b.py writes, one diagnosis of its own trace of 200 tokens at
every tap point, its seconds by stage, its memory, and one comparison of that trace with itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import numpy as np

import gptoss_ref as gr
from gptoss_ref.tracing.taps import split
from gptoss_ref.verify.compare import compare

COMPARED, COMPARE_SECONDS = 1000, 2.0
DIAGNOSED, DIAGNOSE_SECONDS = 300, 20.0
LARGE_TOKENS, LARGE_SECONDS = 200, 900.0

Arrays = Mapping[str, np.ndarray]


def tokens_of(model: gr.Model, length: int) -> list[int]:
    """Random ids."""
    ids = np.random.default_rng(5).integers(0, model.config.vocab_size, length)
    return [int(token) for token in ids]


def seconds(run: Callable[[], object], rounds: int) -> float:
    """The median of some runs."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return median(times)


def verdict(name: str, value: float, limit: float) -> bool:
    """Print a figure beside its goal; whether it is missed."""
    print(f"  {name:<50}{value:8.2f} s  (goal: under {limit:g} s)")
    return value >= limit


def noisy(arrays: Arrays) -> dict[str, np.ndarray]:
    """What no known bug gives: every tap point of floats off by up to a tenth."""
    rng = np.random.default_rng(6)
    return {
        name: values
        if values.dtype.kind in "iu"
        else values * rng.uniform(0.9, 1.1, values.shape).astype(values.dtype)
        for name, values in arrays.items()
    }


def compared(model: gr.Model, rounds: int) -> float:
    """Seconds of a comparison of two files: float64, and a correct run in bfloat16."""
    tokens = tokens_of(model, COMPARED)
    with tempfile.TemporaryDirectory() as folder:
        for policy in ("float64", "bfloat16"):
            run = gr.Model(model.config, model.weights, policy=policy, backend="numpy")
            gr.trace(run, tokens, path=Path(folder, policy))

        def judge() -> None:
            ref, other = (gr.Trace.load(Path(folder, p)) for p in ("float64", "bfloat16"))
            assert compare(ref, other, model=model).ok

        return seconds(judge, rounds)


def suspects(model: gr.Model) -> dict[str, gr.Trace]:
    """Three float32 runs: right, with a bug, and with errors that are no known bug's."""
    config = dataclasses.replace(model.config, sliding_window=model.config.sliding_window + 1)
    wider = gr.Model(config, model.weights, backend="numpy")
    tokens = tokens_of(model, DIAGNOSED)
    right, wrong = (dict(gr.trace(m, tokens)) for m in (model, wider))

    def trace(arrays: Arrays) -> gr.Trace:
        return gr.Trace(arrays, tokens=tokens, config=model.config, dtype="float32")

    return {
        "a correct run": trace(right),
        "a window of one key more": trace(wrong),
        "nothing explains it": trace(noisy(right)),
    }


def of_a_checkpoint(folder: str) -> bool:
    """A diagnosis and a comparison of the real size; whether a goal is missed."""
    model = gr.load(folder, backend="numpy")
    tokens = tokens_of(model, LARGE_TOKENS)
    seconds_by: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "run.trace")
        gr.trace(gr.load(folder), tokens, path=path)
        print(f"trace of {LARGE_TOKENS} tokens: {path.stat().st_size / 1e6:.0f} MB")
        start = last = time.perf_counter()

        def step(_done: int, _total: int, what: str) -> None:
            nonlocal last
            now = time.perf_counter()
            name = what.removeprefix("replaying ")
            stage = split(name)[1] if name != what else what
            seconds_by[stage] = seconds_by.get(stage, 0.0) + now - last
            last = now

        diagnosis = gr.diagnose(model, path, progress=step)
        missed = verdict("diagnose, every tap point", time.perf_counter() - start, LARGE_SECONDS)
        print(f"  {diagnosis.verdict}")
        for stage, taken in sorted(seconds_by.items(), key=lambda pair: -pair[1])[:12]:
            print(f"    {stage:<48}{taken:8.2f} s")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"  peak of memory {peak:.1f} GB (goal: under 8 GB)")
        start = time.perf_counter()
        trace = gr.Trace.load(path)
        compare(trace, trace)
        return missed | verdict("compare", time.perf_counter() - start, 60.0) | (peak >= 8)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--checkpoint", metavar="DIR", help="diagnose a trace of its own instead")
    arguments = parser.parse_args()
    rounds = arguments.rounds
    if arguments.checkpoint is not None:
        return int(of_a_checkpoint(arguments.checkpoint))

    model = gr.load("tiny", backend="numpy")
    print(f"compare, {COMPARED} tokens")
    missed = verdict("two traces, every tap point", compared(model, rounds), COMPARE_SECONDS)
    print(f"diagnose, {DIAGNOSED} tokens")
    for name, trace in suspects(model).items():
        ends = gr.Trace(
            {"logits": trace["logits"]},
            tokens=trace.tokens,
            config=trace.config,
            dtype=trace.dtype_name,
        )
        for given, other in (("every tap point", trace), ("logits alone", ends)):
            taken = seconds(lambda other=other: gr.diagnose(model, other), rounds)
            missed |= verdict(f"{name}, {given}", taken, DIAGNOSE_SECONDS)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
