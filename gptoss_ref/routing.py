"""What a router returns, declared once for the layer and for the kernel."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.numerics import Array


class RouterOutput(NamedTuple):
    """What a router decided for T tokens, A of E experts each."""

    logits: Array  # (T, E)
    indices: NDArray[np.int64]  # (T, A), largest logit first
    weights: Array  # (T, A), each row sums to one
