"""Starting: compiling all kernels of a chat, and the first token of `gptoss-ref chat` on tiny.

    python benches/bench_cold_start.py [--rounds 5] [--warm-only]

Every figure is that of whole processes, interpreter and imports included. Cold means an empty cache
folder, a temporary one: the first answer then comes from the NumPy layers. The first token is the
first byte that the command prints. Compilation is given in seconds of CPU time, too.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from statistics import median

COLD_LIMIT, FIRST_LIMIT, WARM_LIMIT = 30.0, 5.0, 1.5
GPTOSS_REF = (sys.executable, "-m", "gptoss_ref")
CHAT = (*GPTOSS_REF, "chat", "What is 27 + 58?")


def whole(*command: str, **environment: str) -> float:
    """Wall seconds of one command."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, **environment})
    return time.perf_counter() - start


def first_byte(**environment: str) -> float:
    """Wall seconds from the start of a chat to the first byte that it prints."""
    start, env = time.perf_counter(), {**os.environ, **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(CHAT, env=env, **pipes) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        seconds = time.perf_counter() - start
        process.stdout.read()
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm-only", action="store_true", help="leave the compilation out")
    args = parser.parse_args()
    failed = False
    if not args.warm_only:
        with tempfile.TemporaryDirectory() as folder:
            first = median(first_byte(NUMBA_CACHE_DIR=folder) for _ in range(args.rounds))
            before = os.times().children_user
            cold = whole(*GPTOSS_REF, "warmup", NUMBA_CACHE_DIR=folder)
            cpu = os.times().children_user - before
        print(f"first token, nothing compiled    {first:6.2f} s  (limit {FIRST_LIMIT:g})")
        print(f"compiling all kernels of a chat  {cold:6.2f} s  (limit {COLD_LIMIT:g})")
        print(f"  of CPU time                    {cpu:6.2f} s")
        failed = cold > COLD_LIMIT or first > FIRST_LIMIT
    whole(*GPTOSS_REF, "warmup")
    whole(*CHAT)  # fill the disk cache and the byte-code cache
    start_up = median(whole(sys.executable, "-c", "pass") for _ in range(args.rounds))
    numba = median(whole(sys.executable, "-c", "import numba") for _ in range(args.rounds))
    warm = median(first_byte() for _ in range(args.rounds))
    print(f"first token, kernels compiled    {warm:6.2f} s  (limit {WARM_LIMIT:g})")
    print(f"  of these, the interpreter      {start_up:6.2f} s")
    print(f"  and importing numba            {numba - start_up:6.2f} s")
    return int(failed or warm > WARM_LIMIT)


if __name__ == "__main__":
    sys.exit(main())
