"""Is a correct run ever accused? Prompts of tiny and random models, by every way to compute them.

    python -m docs._generate.false_alarms --prompts 2000 --models 500 --store alarms.json
    GPTOSS_REF_KERNELS=avx2 python -m docs._generate.false_alarms --store alarms.json
    python -m docs._generate.false_alarms --prompts 20 --models 5 --seed random    # prints the seed

One case is one trace of a correct run, through ``diagnose``: by the NumPy layers or the compiled
kernels, on the instruction path that the environment asks for, or by transformers, in one of the
precisions each has. Cases take turns. The counts are kept in the file, which the page of the kill
matrix reads. Exit status 0: nothing was accused.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gptoss_ref as gr
from gptoss_ref.config import FULL, SLIDING
from gptoss_ref.verify.observe.adapters import capture
from gptoss_ref.verify.report.diagnosis import Diagnosis
from tests.support.strategies import as_weights, random_arrays, random_tokens, small_config
from tests.support.transformers_model import transformers_model

STORE = Path(__file__).with_name("false_alarms.json")
TINY = Path(gr.__file__).parent / "data" / "tiny"
WAYS = (
    *((backend, policy) for backend in ("numba", "numpy") for policy in ("float32", "bfloat16")),
    *(("transformers", dtype) for dtype in ("float32", "bfloat16", "float16")),
)
"""Who computes, and in which precision; the environment says on which instruction path."""


def path() -> str:
    """The instruction path that was asked for."""
    return os.environ.get("GPTOSS_REF_KERNELS", "the best path")


@cache
def tiny(backend: str, policy: str) -> gr.Model:
    return gr.load("tiny", backend=backend, policy=policy)


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
    words = ("cat", "garden", "banana", "window", "letter", "number", "stone", "river")
    word = words[int(rng.integers(len(words)))]
    texts = (
        f"What is {a} + {b}?",
        f"What is {a + b} - {b}?",
        f"Is {a} > {b}?",
        f"Reverse the word {word}.",
        f"Sort {a}, {b}, {a + 3}.",
        f"How many letters e in {word}?",
    )
    kind = seed % (len(texts) + 1)
    if kind < len(texts):
        return list(tiny("numpy", "float32").tokenizer.encode(texts[kind]))
    vocabulary = tiny("numpy", "float32").config.vocab_size
    return rng.integers(0, vocabulary, int(rng.integers(1, 40))).tolist()


def tiny_case(seed: int, who: str, precision: str) -> gr.Trace:
    """One prompt through one way of computing tiny."""
    ids = prompt(seed)
    if who == "transformers":
        return capture(tiny_transformers(precision), ids, config=tiny("numpy", "float32").config)
    return fresh(gr.trace(tiny(who, precision), ids))


def fresh(trace: gr.Trace) -> gr.Trace:
    """A trace as it comes from a file: nobody knows the model that made it."""
    trace.model = None
    return trace


def model_case(seed: int, who: str, precision: str) -> tuple[gr.Model, gr.Trace]:
    """A model of odd shape with random weights, and a prompt."""
    rng = np.random.default_rng([seed, 6])
    layers, kv = int(rng.integers(1, 4)), int(rng.choice([1, 2, 3]))
    kinds = tuple(rng.choice([SLIDING, FULL]) for _ in range(layers))
    experts = int(rng.integers(3, 12))
    config = small_config(
        layers=layers,
        n_kv=kv,
        group=int(rng.integers(1, 6)),
        head_dim=int(rng.choice([10, 14, 18, 26])),
        experts=experts,
        n_chosen=int(rng.integers(1, experts)),
        d_model=int(rng.choice([32, 37, 64, 96])),
        d_ff=int(rng.choice([23, 32, 40, 65])),
        vocab=int(rng.integers(40, 130)),
        window=int(rng.integers(1, 12)),
        layer_types=kinds,
        rope_scaling_factor=float(rng.choice([1.0, 32.0])),
    )
    sink = float(rng.choice([0.0, 3.0, 8.0]))  # 8: sinks that take nearly everything
    arrays = random_arrays(config, seed, sink=sink, clamp=float(rng.choice([1.0, 5.0])))
    tokens = random_tokens(config, int(rng.integers(1, 40)), seed)
    spec = gr.Model(config, as_weights(arrays), policy="float32", backend="numpy")
    if who == "transformers":
        module = transformers_model(config, arrays).to(getattr(torch, precision))
        return spec, capture(module, tokens, config=config)
    model = gr.Model(config, as_weights(arrays), policy=precision, backend=who)
    return spec, fresh(gr.trace(model, tokens))


def cases(prompts: int, models: int, seed: int) -> Iterator[tuple[str, int, str, str]]:
    """What is run: the kind, its seed, who computes it, and in which precision."""
    for i in range(prompts):
        yield ("tiny", seed + i, *WAYS[i % len(WAYS)])
    for i in range(models):
        yield ("random", seed + i, *WAYS[i % len(WAYS)])


def judge(kind: str, seed: int, who: str, precision: str) -> Diagnosis:
    """What is said of one correct run."""
    if kind == "tiny":
        return gr.diagnose(tiny("numpy", "float32"), tiny_case(seed, who, precision))
    spec, trace = model_case(seed, who, precision)
    return gr.diagnose(spec, trace)


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
    seed = int.from_bytes(os.urandom(3)) if options.seed == "random" else int(options.seed)
    print(f"seed {seed}, {path()}")
    torch.set_num_threads(1)
    stored: dict[str, Any] = {"done": {}, "alarms": []}
    if options.store is not None and options.store.exists():
        stored = json.loads(options.store.read_text())
    began = time.perf_counter()
    for kind, number, who, precision in cases(options.prompts, options.models, seed):
        if time.perf_counter() - began > options.seconds:
            break
        here = "" if who != "numba" else f" {path()}"
        way = f"{kind}|{who}{here}|{precision}"
        done = stored["done"].setdefault(way, [])
        if number in done:
            continue
        diagnosis = judge(kind, number, who, precision)
        done.append(number)
        if not diagnosis.ok:
            stored["alarms"].append([way, number, diagnosis.verdict])
            print(f"{way} seed {number}: {diagnosis.verdict}", flush=True)
        if options.store is not None:
            options.store.write_text(json.dumps(stored))
    counts = {way: len(numbers) for way, numbers in stored["done"].items()}
    for way, count in sorted(counts.items()):
        print(f"{count:6d}  {way}")
    print(f"{len(stored['alarms'])} of {sum(counts.values())} correct runs accused")
    return 1 if stored["alarms"] else 0


if __name__ == "__main__":
    sys.exit(main())
