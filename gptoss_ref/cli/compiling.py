"""The first use of the kernels: they are compiled, once, and somebody is told why it takes long."""

from __future__ import annotations

import warnings

from gptoss_ref.cli.console import notes
from gptoss_ref.kernels.runtime.jit import cache_folder
from gptoss_ref.kernels.runtime.warmup import is_warm, warmup


def compile_once() -> bool:
    """Compiles the kernels behind one line with a spinner, unless that has been done before.

    Returns whether it had. Where they cannot be kept, a warning says so each time.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        done_before = is_warm()
    for warning in caught:
        notes().line(f"warning: {warning.message}")
    if not done_before:
        once = ", once" if cache_folder() else ""
        with notes().status(f"compiling kernels{once}") as status:
            warmup(lambda name, done, steps: status(f"{name} ({done + 1} of {steps})"))
    return done_before
