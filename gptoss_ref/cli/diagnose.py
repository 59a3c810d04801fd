"""`gptoss-ref diagnose MODEL OTHER`, or `--endpoint URL`: name the bug in the numbers."""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from gptoss_ref._files import read_object
from gptoss_ref.cli.console import notes
from gptoss_ref.cli.options import UsageError
from gptoss_ref.cli.reports import show
from gptoss_ref.cli.sources import prompt_of, source
from gptoss_ref.errors import ConfigError, TraceError
from gptoss_ref.model import load
from gptoss_ref.verify import diagnose, observe, read
from gptoss_ref.verify.observe.adapters.files import names_of
from gptoss_ref.verify.observe.adapters.suggest import UnknownName
from gptoss_ref.verify.observe.observation import LogprobObservation

if TYPE_CHECKING:
    from gptoss_ref.model import Model
    from gptoss_ref.tracing.trace import Trace
    from gptoss_ref.verify.report.diagnosis import Diagnosis


def run(args: argparse.Namespace) -> int:
    """Prints the diagnosis; status 1 if something is wrong, or nothing could be judged."""
    if bool(args.other) == (args.endpoint is not None):
        raise UsageError("expected either OTHER or --endpoint URL (see gptoss-ref diagnose --help)")
    model = load(source(args.model, args.download), backend="numpy")
    tokens = prompt_of(args, lambda: model.tokenizer)
    with ExitStack() as stack:
        if args.endpoint is not None:
            other: Trace | LogprobObservation = _observed(args, model, tokens)
        else:
            paths = [stack.enter_context(_named(name)) for name in args.other]
            with _renamed({path: name for name, path in zip(args.other, paths, strict=True)}):
                other = _read(args, model, paths, tokens)
        progress = stack.enter_context(notes().progress("diagnosing", of_bytes=False))
        report = diagnose(
            model,
            other,
            tokens=tokens,
            rounding=args.rounding,
            progress=progress,
            early=_early if _large(other) else None,
            **_narrowed(args),
        )
    return show(report, args)


LARGE = 1 << 26
"""Number of values from which a diagnosis takes minutes."""


def _large(other: Trace | LogprobObservation) -> bool:
    if isinstance(other, LogprobObservation):
        return False
    return sum(math.prod(other.shape_of(tap)) for tap in other) > LARGE


def _early(diagnosis: Diagnosis) -> None:
    """Prints the bugs of the first block while the diagnosis continues with the others."""
    screen = notes()
    screen.line("the first block diverges; checking the other blocks")
    for cause in diagnosis.causes:
        screen.line("\n".join(cause.lines()))
    for unexplained in diagnosis.unexplained:
        screen.line("\n".join(unexplained.lines()))


def _narrowed(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of diagnose from --taps and --layers."""
    if args.taps is None and args.layers is None:
        return {}
    return {"taps": args.taps, "layers": args.layers}


@contextmanager
def _named(name: str) -> Iterator[Path]:
    """The path of OTHER; for '-', a temporary file with the contents of stdin."""
    if name != "-":
        yield Path(name)
        return
    with TemporaryDirectory() as folder:
        path = Path(folder, "stdin")
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        yield path


@contextmanager
def _renamed(names: dict[Path, str]) -> Iterator[None]:
    """Call the temporary file of stdin by that name in messages of the block."""
    try:
        yield
    except TraceError as error:
        message = str(error)
        for path in (path for path, name in names.items() if name == "-"):
            message = message.replace(str(path), path.name)
        raise TraceError(message) from None


def _read(
    args: argparse.Namespace, model: Model, paths: list[Path], tokens: list[int] | None
) -> Trace:
    """OTHER as a trace; the error for an unknown name explains --names and --skip-unknown."""
    names = None
    if args.names is not None:
        try:
            names = names_of(read_object(Path(args.names)), model.config)
        except (ConfigError, TraceError) as error:
            raise TraceError(f"--names {args.names}: {error}") from None
    try:
        return read(
            paths,
            tokens=tokens,
            config=model.config,
            names=names,
            unknown="skip" if args.skip_unknown else "raise",
            positions=args.positions,
        )
    except UnknownName as error:
        remedy = (
            f"(to map it, use --names FILE with {json.dumps({error.name: error.example})} in FILE; "
            "--skip-unknown leaves it out)"
        )
        raise TraceError(str(error).replace(error.remedy(), remedy)) from None
    except TraceError as error:
        message = str(error).replace("(positions=)", "(--positions)")
        raise TraceError(
            message.replace("pass the model's configuration", "expected a trace")
        ) from None


def _observed(
    args: argparse.Namespace, model: Model, tokens: list[int] | None
) -> LogprobObservation:
    """The server's log-probabilities for the prompt."""
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
