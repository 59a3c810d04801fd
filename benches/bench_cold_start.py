"""Starting: compiling the kernels of a chat, and the first token of `gptoss-ref chat` on tiny.

    python -m benches.bench_cold_start [--rounds 5] [--warm-only] [--beside TREE] [--write]

Every figure is that of whole processes, interpreter and imports included. Cold means an empty cache
folder, a temporary one: the first answer then comes from the NumPy layers. The first token is the
first byte that the command prints. Compilation is that for tiny and that for gpt-oss-20b, because
small models use other kernels. It is given in seconds of CPU time, too; with ``--beside``, also
that of all kernels in another checkout of this project, in turns. ``--write`` puts the lines into
docs/performance.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benches.page import write_page

COLD_LIMIT, FIRST_LIMIT, WARM_LIMIT, RATIO_LIMIT = 30.0, 5.0, 1.5, 0.5
GPTOSS_REF = (sys.executable, "-m", "gptoss_ref")
CHAT = (*GPTOSS_REF, "chat", "What is 27 + 58?")
HERE = Path(__file__).resolve().parents[1]
WIDTHS = {"tiny": "96", "the 20b": "2880"}


def whole(*command: str, tree: Path = HERE, **environment: str) -> float:
    """Wall seconds of one command, run in a checkout."""
    start, env = time.perf_counter(), {**os.environ, **environment}
    subprocess.run(command, check=True, capture_output=True, cwd=tree, env=env)
    return time.perf_counter() - start


def compiling(tree: Path, *options: str) -> tuple[float, float]:
    """Wall and CPU seconds of compiling kernels."""
    before = os.times()
    with tempfile.TemporaryDirectory() as folder:
        seconds = whole(*GPTOSS_REF, "warmup", *options, tree=tree, NUMBA_CACHE_DIR=folder)
    after = os.times()
    used = after.children_user + after.children_system
    return seconds, used - before.children_user - before.children_system


def first_byte(**environment: str) -> float:
    """Wall seconds from the start of a chat to the first byte that it prints."""
    env = {**os.environ, **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    start = time.perf_counter()
    with subprocess.Popen(CHAT, env=env, cwd=HERE, **pipes) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        seconds = time.perf_counter() - start
        process.stdout.read()
    return seconds


def cold_first_byte() -> float:
    """The same with nothing compiled."""
    with tempfile.TemporaryDirectory() as folder:
        return first_byte(NUMBA_CACHE_DIR=folder)


def several(measure: Callable[[], float], rounds: int) -> float:
    """The median."""
    return median(measure() for _ in range(rounds))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm-only", action="store_true", help="leave the compilation out")
    parser.add_argument("--beside", type=Path, metavar="TREE", help="another checkout to compile")
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    args = parser.parse_args()
    rows: list[tuple[str, float, float | None]] = []  # what, seconds, limit
    if not args.warm_only:
        rows.append(
            ("first token, nothing compiled", several(cold_first_byte, args.rounds), FIRST_LIMIT)
        )
        runs = [(HERE, "--width", size) for size in WIDTHS.values()]
        runs += [(args.beside,)] if args.beside else []
        taken: list[list[tuple[float, float]]] = [[] for _ in runs]
        for _ in range(max(1, args.rounds // 2)):
            for n, (tree, *options) in enumerate(runs):
                taken[n].append(compiling(tree, *options))
        medians = [tuple(median(one[i] for one in each) for i in (0, 1)) for each in taken]
        for name, (wall, cpu) in zip(WIDTHS, medians, strict=False):
            what = f"compiling the kernels of {name}"
            rows += [(what, wall, COLD_LIMIT), (f"{what}, CPU time", cpu, None)]
            if args.beside:
                ratio = cpu / medians[-1][1]
                rows.append((f"{what}, times the other checkout's", ratio, RATIO_LIMIT))
        if args.beside:
            rows.append(("compiling the other checkout's kernels, CPU time", medians[-1][1], None))
    whole(*GPTOSS_REF, "warmup")
    whole(*CHAT)  # fill the disk cache and the byte-code cache
    rows.append(("first token, kernels compiled", several(first_byte, args.rounds), WARM_LIMIT))
    for name, code in (
        ("of these, the interpreter", "pass"),
        ("and NumPy and Numba", "import numba"),
    ):
        rows.append((name, several(lambda: whole(sys.executable, "-c", code), args.rounds), None))  # noqa: B023
    lines = [
        "| start of `gptoss-ref chat` on tiny | seconds, or times | at most |",
        "|---|---:|---:|",
    ]
    lines += [
        f"| {what} | {value:.2f} | {f'{limit:g}' if limit else ''} |" for what, value, limit in rows
    ]
    print("\n".join(lines))
    if args.write:
        from gptoss_ref.kernels.runtime.isa import path_name

        write_page("bench_cold_start.py", path_name(), "\n".join(lines))
    return int(any(limit is not None and value > limit for _, value, limit in rows))


if __name__ == "__main__":
    sys.exit(main())
