"""What the examples print, in examples/README.md: `python -m docs._generate.examples_readme`
writes it anew.

A ```text block holds one command after `$ ` and all that it prints.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "examples/README.md"
BLOCK = re.compile(r"```text\n\$ python (examples/.*)\n([^`]*)```")

ONE_THREAD = dict.fromkeys(("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
"""Two processes of two threads each, on two cores, would wait for one another most of the time."""


def shown(readme: Path = README) -> dict[str, str]:
    """Command (without `python`) -> output, as a README has it."""
    return dict(BLOCK.findall(readme.read_text(encoding="utf-8")))


def run(command: str) -> str:
    """What a command prints, run as a user would from a checkout, but on one thread."""
    done = subprocess.run(
        [sys.executable, *command.split()],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", **ONE_THREAD},
    )
    ended_well = done.returncode == 0 or (done.returncode == 1 and "Traceback" not in done.stderr)
    assert ended_well, f"{command}\n{done.stdout}{done.stderr}"  # 1: a negative verdict
    return done.stdout


def run_all(commands: list[str]) -> dict[str, str]:
    """Command -> output; two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(commands, pool.map(run, commands), strict=True))


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    fresh = run_all(list(shown()))
    new = BLOCK.sub(lambda m: f"```text\n$ python {m[1]}\n{fresh[m[1]]}```", text)
    README.write_text(new, encoding="utf-8")
