"""Is a correct run ever accused? Prompts of tiny and random models, by every way to compute them.

    python -m docs._generate.false_alarms --store docs/_generate/false_alarms.json
    python -m docs._generate.false_alarms --prompts 20 --models 5 --seed random    # prints the seed

One case is one trace of a correct run, given to ``diagnose``, and every fourth one to ``compare``
too, with the model and without it. The run is by the NumPy layers, by the compiled kernels on each
instruction path that this machine has, or by transformers, in each of their precisions. These ways
take turns, so that a part of the cases tells about all of them. The counts are kept in the file,
from which the page of the kill matrix has them. Exit status 0: nothing was accused.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import gptoss_ref as gr
from gptoss_ref.config import FULL, SLIDING
from gptoss_ref.kernels.runtime.isa import available_paths, instructions
from gptoss_ref.layers.linear import dense
from gptoss_ref.numerics import FLOAT32
from gptoss_ref.verify.observe.adapters import capture
from gptoss_ref.verify.report.report import Report
from tests.support.strategies import as_weights, random_arrays, random_tokens, small_config
from tests.support.transformers_model import transformers_model

TINY = Path(gr.__file__).parent / "data" / "tiny"
COMPARED = 4
"""Of so many cases of each way, one is given to ``compare`` too."""

WIDE = 9
"""One random model in so many is as wide as the kernels' integer products need."""


class Way(NamedTuple):
    """Who computes, on which instruction path (``""``: there is but one), in which precision."""

    who: str
    path: str
    precision: str

    def __str__(self) -> str:
        return f"{self.who} {self.path}".strip() + f", {self.precision}"


def ways() -> list[Way]:
    """Every way to compute on this machine."""
    ours = [("numba", path) for path in available_paths()] + [("numpy", "")]
    own = [Way(*who, policy) for who in ours for policy in ("float32", "bfloat16")]
    return own + [Way("transformers", "", x) for x in ("float32", "bfloat16", "float16")]


@cache
def tiny(backend: str, policy: str) -> gr.Model:
    return gr.load("tiny", backend=backend, policy=policy)


@cache
def specification() -> gr.Model:
    """tiny with its matrices decoded once, which thousands of replays would do again and again."""
    model = tiny("numpy", "float64")
    matrices = {name: dense(matrix, FLOAT32) for name, matrix in model.weights.named().items()}
    weights = model.weights.replaced(matrices)
    return gr.Model(model.config, weights, policy="float64", backend="numpy")


@cache
def tiny_transformers(dtype: str) -> Any:
    from transformers import AutoModelForCausalLM

    kind = getattr(torch, dtype)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=kind, attn_implementation="eager")
    return model.eval()


def prompt(seed: int) -> list[int]:
    """A short question like those that tiny was trained on, or any tokens."""
    rng = np.random.default_rng([seed, 5])
    a, b = (int(x) for x in rng.integers(1, 100, 2))
    word = "".join(rng.choice([*"abcdefghijklmnopqrstuvwxyz"], int(rng.integers(3, 9))))
    texts = (
        f"What is {a} + {b}?",
        f"What is {a + b} - {b}?",
        f"Is {a} > {b}?",
        f"Reverse the word {word}.",
        f"Sort {a}, {b}, {a + 3}.",
        f"How many letters e in {word}?",
    )
    spec = tiny("numpy", "float64")
    kind = int(rng.integers(len(texts) + 1))
    if kind < len(texts):
        return list(spec.tokenizer.encode(texts[kind]))
    return rng.integers(0, spec.config.vocab_size, int(rng.integers(1, 40))).tolist()


def tiny_case(seed: int, way: Way) -> tuple[gr.Model, gr.Trace]:
    """tiny, and one prompt through one way of computing it."""
    ids, spec = prompt(seed), specification()
    if way.who == "transformers":
        return spec, capture(tiny_transformers(way.precision), ids, config=spec.config)
    return spec, run(tiny(way.who, way.precision), ids, way)


def run(model: gr.Model, ids: list[int], way: Way) -> gr.Trace:
    """A trace as it comes from a file: nobody knows the model that made it."""
    with instructions(way.path) if way.path else nullcontext():
        trace = gr.trace(model, ids)
    trace.model = None
    return trace


def model_case(seed: int, way: Way) -> tuple[gr.Model, gr.Trace]:
    """A model of odd shape with random weights, and a prompt."""
    rng = np.random.default_rng([seed, 6])
    layers, kv = int(rng.integers(1, 4)), int(rng.choice([1, 2, 3]))
    kinds = tuple(rng.choice([SLIDING, FULL]) for _ in range(layers))
    experts = int(rng.integers(3, 12))
    widths = [int(rng.choice(sizes)) for sizes in ([32, 37, 64, 96], [23, 32, 40, 65])]
    if seed % WIDE == 0:  # from 512 on, in both, the kernels multiply integers
        widths = [544, 608]
    config = small_config(
        layers=layers,
        n_kv=kv,
        group=int(rng.integers(1, 6)),
        head_dim=int(rng.choice([10, 14, 18, 26])),
        experts=experts,
        n_chosen=int(rng.integers(1, experts)),
        d_model=widths[0],
        d_ff=widths[1],
        vocab=int(rng.integers(40, 130)),
        window=int(rng.integers(1, 12)),
        layer_types=kinds,
        rope_scaling_factor=float(rng.choice([1.0, 32.0])),
    )
    sink = float(rng.choice([0.0, 3.0, 8.0]))  # 8: sinks that take nearly everything
    stored = way.who != "transformers" and not (config.hidden_size | config.intermediate_size) % 32
    clamp = float(rng.choice([1.0, 5.0]))
    arrays = random_arrays(config, seed, mxfp4=stored, sink=sink, clamp=clamp)
    tokens = random_tokens(config, int(rng.integers(1, 40)), seed)
    spec = gr.Model(config, as_weights(arrays), policy="float64", backend="numpy")
    if way.who == "transformers":
        module = transformers_model(config, arrays).to(getattr(torch, way.precision))
        return spec, capture(module, tokens, config=config)
    model = gr.Model(config, as_weights(arrays), policy=way.precision, backend=way.who)
    return spec, run(model, tokens, way)


CASES = {"tiny": tiny_case, "random": model_case}


def accusations(kind: str, number: int, seed: int, way: Way, *, compared: bool) -> Iterator[str]:
    """What is said against one correct run."""
    spec, trace = CASES[kind](seed + number, way)
    reports: dict[str, Report] = {"diagnose": gr.diagnose(spec, trace)}
    if compared:
        reference = gr.trace(spec, trace.tokens)
        reports["compare"] = gr.compare(reference, trace)
        reference.model = None
        reports["compare without the model"] = gr.compare(reference, trace)
    for command, report in reports.items():
        if not report.ok:
            yield f"{command}: {report.verdict}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=2000, help="of tiny")
    parser.add_argument("--models", type=int, default=500, help="random ones")
    parser.add_argument("--seed", default="0", help="a number, or the word random")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--store", type=Path, help="keeps the counts; goes on where they end")
    options = parser.parse_args(argv)
    seed = int.from_bytes(os.urandom(4)) if options.seed == "random" else int(options.seed)
    print(f"seed {seed}", flush=True)
    torch.set_num_threads(1)
    counts = {kind: {str(way): [0, 0] for way in ways()} for kind in CASES}
    stored: dict[str, Any] = {"seed": seed, "counts": counts, "accused": []}
    if options.store is not None and options.store.exists():
        stored = json.loads(options.store.read_text())
        assert stored["seed"] == seed, "the store holds the cases of another seed"
    began = time.perf_counter()
    for kind, number in cases(stored["counts"], options.prompts, options.models):
        if time.perf_counter() - began > options.seconds:
            break
        every = ways()
        way, turn = every[number % len(every)], number // len(every)
        compared = turn % COMPARED == 0
        for said in accusations(kind, number, seed, way, compared=compared):
            stored["accused"].append(f"{kind} {number}, {way}: {said}")
            print(stored["accused"][-1], flush=True)
        count = stored["counts"][kind][str(way)]
        count[0] += 1
        count[1] += compared
        if options.store is not None:
            options.store.write_text(json.dumps(stored, indent=1) + "\n")
    print("\n".join(table(stored)))
    return 1 if stored["accused"] else 0


def cases(
    counts: dict[str, dict[str, list[int]]], prompts: int, models: int
) -> Iterator[tuple[str, int]]:
    """What is still to be run: its kind and its number, both kinds in step."""
    limits = {"tiny": prompts, "random": models}
    for kind, limit in limits.items():
        done = sum(count[0] for count in counts[kind].values())
        limits[kind] = limit - done
    left = {kind: max(0, n) for kind, n in limits.items()}
    begin = {kind: sum(count[0] for count in counts[kind].values()) for kind in counts}
    every = [
        ((number + 0.5) / count, kind, begin[kind] + number)
        for kind, count in left.items()
        for number in range(count)
    ]
    for _, kind, number in sorted(every):
        yield kind, number


def table(stored: dict[str, Any]) -> list[str]:
    """The counts in Markdown, and what was accused."""
    counts = stored["counts"]
    lines = ["| computed by | prompts of tiny | random models | of these by `compare` too |"]
    lines += ["|---|---|---|---|"]
    for way in counts["tiny"]:
        tiny_, random_ = (counts[kind][way] for kind in CASES)
        lines.append(f"| {way} | {tiny_[0]} | {random_[0]} | {tiny_[1] + random_[1]} |")
    sums = [sum(count[0] for count in counts[kind].values()) for kind in CASES]
    twice = sum(count[1] for kind in CASES for count in counts[kind].values())
    lines.append(f"| all | {sums[0]} | {sums[1]} | {twice} |")
    accused = stored["accused"]
    lines += ["", f"Accused: {len(accused)} of {sum(sums)} (seed {stored['seed']})."]
    return lines + [f"- {said}" for said in accused]


if __name__ == "__main__":
    sys.exit(main())
