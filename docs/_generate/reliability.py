"""Writes docs/reliability.md from the recorded figures of fuzzing and fault injection.

    python -m docs._generate.reliability        # write the page again

``python -m tests.fuzz all --figures`` and ``python -m tests.faults all --figures`` record figures
in docs/_generate/reliability.json, and write the page.
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
    """The recorded figures by kind (fuzz, faults) and name."""
    found: Figures = {"fuzz": {}, "faults": {}}
    return found | (json.loads(FIGURES.read_text("utf-8")) if FIGURES.exists() else {})


def record(kind: str, name: str, values: dict[str, Any]) -> None:
    """Replace the figures with this name by those of a new run, and write the page."""
    with _alone():
        _record(kind, name, values)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """A lock, because two runs may end at the same time."""
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
    """Targets and faults without figures."""
    done = {name.split()[0] for name in known["fuzz"]} | {*known["faults"]}
    scenarios = (name for kind in KINDS for name, _ in plan(kind, 1, 0, 1.0))
    return [name for name in (*NAMES, *scenarios) if name not in done]


def _lines(known: Figures) -> Iterator[str]:
    yield """# Reliability

Results of fuzzing and of fault injection: the number of trials and the failures. The promises are
in `SECURITY.md`.

The scripts that record the figures write this page; `python -m docs._generate.reliability` writes
it again from `docs/_generate/reliability.json`.

## Fuzzing

`python -m tests.fuzz all --count 1000000 --figures`, or `nox -s fuzz`. An input is a valid one with
a few random changes. It counts as a crash if reading it raises anything but a `GptOssError`, or if
the result breaks the target's promise (`tests/fuzz/targets.py`). *Accepted* inputs were read
without an error. *mutations* is the project's own generator; *atheris* is guided by coverage.

| target | input | generator | seed | inputs | accepted | crashes | date |
|---|---|---|---|---|---|---|---|"""
    for name, run in sorted(known["fuzz"].items()):
        accepted = "" if run["accepted"] is None else f"{run['accepted']:,}"
        yield (
            f"| {name.split()[0]} | {run['reads']} | {run['engine']} | {run['seed']} | "
            f"{run['inputs']:,} | {accepted} | {len(run['crashes'])} | {run['date']} |"
        )
    yield """
Every crash that fuzzing has found is a named test case in `tests/fuzz/test_fuzz.py`.

## Faults

`python -m tests.faults all --figures`, or `nox -s faults`. The full disk and the read-only home
need root on Linux.

| fault | trial | must hold | trials | held | seconds | date |
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
        yield f"\nNot yet run: {', '.join(missing)}."
    runs = [run for kind in known.values() for run in kind.values()]
    machines = sorted({f"Python {run['python']} on {run['system']}" for run in runs})
    yield f"\nMeasured with {', '.join(machines)}."


def main() -> int:
    """The command line."""
    PAGE.write_text(page(figures()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
