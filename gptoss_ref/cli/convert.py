"""`gptoss-ref convert SRC DST`: write a checkpoint in another layout or expert format."""

from __future__ import annotations

import argparse
import json

from gptoss_ref.checkpoint import convert
from gptoss_ref.cli.console import notes, output
from gptoss_ref.cli.sources import source


def run(args: argparse.Namespace) -> int:
    """Converts, with a progress bar on a terminal, and prints a summary."""
    with notes().progress("writing") as progress:
        done = convert(
            source(args.source, args.download),
            args.target,
            adapter=args.adapter,
            layout=args.layout,
            experts=args.experts,
            progress=progress,
        )
    output().line(json.dumps(done.to_json()) if args.json else str(done))
    return 0
