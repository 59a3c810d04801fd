"""gpt-oss in plain PyTorch with every public bug built in: suspects that ``diagnose`` must name.

It imports nothing from ``gptoss_ref``. It reads the checkpoint's bytes by itself, decodes MXFP4 by
its own decoder and computes every tap point. Each bug is written as the implementation that was
reported had it, at the place where it had it, so that naming it proves something: this code was
written without sight of the catalogue that ``diagnose`` searches.

    taps = run(tiny(), tokens, "bfloat16", {"window-plus-one"})

``bugs`` may hold any number of names of ``BUGS``, ``VARIANTS``, ``REWRITINGS`` and ``ROUNDINGS``.
"""

from tests.support.buggy_twin.checkpoints import (
    Checkpoint,
    Config,
    large,
    planted,
    random_checkpoint,
    tiny,
)
from tests.support.buggy_twin.forward import run
from tests.support.buggy_twin.names import (
    BUGS,
    PLANTED,
    REWRITINGS,
    ROUNDINGS,
    VARIANTS,
    why_unseen,
)

__all__ = [
    "BUGS",
    "PLANTED",
    "REWRITINGS",
    "ROUNDINGS",
    "VARIANTS",
    "Checkpoint",
    "Config",
    "large",
    "planted",
    "random_checkpoint",
    "run",
    "tiny",
    "why_unseen",
]
