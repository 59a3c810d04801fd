"""llama.cpp by way of llama-cpp-python: the logits of a live ``Llama`` object.

That is all it shows from outside; its eval-callback's tensors, dumped by somebody else, go through
:func:`~gptoss_ref.verify.observe.adapters.arrays.from_arrays`, whose table knows their names.

llama.cpp rounds activations to 8 bits before each product with MXFP4 weights, keys and values to
float16: of the roundings that a Trace knows, bfloat16 with its 8 significant bits is nearest, and
is what the trace states. It also rounds the bounds of YaRN's ramp to whole pairs
(ggml_rope_yarn_corr_dims in ggml/src/ggml.c), which is no rounding error but another function.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from gptoss_ref.config import ModelConfig
from gptoss_ref.errors import TraceError
from gptoss_ref.numerics import Array
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.verify.observe.adapters.arrays import from_arrays


def from_llama(llama: Any, tokens: Iterable[int] | Array, config: ModelConfig) -> Trace:
    """The logits of ``llama_cpp.Llama`` for one prompt, as a Trace with the one tap ``logits``.

    Args:
        llama: made with ``logits_all=True`` and an ``n_ctx`` that holds the prompt. Its context is
            cleared before and after.
        tokens: (T,), the whole prompt.
        config: of the model.

    Raises:
        TraceError: the object keeps no logits of all positions, its context is too short, or its
            vocabulary is another one.
    """
    ids = Trace({}, tokens=tokens, config=config).tokens.tolist()
    if not all(hasattr(llama, name) for name in ("reset", "eval", "n_ctx", "n_vocab")):
        raise TraceError(f"{type(llama).__name__}: expected a llama_cpp.Llama")
    if llama.n_vocab() != config.vocab_size:
        raise TraceError(
            f"the Llama object has {llama.n_vocab()} tokens: expected {config.vocab_size}"
        )
    if not getattr(llama, "_logits_all", False):
        raise TraceError("the Llama object keeps only the last logits: make it with logits_all")
    room = min(llama.n_ctx(), len(llama.scores))  # llama.cpp pads the former
    if room < len(ids):
        raise TraceError(
            f"the Llama object's context holds {room} tokens, the prompt has {len(ids)}: "
            "make it with a larger n_ctx"
        )
    llama.reset()
    try:
        llama.eval(ids)
        logits = np.array(llama.scores[: len(ids)], np.float32)
    finally:
        llama.reset()
    return from_arrays(
        {"result_output": logits}, ids, config, producer="llama.cpp", dtype="bfloat16"
    )
