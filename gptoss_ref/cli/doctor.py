"""`gptoss-ref doctor`: processor, kernels and memory speed of this machine, and what they allow."""

from __future__ import annotations

import argparse
import json
from typing import Any

from gptoss_ref.cli.compiling import compile_once
from gptoss_ref.cli.console import output
from gptoss_ref.config import GPT_OSS_20B, GPT_OSS_120B
from gptoss_ref.kernels.runtime.doctor import doctor

CONFIGS = {"20b": GPT_OSS_20B, "120b": GPT_OSS_120B}


def run(args: argparse.Namespace) -> int:
    """Measures and prints."""
    compile_once()
    report = doctor(CONFIGS, megabytes=args.megabytes)
    output().line(json.dumps(report) if args.json else "\n".join(_lines(report)))
    return 0


def _lines(report: dict[str, Any]) -> list[str]:
    rates = report["read_gigabytes_per_second"]
    predicted = report["predicted_tokens_per_second"]
    rows = {
        "CPU": f"{report['cpu']} ({report['machine']})",
        "features": " ".join(report["cpu_features"]) or "none that the kernels use",
        "instruction path": f"{report['instruction_path']} of {report['instruction_paths']}",
        "threads": f"{report['threads']}, layer {report['threading_layer']}",
        "kernel cache": report["cache_folder"] or "no folder can be written",
        "versions": ", ".join(f"{name} {value}" for name, value in report["versions"].items()),
        "memory read": f"{rates['plain']:.1f} GB/s, {rates['prefetching']:.1f} with prefetching",
        "decoding, at most": ", ".join(
            f"{rate:.1f} tokens/s of {name}" for name, rate in predicted.items()
        ),
    }
    return [f"{name:<18}{value}" for name, value in rows.items()]
