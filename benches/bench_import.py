"""`import gptoss_ref` against `import numpy`, each in fresh interpreters taken in turns.

    python benches/bench_import.py [--rounds 10]

Prints medians. "every public name" also loads what the lazy names stand for, as a program that uses
them all would.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from statistics import median

LIMIT = 0.15
CLOCK = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"
CASES = {
    "import numpy": "import numpy",
    "import gptoss_ref": "import gptoss_ref",
    "import gptoss_ref, every public name": (
        "import gptoss_ref; [getattr(gptoss_ref, name) for name in gptoss_ref.__all__]"
    ),
}


def seconds(statement: str) -> float:
    """Seconds that one statement takes in a fresh interpreter, its start-up not counted."""
    command = [sys.executable, "-c", CLOCK.format(statement)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    for statement in CASES.values():  # fill the disk cache and the byte-code cache
        seconds(statement)
    times: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(rounds):
        for name, statement in CASES.items():
            times[name].append(seconds(statement))
    middle = {name: median(values) for name, values in times.items()}
    for name, value in middle.items():
        print(f"{name:38} {value * 1000:7.1f} ms  ({value / middle['import numpy']:.2f} of numpy)")
    extra = middle["import gptoss_ref"] - middle["import numpy"]
    print(f"import gptoss_ref - import numpy = {extra * 1000:+.1f} ms; limit {LIMIT * 1000:.0f} ms")
    return int(extra > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
