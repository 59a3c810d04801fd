"""`gptoss-ref compare REF OTHER`: the first tap point at which two traces part."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from gptoss_ref.model import load
from gptoss_ref.trace import Trace
from gptoss_ref.verify.adapters import read
from gptoss_ref.verify.compare import compare
from gptoss_ref.verify.report_text import lines
from gptoss_ref.verify.yardstick import made_by

from .console import notes, output
from .sources import source

if TYPE_CHECKING:
    from gptoss_ref.model import Model

NEGATIVE = 1


def run(args: argparse.Namespace) -> int:
    """Prints the report; status 1 if the traces part."""
    ref = Trace.load(args.ref)
    other = read(args.other, tokens=ref.tokens, config=ref.config)
    report = compare(ref, other, model=_model(args, ref), rounding=args.rounding)
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


def _model(args: argparse.Namespace, ref: Trace) -> Model | None:
    """The model that made REF: the one named, else the bundled one if REF is a trace of it."""
    if args.model is not None:
        return load(source(args.model, args.download), backend="numpy")
    tiny = load("tiny", backend="numpy")
    return tiny if made_by(tiny, ref) else None
