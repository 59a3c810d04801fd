"""Runs the fuzzing: see the package. Exit status 1 if something crashed."""

from __future__ import annotations

import argparse
import base64
import contextlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from gptoss_ref.errors import GptOssError

NAMES = (
    "safetensors", "config-hf", "config-openai", "index", "tokenizer", "trace", "npz", "harmony",
    "endpoint", "http", "vectors",
)  # fmt: skip
"""The targets' names: making the targets imports the package, which atheris must see first."""


@dataclass
class Outcome:
    """What a run of one target came to."""

    target: str
    reads: str
    engine: str
    seed: int
    inputs: int
    accepted: int | None
    seconds: float
    crashes: list[str]


def fuzz(name: str, count: int, seed: int, most_crashes: int = 10) -> Outcome:
    """``count`` mutated inputs of one target; the same for the same seed.

    Ctrl-C and SIGTERM end it early, with what was done until then.
    """
    from tests.fuzz.targets import targets

    target = targets()[name]
    rng = random.Random(f"{name} {seed}")
    for valid in target.seeds:  # a seed that is refused would fuzz nothing
        try:
            target.run(valid)
        except GptOssError:
            assert name in ("endpoint", "http"), f"{name}: a seed is refused"
    began, accepted, done = time.perf_counter(), 0, 0
    crashes: list[str] = []
    while done < count and len(crashes) < most_crashes:
        done += 1
        try:
            data = target.make(target.seeds, rng)
            target.run(data)
            accepted += 1
        except GptOssError:
            pass
        except KeyboardInterrupt:
            done -= 1
            break
        except BaseException as error:
            shown = base64.b85encode(data).decode()
            crashes.append(f"{type(error).__name__}: {str(error)[:200]}: {shown[:2000]}")
            print(f"{name}: input {done} of seed {seed}: {crashes[-1]}", flush=True)
    seconds = time.perf_counter() - began
    return Outcome(name, target.reads, "mutations", seed, done, accepted, seconds, crashes)


def fuzz_guided(name: str, count: int, seed: int) -> Outcome:
    """The same by atheris, in a process of its own, which it ends itself."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as corpus:
        run = subprocess.run(
            [sys.executable, "-m", "tests.fuzz", name, "--guided", corpus, "--count", str(count),
             "--seed", str(seed)],
            capture_output=True, text=True,
        )  # fmt: skip
    done = re.findall(r"^#(\d+)\s|Done (\d+) runs", run.stderr, re.MULTILINE)
    inputs = max((int(a or b) for a, b in done), default=0)
    crashes = [] if run.returncode == 0 else [run.stderr[-3000:]]
    print("\n".join(crashes))
    seconds = time.perf_counter() - began
    from tests.fuzz.targets import targets

    reads = targets()[name].reads
    return Outcome(name, reads, "atheris", seed, inputs, None, seconds, crashes)


def _guided(name: str, corpus: str, count: int, seed: int) -> None:
    import atheris

    with atheris.instrument_imports(include=["gptoss_ref"]):
        from tests.fuzz.targets import targets
    target = targets()[name]
    for number, valid in enumerate(target.seeds):
        (Path(corpus) / str(number)).write_bytes(valid)

    def run(data: bytes) -> None:
        with contextlib.suppress(GptOssError):
            target.run(data)

    atheris.Setup([sys.argv[0], f"-runs={count}", f"-seed={seed}", "-max_len=65536", corpus], run)
    atheris.Fuzz()


def _chosen(args: argparse.Namespace) -> Iterator[Outcome]:
    for name in NAMES if args.target == "all" else (args.target,):
        run = fuzz_guided if args.engine == "atheris" else fuzz
        outcome = run(name, args.count, args.seed)
        refused = "" if outcome.accepted is None else f", {outcome.accepted} accepted"
        print(
            f"{name}: {outcome.inputs} inputs{refused}, {len(outcome.crashes)} crashes, "
            f"{outcome.seconds:.0f} s",
            flush=True,
        )
        yield outcome


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("target", choices=[*NAMES, "all"])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=["mutations", "atheris"], default="mutations")
    parser.add_argument("--figures", action="store_true", help="write them to docs/reliability.md")
    parser.add_argument("--guided", metavar="CORPUS", help=argparse.SUPPRESS)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if args.guided:
        _guided(args.target, args.guided, args.count, args.seed)
    crashed = False
    for outcome in _chosen(args):
        crashed |= bool(outcome.crashes)
        if args.figures:
            from docs._generate.reliability import record

            record("fuzz", f"{outcome.target} {outcome.engine}", asdict(outcome))
    return int(crashed)


if __name__ == "__main__":
    sys.exit(main())
