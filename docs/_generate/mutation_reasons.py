"""Why a mutant that no test kills is no gap of the tests."""

from __future__ import annotations

EXACT = "float64 holds every bfloat16 exactly, and `round` gives the policy's own type"
COPIED = "the same values in an array of their own; the layer writes into none of them"
WIDER = "`None` is float64: computed more exactly and rounded at the end, as the docstring allows"

REASONS: dict[tuple[str, str, str], str] = {
    ("layers/embedding.py", "embedding", "widen(weight[tokens], None)"): EXACT,
    ("layers/rmsnorm.py", "rmsnorm", "x.astype(None, copy=False)"): WIDER,
    ("layers/rmsnorm.py", "rmsnorm", "widen(scale, None)"): WIDER,
    ("layers/rmsnorm.py", "rmsnorm", "copy=None"): COPIED,
    ("layers/rmsnorm.py", "rmsnorm", "copy=True"): COPIED,
    ("layers/rmsnorm.py", "rmsnorm", "x.astype(policy.dtype, )"): COPIED,
    ("layers/rmsnorm.py", "rmsnorm", "axis=+1"): "the last of the two axes of x (T, D)",
}
"""By the end of the file's name, the function (`*`: any), a part of the old line or the new."""
