"""The hot path of the backward pass: gradients as Numba kernels.

What is here has the signature of its namesake in :mod:`gptoss_ref.gradients` and equals it under
the float32 policy; it shares no computation with it. What is not here is computed by that module,
whose matrix products are NumPy's.
"""

from gptoss_ref.kernels.gradients.attention import attention
from gptoss_ref.kernels.gradients.swiglu import swiglu

__all__ = ["attention", "swiglu"]
