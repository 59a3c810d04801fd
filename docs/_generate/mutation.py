"""The mutation run: which small changes of the code would the tests of its own room not notice?

    python -m docs._generate.mutation layers numerics       # or nox -s mutation -- layers numerics
    python -m docs._generate.mutation chat --only parser.py --processes 2
    python -m docs._generate.mutation                       # only the page, from the figures

mutmut makes the changes, one at a time, in a copy of the tree, and runs those tests of the file
that call the changed function. What survives is written to docs/_generate/mutation.json and
docs/mutation.md, with the reason if `mutation_reasons` has one. What a ``raise`` says is not
mutated, for the tests match parts of messages only.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

from docs._generate.mutation_page import FIGURES, PAGE, page
from docs._generate.mutation_rooms import ROOMS, ROOT, Room, files, own_tests

SETTINGS = """
[mutmut]
source_paths=gptoss_ref
only_mutate={code}
also_copy=
    benches
    docs
    examples
    README.md
    CHANGELOG.md
    CITATION.cff
    LICENSE
    NOTICE
pytest_add_cli_args=
    -p
    no:cacheprovider
    --no-header
pytest_add_cli_args_test_selection=
{tests}
process_isolation=forkserver
timeout_constant=10
"""


@dataclass
class Mutated:
    """What came of one file."""

    mutants: int = 0
    killed: int = 0
    slow: int = 0
    survivors: list[dict[str, str]] = field(default_factory=list)


def copy_of_the_tree(folder: Path, room: Room, file: Path) -> None:
    """The files that git knows, mutmut's settings, and marks at what is not to be mutated."""
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, folder / name)
    (folder / file).write_text(marked((ROOT / file).read_text("utf-8")), encoding="utf-8")
    tests = "\n".join(f"    {name}" for name in own_tests(room, file))
    with (folder / "setup.cfg").open("a", encoding="utf-8") as settings:
        settings.write(SETTINGS.format(code=file.as_posix(), tests=tests))


def marked(source: str) -> str:
    """With mutmut's mark on every line of a ``raise`` statement that is more than its head."""
    lines = source.split("\n")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise) and node.exc is not None:
            for n in range(node.lineno - 1, node.end_lineno or node.lineno):
                if not lines[n].endswith("no mutate"):
                    lines[n] += "  # pragma: no mutate"
    return "\n".join(lines)


def mutate(room: Room, file: Path, processes: int, folder: Path) -> Mutated:
    """Runs mutmut in the folder, which holds its work afterwards; what came of a file."""
    copy_of_the_tree(folder, room, file)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    mutmut = [sys.executable, "-m", "mutmut"]
    run = subprocess.run(
        [*mutmut, "run", "--max-children", str(processes)],
        cwd=folder, env=env, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if run.returncode:
        raise SystemExit(run.stdout[-4000:].decode("utf-8", "replace"))
    meta = folder / "mutants" / f"{file}.meta"
    codes = json.loads(meta.read_text("utf-8"))["exit_code_by_key"]
    one = Mutated(mutants=len(codes))
    for key, code in codes.items():
        if code in (1, 3):
            one.killed += 1
        elif code in (24, -24, 36, 152, 255):
            one.slow += 1
        elif code in (0, 5, 33):  # the latter two: no test calls it
            shown = subprocess.run(
                [*mutmut, "show", key],
                cwd=folder, env=env, capture_output=True, text=True, check=True,
            ).stdout  # fmt: skip
            one.survivors.append(changed(key, shown))
        else:
            raise SystemExit(f"{key}: mutmut's exit code {code} is not known")
    return one


def changed(key: str, diff: str) -> dict[str, str]:
    """The function, and the lines before and after the change."""
    name = re.sub(r"__mutmut_\d+$", "", key.rpartition(".")[2])
    function = name.removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")
    sides = {"-": "before", "+": "after"}
    told = {"function": function, "before": "", "after": ""}
    for line in diff.splitlines():
        side = sides.get(line[:1])
        if side is not None and not line.startswith(("---", "+++")):
            text = line[1:].replace("# pragma: no mutate", "").strip()
            told[side] = f"{told[side]} {text}".strip()
    return told


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m docs._generate.mutation")
    parser.add_argument("rooms", nargs="*", choices=[*ROOMS, []], metavar="ROOM")
    parser.add_argument("--only", metavar="FILE", help="one file of the room")
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args(arguments)
    known = json.loads(FIGURES.read_text("utf-8")) if FIGURES.exists() else {}
    for room, file in ((ROOMS[name], file) for name in args.rooms for file in files(ROOMS[name])):
        if args.only not in (None, file.name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            one = mutate(room, file, args.processes, Path(folder))
        known[file.as_posix()] = asdict(one)
        print(f"{file}: {one.killed + one.slow} of {one.mutants} killed", flush=True)
        FIGURES.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    PAGE.write_text(page(known), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
