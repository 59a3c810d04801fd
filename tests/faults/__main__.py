"""Runs the faults: see the package. Exit status 1 if something did not hold."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial

from tests.faults import scenarios
from tests.faults.scenarios import Outcome, needs_mount
from tests.faults.writers import WRITERS

KINDS = ("kill", "disk", "reading", "cache", "home", "clock", "threads")


def plan(kind: str, times: int, seed: int, minutes: float) -> Iterator[tuple[str, Callable]]:
    """The scenarios of one kind by name."""
    if kind == "kill":
        for name in WRITERS:
            yield f"kill: {name}", partial(scenarios.killed, name, times, seed)
    elif kind == "disk":
        for name in WRITERS:
            act = partial(scenarios.full_disk, name, times, seed)
            yield f"full disk: {name}", partial(needs_mount, act)
    elif kind == "reading":
        yield "read beside convert", partial(scenarios.read_while_converting, times, seed)
        yield "read beside replace", partial(scenarios.read_while_replacing, 10 * times, seed)
    elif kind == "cache":
        yield "one kernel cache", partial(scenarios.one_kernel_cache, max(1, times // 50), seed)
    elif kind == "home":
        act = partial(scenarios.read_only_home, max(1, times // 100), seed)
        yield "read-only home", partial(needs_mount, act)
    elif kind == "clock":
        yield "clock jumps", partial(scenarios.clock_jumps, times, seed)
    else:
        yield "threads", partial(scenarios.many_threads, minutes, seed)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("kind", choices=[*KINDS, "all"])
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=10.0, help="of the threads")
    parser.add_argument("--figures", action="store_true", help="write them to docs/reliability.md")
    args = parser.parse_args()
    wrong = False
    for kind in KINDS if args.kind == "all" else (args.kind,):
        for name, act in plan(kind, args.times, args.seed, args.minutes):
            outcome: Outcome | None = act()
            if outcome is None:
                continue
            print(
                f"{name}: {outcome.held} of {outcome.times} held, {outcome.seconds:.0f} s",
                *outcome.failures[:5],
                sep="\n  ",
                flush=True,
            )
            wrong |= bool(outcome.failures)
            if args.figures:
                from docs._generate.reliability import record

                record("faults", name, asdict(outcome))
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
