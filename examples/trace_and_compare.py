"""Trace the model at every tap point, save the trace, and compare other runs with it.

    python examples/trace_and_compare.py

The reference is the float64 trace, read from a file. The other runs are the same model rounded to
bfloat16 after every step, and one in float32 whose windows are one key too wide. Prints the size of
the trace, then the verdict of each comparison and the distance of its logits. A comparison checks
whether rounding explains a difference, not whether it is small.
"""

import dataclasses
import tempfile
from pathlib import Path

import gptoss_ref as gr
from gptoss_ref.backend import NUMPY

QUESTION = "Sort the digits 5 2 9 1 and then reverse the word strawberry."


def a_key_more(layer):
    """The layer with a window (its last argument) that is one key too wide."""
    return lambda *given, policy: layer(*given[:-1], given[-1] and given[-1] + 1, policy=policy)


WIDER = dataclasses.replace(
    NUMPY,
    attention=a_key_more(NUMPY.attention),
    attention_weights=a_key_more(NUMPY.attention_weights),
)

oracle = gr.load("tiny", policy="float64")
tokens = oracle.tokenizer.encode(QUESTION)
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "oracle.trace"
    gr.trace(oracle, tokens, path=file)  # written tap by tap
    reference = gr.Trace.load(file)  # an array is read when it is asked for
    print(f"{len(tokens)} tokens, {len(reference)} taps, {file.stat().st_size / 1e6:.1f} MB")
    print(f"block.0.attn.weights (H, T, S): {reference['block.0.attn.weights'].shape}")

    runs = {
        "bfloat16": gr.load("tiny", policy="bfloat16"),
        "a key too wide": gr.load("tiny", backend=WIDER),
    }
    for name, model in runs.items():
        report = gr.compare(reference, gr.trace(model, tokens), model=oracle)
        logits = next(row for row in report.rows if row.name == "logits")
        print(f"{name}: {report.verdict}")
        print(f"  logits: relative L2 {logits.rel_l2:.1e}, rounding explains {logits.allowed:.0e}")
