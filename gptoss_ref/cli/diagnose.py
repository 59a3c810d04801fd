"""`gptoss-ref diagnose MODEL OTHER`, or `--endpoint URL`: which known bug explains the numbers."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from gptoss_ref.cli.console import notes
from gptoss_ref.cli.parser import UsageError
from gptoss_ref.cli.reports import show
from gptoss_ref.cli.sources import source
from gptoss_ref.model import load
from gptoss_ref.verify import diagnose, observe

if TYPE_CHECKING:
    from gptoss_ref.model import Model
    from gptoss_ref.verify.observe.observation import LogprobObservation


def run(args: argparse.Namespace) -> int:
    """Prints the diagnosis; status 1 if anything is wrong, or nothing could be judged."""
    if (args.other is None) == (args.endpoint is None):
        raise UsageError("expected either OTHER or --endpoint URL (see gptoss-ref diagnose --help)")
    model = load(source(args.model, args.download), backend="numpy")
    tokens = args.tokens if args.prompt is None else model.tokenizer.encode(args.prompt)
    other: str | LogprobObservation = args.other
    if args.endpoint is not None:
        other = _observed(args, model, tokens)
    with notes().progress("diagnosing", of_bytes=False) as progress:
        report = diagnose(model, other, tokens=tokens, rounding=args.rounding, progress=progress)
    return show(report, args)


def _observed(
    args: argparse.Namespace, model: Model, tokens: list[int] | None
) -> LogprobObservation:
    """What the server says of the prompt."""
    if tokens is None:
        raise UsageError("--endpoint needs a prompt: expected --prompt TEXT or --tokens IDS")
    key = None
    if args.api_key_env is not None:
        key = os.environ.get(args.api_key_env)
        if not key:
            raise UsageError(f"the environment variable {args.api_key_env} is not set")
    return observe(
        args.endpoint,
        model.checked(tokens),
        tokenizer=model.tokenizer,
        config=model.config,
        model=args.served_model,
        timeout=args.timeout,
        api_key=key,
    )
