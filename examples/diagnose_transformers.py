"""Give transformers' gpt-oss a window that is one key too wide, and let gptoss_ref find the bug.

    python examples/diagnose_transformers.py --brief
    python examples/diagnose_transformers.py --bug none --dtype bfloat16
    python examples/diagnose_transformers.py --bug no-sinks --html report.html

The model is transformers' GptOssForCausalLM with the bundled checkpoint. ``--bug`` patches it:
``window`` makes a window of W keys W + 1 wide, as in implementations that take W for the distance
to the oldest key (NVIDIA/Megatron-LM#2771); ``no-sinks`` sets every sink to minus infinity. Hooks
record the forward pass, and every tap point is compared with the specification.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gptoss_ref as gr

try:
    import torch
    import transformers
    from transformers import masking_utils
except ImportError:
    sys.exit("this needs torch and transformers: python -m pip install torch transformers")

TEXT = "Sort these numbers: 41, 7, 88, 23, 5, 67, 12. Then add the first and the last of them."


def wider_window(model: Any) -> None:
    """Make the mask keep ``query - key <= W`` instead of ``query - key < W``."""
    right: Callable[[int], Any] = masking_utils.sliding_window_overlay
    masking_utils.sliding_window_overlay = lambda width: right(width + 1)


def no_sinks(model: Any) -> None:
    """Set every sink to minus infinity, so that it takes no attention."""
    for layer in model.model.layers:
        layer.self_attn.sinks.data.fill_(-torch.inf)


def nothing(model: Any) -> None:
    """Leave the model unchanged."""


BUGS = {"window": wider_window, "no-sinks": no_sinks, "none": nothing}


def brief(diagnosis: Any) -> str:
    """The verdict, the first wrong tap point, and the bug that explains it."""
    lines = [diagnosis.verdict]
    if (row := diagnosis.first_divergence) is not None:
        lines += [f"{row.name}: relative L2 {row.rel_l2:.3g}, rounding explains {row.allowed:.1g}"]
    for section in diagnosis.sections():
        lines += ["", section.title, *section.lines]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bug", choices=list(BUGS), default="window")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--prompt", default=TEXT)
    parser.add_argument("--brief", action="store_true", help="omit the table of tap points")
    parser.add_argument("--html", type=Path, help="also write the report as a page")
    options = parser.parse_args(argv)

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = gr.load("tiny")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        model.path, dtype=getattr(torch, options.dtype), attn_implementation="eager"
    )
    BUGS[options.bug](theirs)

    tokens = model.tokenizer.encode(options.prompt)
    trace = gr.verify.capture(theirs, tokens, config=model.config)
    diagnosis = gr.diagnose(model, trace)
    print(brief(diagnosis) if options.brief else diagnosis)
    if options.html is not None:
        options.html.write_text(diagnosis.to_html(), encoding="utf-8")
    return 0 if diagnosis.ok else 1


if __name__ == "__main__":
    sys.exit(main())
