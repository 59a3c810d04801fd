"""The tap point to record next if nothing explains a divergence, and the reason."""

from __future__ import annotations

from gptoss_ref.tracing.taps import split
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.verify.replay.evaluate import needed, segments
from gptoss_ref.verify.replay.graph import DISCRETE

PARTS = ("attn.residual", "mlp.residual")
"""The tap points that best divide a block in two."""

BRING = (
    "bring block.*.mlp.residual, the residual stream after every block, next: the first block that "
    "differs is the one with the bug; then all tap points of that block"
)


def next_in_words(trace: Trace, tap: str) -> str:
    """Return what to record next to narrow down a divergence at a tap point of a trace.

    The numbers there are computed from the nearest tap points before it that the trace has. If
    others lie between, the middle one shows on which side of it the error is.
    """
    inputs = segments(trace.config, trace)[tap].inputs
    since = " and ".join(inputs) if inputs else "the tokens"
    path = [node.tap for node in needed(trace.config, trace, [tap])]
    between = [name for name in path if name != tap and split(name)[1] not in DISCRETE]
    if not between:
        return (
            f"nothing lies between {since} and {tap}, so that the error is made in this one stage: "
            "look at its weights, their layout and its arithmetic"
        )
    blocks = [name for name in between if split(name)[1] == PARTS[1]]
    halves = blocks or [name for name in between if split(name)[1] == PARTS[0]] or between
    chosen = halves[len(halves) // 2]
    count = f"{len(between)} more tap points" if len(between) > 1 else "one more tap point"
    return (
        f"bring {chosen} next: {count} lie{'s' * (len(between) == 1)} between {since} and {tap}, "
        "and it tells whether the error is made before or after it"
    )
