"""`gptoss-ref vectors DIR`: write the conformance suite, or judge results."""

from __future__ import annotations

import argparse
import json
from collections import Counter

from gptoss_ref.cli.console import Screen, output
from gptoss_ref.cli.options import UsageError
from gptoss_ref.verify.vectors import (
    check_harmony_file,
    check_vectors,
    harmony_vectors,
    write_vectors,
)
from gptoss_ref.verify.vectors.operations import OPERATIONS
from gptoss_ref.verify.vectors.results import has_results
from gptoss_ref.verify.vectors.suite import cases_of


def run(args: argparse.Namespace) -> int:
    """Writes the suite, or with `--check` judges results; status 1 if some are wrong or missing."""
    screen = output()
    if args.precision is not None and not args.check:
        raise UsageError("--precision goes with --check (see gptoss-ref vectors --help)")
    if args.check:
        return _check(args, screen)
    digest = write_vectors(args.folder)
    cases = {name: len(cases_of(operation)) for name, operation in OPERATIONS.items()}
    cases |= Counter(case["operation"] for case in harmony_vectors()["cases"])
    if args.json:
        screen.line(json.dumps({"folder": args.folder, "sha256": digest, "cases": cases}))
    else:
        screen.line(f"{args.folder}: {sum(cases.values())} cases of {len(cases)} operations")
        screen.line(f"sha256 {digest}")
    return 0


def _check(args: argparse.Namespace, screen: Screen) -> int:
    """Judges the numbers, the Harmony answers, or both, as the folder holds them."""
    harmony = check_harmony_file(args.folder)
    ok, answer, lines = True, {}, []
    if harmony is None or has_results(args.folder):
        judgement = check_vectors(args.folder, args.precision or "float32")
        ok, answer, lines = judgement.ok, judgement.to_json(), [str(judgement)]
    if harmony is not None:
        ok = ok and harmony.ok
        answer["harmony"] = harmony.to_json()
        lines.append(str(harmony))
    screen.line(json.dumps(answer | {"ok": ok}) if args.json else "\n".join(lines))
    return 0 if ok else 1
