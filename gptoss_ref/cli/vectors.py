"""`gptoss-ref vectors DIR`: write the conformance suite, or judge somebody's results."""

from __future__ import annotations

import argparse
import json

from gptoss_ref.cli.console import output
from gptoss_ref.cli.parser import UsageError
from gptoss_ref.verify.vectors import check_vectors, write_vectors
from gptoss_ref.verify.vectors.operations import OPERATIONS
from gptoss_ref.verify.vectors.suite import cases_of


def run(args: argparse.Namespace) -> int:
    """Writes, or with `--check` judges: 1 if something is wrong or missing."""
    screen = output()
    if args.precision is not None and not args.check:
        raise UsageError("--precision goes with --check (see gptoss-ref vectors --help)")
    if args.check:
        judgement = check_vectors(args.folder, args.precision or "float32")
        screen.line(json.dumps(judgement.to_json()) if args.json else str(judgement))
        return 0 if judgement.ok else 1
    digest = write_vectors(args.folder)
    cases = {name: len(cases_of(operation)) for name, operation in OPERATIONS.items()}
    if args.json:
        screen.line(json.dumps({"folder": args.folder, "sha256": digest, "cases": cases}))
    else:
        screen.line(f"{args.folder}: {sum(cases.values())} cases of {len(cases)} operations")
        screen.line(f"sha256 {digest}")
    return 0
