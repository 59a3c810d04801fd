"""`gptoss-ref check FILE.py:FUNCTION OPERATION`: test your own function on the vectors."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys

from gptoss_ref.cli.console import output
from gptoss_ref.cli.options import UsageError
from gptoss_ref.verify.vectors import OPERATIONS, check_file


def run(args: argparse.Namespace) -> int:
    """Prints the result of each case; status 1 if one is wrong."""
    screen = output()
    if args.function is not None and args.operation is None:
        raise UsageError(
            f"expected OPERATION after {args.function}: `gptoss-ref check` lists them all"
        )
    if args.function is None:
        for operation in OPERATIONS.values():
            screen.line(f"{operation.signature} -> {', '.join(operation.outputs)}")
            screen.line(f"    {operation.summary}", dim=True)
        return 0
    with contextlib.redirect_stdout(sys.stderr):  # the function may print
        judgement = check_file(args.function, args.operation)
    screen.line(json.dumps(judgement.to_json()) if args.json else str(judgement))
    return 0 if judgement.ok else 1
