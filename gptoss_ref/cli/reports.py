"""Print a comparison or a diagnosis, and return its exit status."""

from __future__ import annotations

import argparse
import json

from gptoss_ref.cli.console import notes, output
from gptoss_ref.verify.report.report import Report
from gptoss_ref.verify.report.text import lines

NEGATIVE = 1


def show(report: Report, args: argparse.Namespace) -> int:
    """Prints a report as text or JSON, and writes its HTML page if asked for.

    The status is 0 only if something was judged and nothing is wrong.
    """
    if args.html is not None:
        report.to_html(args.html)
        notes().line(f"{args.html}: written")
    screen = output()
    if args.json:
        screen.line(json.dumps(report.to_json()))
    else:
        for line in lines(report, verbose=args.verbose):
            screen.line(line.text, style=line.style)
    return 0 if report.ok else NEGATIVE
