"""Logits of llama.cpp through llama-cpp-python's ``Llama`` object.

The object gives no other arrays. Tensors dumped by llama.cpp's eval-callback can be read by
:func:`~gptoss_ref.verify.observe.adapters.arrays.from_arrays`, which has a table of their names.

llama.cpp rounds activations to 8 bits before each product with MXFP4 weights, and keys and values
to float16. The nearest rounding of a Trace is bfloat16, with 8 significant bits, so the trace has
that. llama.cpp also rounds the bounds of YaRN's ramp to whole pairs (ggml_rope_yarn_corr_dims in
ggml/src/ggml.c), which is not a rounding error but another function.
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
        llama: created with ``logits_all=True`` and an ``n_ctx`` that holds the prompt. Its context
            is cleared before and after.
        tokens: (T,), the whole prompt.
        config: of the model.

    Raises:
        TraceError: the object does not keep the logits of all positions, its context is too short,
            or its vocabulary size differs.
    """
    ids = Trace({}, tokens=tokens, config=config).tokens.tolist()
    if not all(hasattr(llama, name) for name in ("reset", "eval", "n_ctx", "n_vocab")):
        raise TraceError(f"{type(llama).__name__}: expected a llama_cpp.Llama")
    if llama.n_vocab() != config.vocab_size:
        raise TraceError(
            f"the Llama object has {llama.n_vocab()} tokens: expected {config.vocab_size}"
        )
    if not getattr(llama, "_logits_all", False):
        raise TraceError("the Llama object keeps only the last logits: set logits_all=True")
    room = min(llama.n_ctx(), len(llama.scores))  # llama.cpp rounds n_ctx up
    if room < len(ids):
        raise TraceError(
            f"the Llama object's context holds {room} tokens, but the prompt has {len(ids)}: "
            "set a larger n_ctx"
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
