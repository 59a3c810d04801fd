"""`gptoss-ref trace MODEL -o FILE`: what a model computes at every tap point, as a file."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from gptoss_ref.cli.console import output
from gptoss_ref.cli.sources import load_model
from gptoss_ref.tracing.trace import trace


def run(args: argparse.Namespace) -> int:
    """Writes the trace, tap by tap, and says what is in it."""
    model = load_model(args)
    tokens = args.tokens if args.prompt is None else model.tokenizer.encode(args.prompt)
    made = trace(model, tokens, taps=args.taps or "*", path=args.output)
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
