"""compare and diagnose on the bundled model: seconds, from a trace and from logits alone.

    python benches/bench_verify.py [--rounds 3]
    python benches/bench_verify.py --checkpoint DIR --traces FOLDER    # of gpt-oss-20b's shape

compare judges two trace files of 1,000 tokens, with the model at hand to measure the yardstick, as
the command does. diagnose searches the whole catalogue on a prompt of 300 tokens: for a run that is
right, for one with a window of one key more, and for one that no known bug explains. Each figure is
the median of the rounds.

With a checkpoint, such as make_random_20b.py writes, traces of 200 tokens at every tap point, one
of a correct run by the kernels and one with a planted bug (the biases of the experts' first
matrices never arrived); then one after the other, each in a process of its own: a diagnosis of
each, one of four layers, one of a few tap points, and a comparison of the two. Every figure comes
with the seconds of CPU, because such a run may share its machine, the seconds by stage, and the
largest memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import resource
import subprocess
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


@dataclasses.dataclass(frozen=True)
class Task:
    """One thing to be measured in a process of its own.

    Attributes:
        name: what is done.
        expected: the bug that is to be named; empty: none may be.
        limit: seconds it may take.
        options: of ``gr.diagnose``; None: the two traces are compared.
    """

    name: str
    expected: str
    limit: float
    options: dict[str, object] | None


PLANTED = "gate-up-bias-missing"
TASKS = {
    "right": Task("diagnose, a correct run", "", LARGE_SECONDS, {}),
    "planted": Task("diagnose, a planted bug", PLANTED, LARGE_SECONDS, {}),
    "layers": Task("the same, --layers 0-3", PLANTED, LARGE_SECONDS / 4, {"layers": range(4)}),
    "taps": Task("the same, --taps '*.attn.q'", "", LARGE_SECONDS / 4, {"taps": "*.attn.q"}),
    "compare": Task("compare", "", 60.0, None),
}


def write_planted(folder: str, path: Path) -> None:
    """A trace of the kernels' run in which no expert's first matrix has a bias."""
    model = gr.load(folder)
    biases = {n: w for n, w in model.weights.named().items() if n.endswith("mlp1_bias")}
    weights = model.weights.replaced({name: np.zeros_like(w) for name, w in biases.items()})
    wrong = gr.Model(model.config, weights, backend=model.backend)
    gr.trace(wrong, tokens_of(model, LARGE_TOKENS), path=path)


def traces_of(folder: str, where: Path) -> tuple[Path, Path]:
    """The trace of a correct run and that of a planted bug, unless they are there."""
    right, planted = where / "right.trace", where / "planted.trace"
    if not right.exists():
        ids = ",".join(map(str, tokens_of(gr.load(folder, backend="numpy"), LARGE_TOKENS)))
        command = [sys.executable, "-m", "gptoss_ref", "trace", folder, "-o", str(right)]
        said = subprocess.run(
            [*command, "--tokens", ids], stdout=subprocess.PIPE, check=True, text=True
        )
        print(said.stdout.strip())
    if not planted.exists():
        apart(write_planted, folder, planted)
    return right, planted


def apart(function: Callable[..., object], *arguments: object) -> None:
    """Run a function in a process of its own, so that its memory counts alone."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(process.exitcode)


def measure_task(folder: str, key: str, right: Path, planted: Path) -> None:
    """Print what one task takes; exit status 1 if a goal is missed or the verdict is wrong."""
    task = TASKS[key]
    seconds_by: dict[str, float] = {}
    start = last = time.perf_counter()
    cpu = time.process_time()

    def step(done: int, total: int, what: str) -> None:
        nonlocal last
        now = time.perf_counter()
        name = what.removeprefix("replaying ")
        stage = split(name)[1] if name != what else what
        seconds_by[stage] = seconds_by.get(stage, 0.0) + now - last
        last = now

    def early(diagnosis: object) -> None:
        print(f"  the first block is answered after {time.perf_counter() - start:.0f} s")

    if task.options is None:
        compare(gr.Trace.load(right), gr.Trace.load(planted))
        named, said = "", ""
    else:
        model = gr.load(folder, backend="numpy")
        path = planted if key != "right" else right
        found = gr.diagnose(model, path, progress=step, early=early, **task.options)
        named = ", ".join(cause.name for cause in found.causes)
        said = f"  {found.verdict}"
    missed = verdict(task.name, time.perf_counter() - start, task.limit)
    print(f"    {'CPU':<48}{time.process_time() - cpu:8.2f} s")
    print(said)
    for stage, taken in sorted(seconds_by.items(), key=lambda pair: -pair[1])[:12]:
        print(f"    {stage:<48}{taken:8.2f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"    peak of memory {peak:.1f} GB (goal: under 8 GB)", flush=True)
    if missed or peak >= 8 or named != task.expected:
        raise SystemExit(1)


def of_a_checkpoint(folder: str, where: Path | None, keys: list[str]) -> bool:
    """Every task of the real size; whether a goal is missed."""
    with tempfile.TemporaryDirectory() as scratch:
        right, planted = traces_of(folder, where or Path(scratch))
        print(f"traces of {LARGE_TOKENS} tokens: {right.stat().st_size / 1e6:.0f} MB each")
        missed = False
        for key in keys:
            try:
                apart(measure_task, folder, key, right, planted)
            except SystemExit:
                missed = True
        return missed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--checkpoint", metavar="DIR", help="diagnose a trace of its own instead")
    parser.add_argument("--traces", type=Path, help="keep its traces in this folder, and use them")
    parser.add_argument("--task", action="append", choices=TASKS, help="of a checkpoint; all")
    arguments = parser.parse_args()
    rounds = arguments.rounds
    if arguments.checkpoint is not None:
        tasks = arguments.task or list(TASKS)
        return int(of_a_checkpoint(arguments.checkpoint, arguments.traces, tasks))

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
