"""Loading a full-size checkpoint: at most 2 s and 300 MB of resident memory.

    python benches/bench_load.py DIR

DIR may come from make_random_20b.py. The bytes on disk are printed beside the bytes that became
resident: loading maps the shards and reads only their headers.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from memory import PeakMemory

import gptoss_ref as gr

SECONDS, RESIDENT = 2.0, 300e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    on_disk = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    with PeakMemory() as memory:
        start = time.perf_counter()
        model = gr.load(folder, backend="numpy")
        seconds = time.perf_counter() - start
    peak = memory.peak
    print(f"{model.config.num_hidden_layers} layers, {on_disk / 1e9:.1f} GB of tensors on disk")
    print(f"seconds, imports included      {seconds:8.2f}  (limit {SECONDS:.0f})")
    print(f"resident, whole process, peak  {peak.total / 1e6:8.1f} MB  (limit 300)")
    print(f"  allocated by the program     {peak.anonymous / 1e6:8.1f} MB")
    print(f"  pages of mapped files        {peak.file / 1e6:8.1f} MB")
    print(f"  before loading               {memory.before.total / 1e6:8.1f} MB")
    print(f"resident / on disk             {peak.total / on_disk:8.4f}")
    return int(seconds > SECONDS or peak.total > RESIDENT)


if __name__ == "__main__":
    sys.exit(main())
