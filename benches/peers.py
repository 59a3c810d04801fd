"""This project, llama.cpp and transformers on the same random weights, in turns.

    LLAMA_CPP_FOLDER=FOLDER python -m benches.peers [DIR] [--layers 24] [--rounds 3] [--write]

Four comparisons: a gpt-oss-20b of random weights here and in llama.cpp, once with the same numbers
(bfloat16 and MXFP4, as GGUF) and once with the types of the file that people download (Q8_0 in the
place of bfloat16: fewer bytes a token); four layers of it here and in transformers in float32; and
all beside what this machine can do at most. llama.cpp runs with and without flash attention, and
the better one of each figure counts. Every figure is taken in a process of its own, after each page
of its file has been read; the contestants take turns, and the table shows medians. DIR keeps the
weights between runs (39.7 GB with 24 layers). --write puts the table of this class of CPU into
docs/performance.md; GPTOSS_REF_KERNELS=avx2 measures a lesser class, in llama.cpp too.

Needs llama.cpp's shared libraries in FOLDER (see benches/llama_cpp.py), the package gguf, and
transformers with torch; what is missing is left out and named. One is compared only with what ran
in the same run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benches.page import write_page

ROOT = Path(__file__).resolve().parent.parent
PLOT = ROOT / "docs" / "performance.svg"

PROMPTS = (128, 512)
DECODED = 12
FEW_LAYERS = 4
Figures = dict[str, float]

LLAMA = "LLAMA_CPP_FOLDER"
NEEDS = {
    "ours": ("gptoss_ref",),
    "llama.cpp": ("gguf",),
    "llama.cpp Q8_0": ("gguf",),
    "transformers": ("transformers", "torch"),
}


# --- one contestant, in a process of its own ---


def ours(folder: Path, prompts: Sequence[int]) -> Figures:
    """This project, and the ceilings of the machine."""
    sys.path.insert(0, str(ROOT / "benches"))
    from bench_model import touch
    from rates import NumpyProduct, Reading

    import gptoss_ref as gr
    from gptoss_ref.kernels.runtime.doctor import bytes_per_token

    start = time.perf_counter()
    model = gr.load(folder)
    found = {"load": time.perf_counter() - start}
    touch(model)
    reading, numpy_product = Reading(), NumpyProduct()

    def append(cache: Any, tokens: list[int]) -> None:
        model(tokens, cache, last_only=True)

    found |= measure(prompts, model.new_cache, append, model.config.vocab_size, reading.sample)
    for _ in range(5):
        numpy_product.sample()
    found["read"] = reading.rate()
    found["bytes"] = float(bytes_per_token(model.config))
    found["numpy"] = numpy_product.rate()
    return found


def llama_cpp(file: Path, prompts: Sequence[int], flash: bool) -> Figures:
    """llama.cpp, memory-mapped, with or without flash attention.

    Between tokens the same memory is read as between ours, so that both meet the same caches.
    """
    sys.path.insert(0, str(ROOT / "benches"))
    from rates import Reading

    from benches.llama_cpp import LlamaCpp
    from gptoss_ref.kernels.runtime.isa import path_name

    context = max(prompts) + 64
    peer = LlamaCpp(llama_folder(), file, context, threads(), flash, path_name())

    def append(_: None, tokens: list[int]) -> None:
        peer.append(tokens)

    found = {"load": peer.load_seconds}
    found |= measure(prompts, peer.restart, append, peer.vocabulary, Reading().sample)
    peer.close()
    print(peer.cpu, file=sys.stderr)
    return found


def llama_folder() -> Path:
    """Where llama.cpp's libraries are: the folder that the environment names."""
    return Path(os.environ[LLAMA])


def transformers(folder: Path, prompts: Sequence[int]) -> Figures:
    """transformers, eager attention, float32 weights."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads())
    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    found = {"load": time.perf_counter() - start}

    class Cache:
        values: Any = None

    @torch.no_grad()
    def append(cache: Cache, tokens: list[int]) -> None:
        ids = torch.tensor([tokens])
        out = model(ids, past_key_values=cache.values, use_cache=True, logits_to_keep=1)
        cache.values = out.past_key_values

    return found | measure(prompts, Cache, append, model.config.vocab_size)


FLASH, PLAIN = partial(llama_cpp, flash=True), partial(llama_cpp, flash=False)
CONTESTANTS: dict[str, tuple[Callable[[Path, Sequence[int]], Figures], ...]] = {
    "ours": (ours,),
    "llama.cpp": (FLASH, PLAIN),
    "llama.cpp Q8_0": (FLASH, PLAIN),
    "transformers": (transformers,),
}
"""Each contestant's ways, one process each; the best figure of any way is the contestant's."""


def measure(
    prompts: Sequence[int],
    restart: Callable[[], Any],
    append: Callable[[Any, list[int]], Any],
    vocabulary: int,
    between: Callable[[], None] | None = None,
) -> Figures:
    """Seconds of a prefill of each length, and of one token after the first of them.

    ``between`` is called before each of those tokens.
    """
    import random

    rng = random.Random(0)
    draw = [rng.randrange(vocabulary) for _ in range(max(prompts))]
    append(restart(), draw[:8])  # whatever is set up once
    found: Figures = {}
    for length in prompts:
        start = time.perf_counter()
        state = restart()
        append(state, draw[:length])
        found[f"prefill {length}"] = time.perf_counter() - start
        if length == prompts[0]:
            times = []
            for token in draw[:DECODED]:
                if between is not None:
                    between()
                start = time.perf_counter()
                append(state, [token])
                times.append(time.perf_counter() - start)
            found["decode"] = median(times[2:])
    return found


def read_files(path: Path) -> None:
    """Read every byte, so that no page is first met in a measurement."""
    piece = bytearray(1 << 24)
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(piece):
                pass


def threads() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- the tournament ---


class Runs:
    """What each contestant measured, in a process of its own; kept in a file between runs."""

    def __init__(self, prompts: Sequence[int], prefix: Sequence[str], store: Path | None) -> None:
        self._prompts, self._prefix, self._store = prompts, prefix, store
        kept = store is not None and store.exists()
        self._found: dict[str, Figures] = json.loads(store.read_text()) if store and kept else {}

    def take_turns(self, runs: Mapping[str, Path], rounds: int) -> dict[str, list[Figures]]:
        """Each contestant's figures, round by round."""
        found: dict[str, list[Figures]] = {name: [] for name in runs}
        for number in range(1, rounds + 1):
            for name, path in runs.items():
                found[name].append(self._one(number, name, path))
        return found

    def _one(self, number: int, name: str, path: Path) -> Figures:
        """One contestant, each of its ways; the least of each figure."""
        ways = []
        for way in range(len(CONTESTANTS[name])):
            key = f"{path.name}, round {number}, {name}, way {way + 1}"
            try:
                if key not in self._found:
                    self._found[key] = self._run(name, way, path)
                    if self._store is not None:
                        self._store.write_text(json.dumps(self._found, indent=1))
            except RuntimeError as error:  # another way may do
                print(f"{key}: left out: {error}", flush=True)
                continue
            ways.append(self._found[key])
            shown = ", ".join(f"{what} {value:.4g}" for what, value in ways[-1].items())
            print(f"{key}: {shown}", flush=True)
        if not ways:
            raise SystemExit(f"{name} did not run")
        return {what: min(way[what] for way in ways) for what in ways[0]}

    def _run(self, name: str, way: int, path: Path) -> Figures:
        """One contestant in one of its ways.

        Raises:
            RuntimeError: it failed.
        """
        read_files(path)
        command = [*self._prefix, sys.executable, "-m", "benches.peers", str(path)]
        command += ["--contestant", name, "--way", str(way)]
        command += ["--prompts", *map(str, self._prompts)]
        ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if ended.returncode:
            said = ended.stderr.strip().splitlines() or [f"status {ended.returncode}"]
            raise RuntimeError(said[-1])
        figures: Figures = json.loads(ended.stdout.splitlines()[-1])
        return figures


def missing(name: str) -> str | None:
    """The package or the folder that a contestant lacks, if it lacks one."""
    if name.startswith("llama.cpp") and not os.environ.get(LLAMA):
        return LLAMA
    return next((p for p in NEEDS[name] if importlib.util.find_spec(p) is None), None)


def medians(rounds: Sequence[Figures]) -> Figures:
    """Median of each figure."""
    return {key: median(figures[key] for figures in rounds) for key in rounds[0]}


def prepare(folder: Path, layers: int) -> Path:
    """A checkpoint of random weights with that many layers, made if it is not there."""
    target = folder / f"random-{layers}-layers"
    if not target.exists():
        script = ROOT / "benches" / "make_random_20b.py"
        subprocess.run([sys.executable, script, target, "--layers", str(layers)], check=True)
    return target


def gguf_of(checkpoint: Path, matrices: str) -> Path:
    """The same weights for llama.cpp, the bfloat16 ones in that type, written if not there."""
    target = checkpoint.with_suffix(f".{matrices}.gguf")
    if not target.exists():
        script = ROOT / "benches" / "write_gguf.py"
        partial = target.with_suffix(".partial")
        command = [sys.executable, script, checkpoint, partial, "--matrices", matrices]
        subprocess.run(command, check=True)
        partial.replace(target)
    return target


# --- the page ---


def table(whole: Mapping[str, Figures], few: Mapping[str, Figures], layers: int) -> list[str]:
    """The table in Markdown: seconds as rates, and ratios."""
    us = whole["ours"]
    ceiling = us["read"] / us["bytes"]
    lines = [
        f"| tokens/s | decode after {PROMPTS[0]} | prefill {PROMPTS[1]} |",
        "|---|---:|---:|",
        f"| at most (reading {us['read'] / 1e9:.1f} GB/s) | {ceiling:.2f} | |",
    ]

    def row(name: str, figures: Figures) -> str:
        prefill = PROMPTS[1] / figures[f"prefill {PROMPTS[1]}"]
        return f"| {name} | {1 / figures['decode']:.2f} | {prefill:.1f} |"

    for name, figures in whole.items():
        label = {
            "ours": "gptoss_ref",
            "llama.cpp": "llama.cpp, bfloat16 + MXFP4",
            "llama.cpp Q8_0": "llama.cpp, Q8_0 + MXFP4",
        }[name]
        lines.append(row(f"{label}, {layers} layers", figures))
    for name, figures in few.items():
        label = {"ours": "gptoss_ref", "transformers": "transformers, float32"}[name]
        lines.append(row(f"{label}, {FEW_LAYERS} layers", figures))
    return lines


def ratios(rounds: Mapping[str, Sequence[Figures]]) -> list[str]:
    """One line a peer: how many times as fast this project is, each round's ratio by itself."""
    lines = []
    for name in rounds:
        if name == "ours":
            continue
        said = []
        for key in ("decode", "prefill 512"):
            pairs = zip(rounds[name], rounds["ours"], strict=True)
            each = sorted(theirs[key] / us[key] for theirs, us in pairs)
            said.append(f"{median(each):.2f} times ({each[0]:.2f} to {each[-1]:.2f}) in {key}")
        lines.append(f"- as fast as {name}: {', '.join(said)}")
    return lines


def share(ours: Sequence[Figures]) -> str:
    """Decoding beside the reads between its tokens."""
    each = sorted(figures["bytes"] / figures["decode"] / figures["read"] for figures in ours)
    return (
        f"- of the reading rate in decoding: {median(each):.2f} ({each[0]:.2f} to {each[-1]:.2f})"
    )


def machine() -> str:
    """CPU and thread count, for the page."""
    import llvmlite.binding

    from gptoss_ref.kernels.runtime.isa import path_name

    cpu = llvmlite.binding.get_host_cpu_name()
    return f"{threads()} threads, {platform.machine()} {cpu}, instruction path {path_name()}"


def plot(whole: Mapping[str, Figures], few: Mapping[str, Figures]) -> None:
    """Bars of decode and prefill rates, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(8, 2.6), layout="constrained")
    bars = [(name, whole[name]) for name in whole]
    bars += [(f"{name}, {FEW_LAYERS} layers", few[name]) for name in few]
    names = [name.replace("ours", "gptoss_ref") for name, _ in bars]
    shades = ["0.2" if "gptoss_ref" in name else "0.7" for name in names]
    kinds = (("decode", 1), ("prefill 512", 512))
    for axis, (key, count) in zip(axes, kinds, strict=True):
        values = [count / figures[key] for _, figures in bars]
        drawn = axis.barh(names, values, color=shades)
        axis.bar_label(drawn, [f"{value:.1f}" for value in values], padding=2)
        axis.set_xlabel(f"{key}: tokens/s")
        axis.invert_yaxis()
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    most = whole["ours"]["read"] / whole["ours"]["bytes"]
    rows = (-0.5, len(whole) - 0.5)  # of the whole model
    axes[0].plot((most, most), rows, color="0.4", linestyle=":")
    axes[0].annotate("reading the weights once", (most, -0.6), fontsize=7, ha="center")
    figure.savefig(PLOT, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="keeps the weights between runs")
    parser.add_argument("--layers", type=int, default=24, help="of the model beside llama.cpp")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    parser.add_argument("--prompts", type=int, nargs="+", default=PROMPTS, help=argparse.SUPPRESS)
    parser.add_argument(
        "--without", nargs="+", default=[], choices=CONTESTANTS, help="leave contestants out"
    )
    parser.add_argument("--plot", action="store_true", help="draw docs/performance.svg")
    parser.add_argument(
        "--prefix", default="", help="before each command, such as 'taskset -c 0,1'"
    )
    parser.add_argument("--store", type=Path, help="keep figures there; a further run goes on")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--way", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contestant:
        run = CONTESTANTS[args.contestant][args.way]
        print(json.dumps(run(args.folder, args.prompts)))
        return
    for name in CONTESTANTS:
        if package := missing(name):
            print(f"{name} is left out: there is no {package}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint = prepare(folder, args.layers)
        runs = {"ours": checkpoint}
        for name, matrices in (("llama.cpp", "BF16"), ("llama.cpp Q8_0", "Q8_0")):
            if name not in args.without and not missing(name):
                runs[name] = gguf_of(checkpoint, matrices)
        process = Runs(PROMPTS, args.prefix.split(), args.store)
        rounds = process.take_turns(runs, args.rounds)
        few_rounds: dict[str, list[Figures]] = {}
        if "transformers" not in args.without and not missing("transformers"):
            small = prepare(folder, FEW_LAYERS)
            few_rounds = process.take_turns({"ours": small, "transformers": small}, args.rounds)
    whole = {name: medians(figures) for name, figures in rounds.items()}
    few = {name: medians(figures) for name, figures in few_rounds.items()}
    lines = [f"{machine()}; medians of {args.rounds} round(s).", ""]
    lines += [*table(whole, few, args.layers), "", "This project, ratios within a round:", ""]
    lines += [*ratios(rounds), *ratios(few_rounds), share(rounds["ours"])]
    print("\n".join(lines))
    if args.plot:
        plot(whole, few)
    if args.write:
        from gptoss_ref.kernels.runtime.isa import path_name

        write_page("peers.py", path_name(), "\n".join(lines))


if __name__ == "__main__":
    main()
