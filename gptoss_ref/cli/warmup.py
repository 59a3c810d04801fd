"""`gptoss-ref warmup`: compile the kernels now, so that no later command has to."""

from __future__ import annotations

import argparse
import json
import time

from gptoss_ref.cli.compiling import compile_once
from gptoss_ref.cli.console import output
from gptoss_ref.kernels.runtime.isa import path_name
from gptoss_ref.kernels.runtime.jit import cache_folder


def run(args: argparse.Namespace) -> int:
    """Compiles the kernels if necessary; prints the folder of the compiled kernels."""
    start = time.perf_counter()
    done_before = compile_once(args.width)
    folder = cache_folder()
    result = {
        "width": args.width,
        "compiled": not done_before,
        "seconds": round(time.perf_counter() - start, 3),
        "instruction_path": path_name(),
        "cache_folder": None if folder is None else str(folder),
    }
    if args.json:
        output().line(json.dumps(result))
        return 0
    what = "already compiled" if done_before else f"compiled in {result['seconds']:.1f} s"
    where = f"in {folder}" if folder else "not kept"
    models = f"models like those of width {args.width}" if args.width else "all models"
    output().line(f"kernels for {path_name()} and {models}: {what}, {where}")
    return 0
