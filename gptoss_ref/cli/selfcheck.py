"""`gptoss-ref selfcheck MODEL`: compare the released weights with published outputs."""

from __future__ import annotations

import argparse
import json

from gptoss_ref.cli.console import notes, output
from gptoss_ref.cli.sources import load_model
from gptoss_ref.verify.published import selfcheck

NEGATIVE = 1


def run(args: argparse.Namespace) -> int:
    """Prints each result beside the published one; status 1 if one disagrees."""
    model = load_model(args)
    result = selfcheck(model, progress=_say)
    output().line(json.dumps(result.to_json()) if args.json else str(result))
    return 0 if result.passed else NEGATIVE


def _say(done: int, total: int, title: str) -> None:
    if done < total:
        notes().line(f"{done + 1} of {total}: {title}", dim=True)
