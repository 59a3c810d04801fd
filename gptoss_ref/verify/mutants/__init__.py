"""The catalogue of bugs that others had in public; each replaces one operation of the model.

``CATALOGUE`` holds errors. ``EQUIVALENT`` holds rewritings that compute the same function and must
never be called bugs. ``TIES`` holds differences of rounding, which may choose another expert if two
logits are nearly equal; they are reported with the margin, not as errors.
"""

from __future__ import annotations

import difflib

from gptoss_ref.errors import GptOssError
from gptoss_ref.verify.mutants import (
    attention,
    caches,
    constants,
    experts,
    loading,
    missing,
    position,
    routing,
    sinks,
    whole,
    windows,
)
from gptoss_ref.verify.mutants.mutant import Mutant, Variant

CATALOGUE: tuple[Mutant, ...] = (
    *position.POSITION,
    *sinks.SINKS,
    *windows.WINDOWS,
    *attention.ATTENTION,
    *caches.CACHES,
    *routing.ROUTING,
    *experts.EXPERTS,
    *loading.LOADING,
    *missing.MISSING,
    *whole.WHOLE,
    *constants.CONSTANTS,
)
TIES: tuple[Mutant, ...] = routing.TIES
EQUIVALENT: tuple[Mutant, ...] = (
    *position.REWRITINGS,
    *attention.REWRITINGS,
    *routing.REWRITINGS,
    *experts.REWRITINGS,
    *missing.REWRITINGS,
    *whole.REWRITINGS,
)

_BY_NAME = {mutant.name: mutant for mutant in (*CATALOGUE, *TIES, *EQUIVALENT)}


def by_name(name: str) -> Mutant:
    """The mutant (or tie, or rewriting) of that name.

    Raises:
        GptOssError: there is none; the message suggests the nearest.

    >>> by_name("window-plus-one").stage
    'attn.weights'
    """
    if name not in _BY_NAME:
        near = difflib.get_close_matches(name, _BY_NAME, n=1, cutoff=0.0)
        raise GptOssError(f"there is no mutant {name!r}: did you mean {near[0]!r}?")
    return _BY_NAME[name]


__all__ = ["CATALOGUE", "EQUIVALENT", "TIES", "Mutant", "Variant", "by_name"]
