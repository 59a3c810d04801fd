"""`gptoss-ref compare REF OTHER`: find the first tap point at which two traces diverge."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from gptoss_ref.cli.console import notes
from gptoss_ref.cli.reports import show
from gptoss_ref.cli.sources import source
from gptoss_ref.model import load
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.verify.compare import compare
from gptoss_ref.verify.noise.noise_floor import made_by
from gptoss_ref.verify.observe.adapters import read

if TYPE_CHECKING:
    from gptoss_ref.model import Model


def run(args: argparse.Namespace) -> int:
    """Prints the report; status 1 if the traces diverge, or nothing could be judged."""
    ref = Trace.load(args.ref)
    other = read(args.other, tokens=ref.tokens, config=ref.config)
    model = _model(args, ref)
    with notes().progress("comparing", of_bytes=False) as progress:
        report = compare(ref, other, model=model, rounding=args.rounding, progress=progress)
    return show(report, args)


def _model(args: argparse.Namespace, ref: Trace) -> Model | None:
    """The model of REF: that of --model, else the bundled one if REF is a trace of it."""
    if args.model is not None:
        return load(source(args.model, args.download), backend="numpy")
    tiny = load("tiny", backend="numpy")
    return tiny if made_by(tiny, ref) else None
