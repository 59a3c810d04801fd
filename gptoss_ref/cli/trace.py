"""`gptoss-ref trace MODEL -o FILE`: write the arrays of all tap points to a file."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from gptoss_ref.cli.console import notes, output
from gptoss_ref.cli.sources import compile_kernels, load_model, prompt_of
from gptoss_ref.tracing.file import check_suffix
from gptoss_ref.tracing.record import file_size, trace

WORTH_SAYING = 50e6
"""Size in bytes from which the command announces the size of the file."""


def run(args: argparse.Namespace) -> int:
    """Writes the trace and prints a summary."""
    check_suffix(Path(args.output))
    model = load_model(args, compiled=False)
    tokens = prompt_of(args, lambda: model.tokenizer) or []
    length = len(model.checked(tokens, 0))
    expected = file_size(model, length, args.taps or "*")
    compile_kernels(model)
    if expected >= WORTH_SAYING:
        notes().line(f"{args.output}: will be {expected / 1e6:.0f} MB")
    with notes().progress("tracing", of_bytes=False) as progress:
        made = trace(model, tokens, taps=args.taps or "*", path=args.output, progress=progress)
    size = Path(args.output).stat().st_size
    result = {
        "path": args.output,
        "taps": list(made),
        "tokens": made.tokens.tolist(),
        "producer": made.producer,
        "policy": made.policy,
        "bytes": size,
    }
    text = (
        f"{args.output}: {len(made)} tap points of {len(made.tokens)} tokens, {made.producer}, "
        f"{made.policy}, {size / 1e6:.1f} MB"
    )
    output().line(json.dumps(result) if args.json else text)
    return 0
