"""The tiny model's chat, the whole command from start to exit: at most 3 s.

    python benches/bench_chat.py [--rounds 5] [MESSAGE]

Prints the median and where it goes: the interpreter alone, the imports, and the tokens.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from statistics import median

LIMIT = 3.0


def timed(*command: str) -> tuple[float, str]:
    """Wall seconds and standard output of one `python ...` command."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *command], check=True, capture_output=True, text=True)
    return time.perf_counter() - start, done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("message", nargs="?", default="What is 27 + 58?")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    chat = ("-m", "gptoss_ref", "chat", args.message)
    timed(*chat)  # fill the disk cache and the byte-code cache
    whole = [timed(*chat)[0] for _ in range(args.rounds)]
    start_up = median(timed("-c", "pass")[0] for _ in range(args.rounds))
    numpy_import = median(timed("-c", "import numpy")[0] for _ in range(args.rounds))
    reply = json.loads(timed(*chat, "--json")[1])
    print(f"whole command     {median(whole):6.2f} s  (median of {args.rounds}; limit 3)")
    print(f"interpreter alone {start_up:6.2f} s")
    print(f"with NumPy        {numpy_import:6.2f} s")
    print(
        f"answering         {reply['seconds']:6.2f} s  "
        f"({len(reply['tokens'])} tokens, {reply['tokens_per_second']:.1f} a second)"
    )
    return int(median(whole) > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
