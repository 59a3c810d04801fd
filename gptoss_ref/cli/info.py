"""`gptoss-ref info [MODEL]`: a configuration and its parameter table."""

from __future__ import annotations

import argparse
import json

from gptoss_ref.checkpoint.summary import Component, describe
from gptoss_ref.cli.console import output
from gptoss_ref.cli.sources import source


def run(args: argparse.Namespace) -> int:
    """Prints the table; on a terminal, rich draws it."""
    info, screen = describe(source(args.model, args.download)), output()
    if args.json:
        screen.line(json.dumps(info.to_json()))
        return 0
    if not screen.is_rich:
        screen.line(str(info))
        return 0
    summary, _, totals = str(info).split("\n\n")
    screen.line(summary)
    rows = [*info.components, Component("total", info.total, info.active, info.nbytes)]
    screen.table(
        ("", "parameters", "active", "bytes"),
        [(row.name, f"{row.total:,}", f"{row.active:,}", f"{row.nbytes:,}") for row in rows],
    )
    screen.line(totals)
    return 0
