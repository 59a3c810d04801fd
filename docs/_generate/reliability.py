"""Writes docs/reliability.md out of the figures that the fuzzing and the faults have taken.

    python -m docs._generate.reliability        # the page again, from the figures that are there

``python -m tests.fuzz all --figures`` and ``python -m tests.faults all --figures`` take figures,
put them into docs/_generate/reliability.json, and write the page.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gptoss_ref._files import replacing
from tests.faults.__main__ import KINDS, plan
from tests.fuzz.__main__ import NAMES

HERE = Path(__file__).resolve().parent
FIGURES = HERE / "reliability.json"
PAGE = HERE.parent / "reliability.md"

Figures = dict[str, dict[str, dict[str, Any]]]


def figures() -> Figures:
    """What has been recorded: kind (fuzz, faults), name, figures."""
    found: Figures = {"fuzz": {}, "faults": {}}
    return found | (json.loads(FIGURES.read_text("utf-8")) if FIGURES.exists() else {})


def record(kind: str, name: str, values: dict[str, Any]) -> None:
    """Keep the figures of one run, in place of older ones of that name, and write the page."""
    with _alone():
        _record(kind, name, values)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Two runs may end at the same time."""
    lock = HERE / ".reliability.lock"
    while True:
        try:
            lock.mkdir()
            break
        except FileExistsError:
            time.sleep(0.05)
    try:
        yield
    finally:
        lock.rmdir()


def _record(kind: str, name: str, values: dict[str, Any]) -> None:
    known = figures()
    known[kind][name] = {
        **values,
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    with replacing(FIGURES) as file:
        file.write((json.dumps(known, indent=1, sort_keys=True) + "\n").encode())
    with replacing(PAGE) as file:
        file.write(page(known).encode())


def page(known: Figures) -> str:
    """The page."""
    return "\n".join(_lines(known)) + "\n"


def untried(known: Figures) -> list[str]:
    """Targets and faults of which there are no figures."""
    done = {name.split()[0] for name in known["fuzz"]} | {*known["faults"]}
    scenarios = (name for kind in KINDS for name, _ in plan(kind, 1, 0, 1.0))
    return [name for name in (*NAMES, *scenarios) if name not in done]


def _lines(known: Figures) -> Iterator[str]:
    yield """# Reliability

What was tried against this package, how often, and what came of it. The promises themselves are in
`SECURITY.md`.

This page is written by the scripts that take the figures; `python -m docs._generate.reliability`
writes it again from `docs/_generate/reliability.json`.

## Fuzzing

`python -m tests.fuzz all --count 1000000 --figures`, or `nox -s fuzz`. An input is a valid one
with a few random changes. It is a crash if reading it raises anything but a `GptOssError`, or if
what was read breaks the target's own promise (`tests/fuzz/targets.py`). *Accepted* inputs were read
without an error. *mutations* is the project's own generator; *atheris* is guided by coverage.

| target | what is read | generator | seed | inputs | accepted | crashes | date |
|---|---|---|---|---|---|---|---|"""
    for name, run in sorted(known["fuzz"].items()):
        accepted = "" if run["accepted"] is None else f"{run['accepted']:,}"
        yield (
            f"| {name.split()[0]} | {run['reads']} | {run['engine']} | {run['seed']} | "
            f"{run['inputs']:,} | {accepted} | {len(run['crashes'])} | {run['date']} |"
        )
    yield """
Every crash that fuzzing has found is a named case in `tests/fuzz/test_fuzz.py`.

## Faults

`python -m tests.faults all --figures`, or `nox -s faults`; as root on Linux for the full disk and
the read-only home.

| fault | what is tried | what must hold | times | held | seconds | date |
|---|---|---|---|---|---|---|"""
    for name, run in sorted(known["faults"].items()):
        yield (
            f"| {name} | {run['tried']} | {run['promise']} | {run['times']:,} | {run['held']:,} | "
            f"{run['seconds']:.0f} | {run['date']} |"
        )
    notes = [
        f"- {name}: {run['note']}" for name, run in sorted(known["faults"].items()) if run["note"]
    ]
    if notes:
        yield ""
        yield from notes
    missing = untried(known)
    if missing:
        yield f"\nNot among these runs: {', '.join(missing)}."
    runs = [run for kind in known.values() for run in kind.values()]
    machines = sorted({f"Python {run['python']} on {run['system']}" for run in runs})
    yield f"\nTaken with {', '.join(machines)}."


def main() -> int:
    """The command line."""
    PAGE.write_text(page(figures()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
