"""The mutation run: which small changes of the code would the tests of its own room not notice?

    python -m docs._generate.mutation layers numerics       # or nox -s mutation -- layers numerics
    python -m docs._generate.mutation chat --only parser.py --seconds 5
    python -m docs._generate.mutation                       # only the page, from the figures

mutmut makes the changes in a copy of the tree, and `mutation_runner` runs those tests of the room
that call the changed function, for a limited time. What survives is written to
docs/_generate/mutation.json and docs/mutation.md, with the reason if `mutation_reasons` has one.
Messages of errors are not mutated, for the tests match parts of them only. Results are kept in
``--store`` as they come: a run that was stopped goes on where it was, and after new tests only what
survived runs again.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from docs._generate.mutation_mutants import mutated
from docs._generate.mutation_page import FIGURES, PAGE, page
from docs._generate.mutation_rooms import ROOMS, ROOT, Room, files, own_tests
from docs._generate.mutation_runner import KILLED, SLOW, SURVIVED, lines

STORE = ROOT / ".mutation"


def copy_of_the_tree(folder: Path) -> None:
    """The files that git knows, and mutmut's settings; a compiled kernel stays where it is."""
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    wanted = {folder / name for name in names if name and (ROOT / name).is_file()}
    for there in folder.rglob("*.py"):
        if there not in wanted:
            there.unlink()
    for there in wanted:
        source = ROOT / there.relative_to(folder)
        if not there.exists() or there.read_bytes() != source.read_bytes():
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, there)
    with (folder / "setup.cfg").open("a", encoding="utf-8") as settings:
        settings.write("\n[mutmut]\nsource_paths=gptoss_ref\n")


def results_of(room: Room, store: Path) -> Path:
    """The file of a room's results, one line for each mutant."""
    return (store / f"{Path(room.code).parent.name}.jsonl").resolve()


def run(room: Room, code: list[Path], store: Path, seconds: float) -> None:
    """Runs the mutants that have no result yet."""
    tree = store / "tree"
    copy_of_the_tree(tree)
    tests = sorted({test for file in code for test in own_tests(room, file)})
    env = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    runner = [sys.executable, "-m", "docs._generate.mutation_runner"]
    given = [str(results_of(room, store)), str(seconds), *tests]
    subprocess.run(
        [*runner, *given, "--", *(file.as_posix() for file in code)], cwd=tree, env=env, check=True
    )


def counted(file: Path, results: Path) -> dict[str, Any]:
    """What came of a file's mutants of today's code."""
    here = Path.cwd()
    os.chdir(results.parent / "tree")  # mutmut reads its settings there
    try:
        mutants = {one.digest: one for one in mutated(file, (ROOT / file).read_text("utf-8"))[1]}
    finally:
        os.chdir(here)
    order = list(mutants)
    found = [one for one in lines(results) if one["digest"] in mutants]
    by = {outcome: [one for one in found if one["outcome"] == outcome] for outcome in OUTCOMES}
    shown = ("function", "before", "after")
    survivors = sorted(by[SURVIVED], key=lambda one: order.index(one["digest"]))
    return {
        "mutants": len(mutants),
        "killed": len(by[KILLED]),
        "slow": len(by[SLOW]),
        "not_run": len(mutants) - len(found),
        "survivors": [{name: one[name] for name in shown} for one in survivors],
        "date": datetime.date.today().isoformat(),
    }


OUTCOMES = (KILLED, SLOW, SURVIVED)


def versions() -> str:
    """What the run depends on."""
    named = [f"{name} {importlib.metadata.version(name)}" for name in ("mutmut", "numpy", "pytest")]
    return ", ".join([*named, f"Python {platform.python_version()}"])


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m docs._generate.mutation")
    parser.add_argument("rooms", nargs="*", choices=[*ROOMS, []], metavar="ROOM")
    parser.add_argument("--only", metavar="FILE", help="one file of the room")
    parser.add_argument("--seconds", type=float, default=10.0, help="of tests for each mutant")
    parser.add_argument("--store", type=Path, default=STORE, help="folder of the results so far")
    parser.add_argument("--count", action="store_true", help="take the results so far, run nothing")
    args = parser.parse_args(arguments)
    known = json.loads(FIGURES.read_text("utf-8")) if FIGURES.exists() else {}
    for name in args.rooms:
        room = ROOMS[name]
        code = [file for file in files(room) if args.only in (None, file.name)]
        if not args.count:
            run(room, code, args.store, args.seconds)
        for file in code:
            one = counted(file, results_of(room, args.store))
            known[file.as_posix()] = {**one, "seconds": args.seconds, "versions": versions()}
            print(f"{file}: {one['killed'] + one['slow']} of {one['mutants']} killed", flush=True)
        FIGURES.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    PAGE.write_text(page(known), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
