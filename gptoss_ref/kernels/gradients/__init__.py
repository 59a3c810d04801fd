"""The hot path of the backward pass: gradients as Numba kernels.

What is here has the signature of its namesake in :mod:`gptoss_ref.gradients` and equals it under
the float32 policy, within the bound that its file states; it shares no computation with it.
``experts`` and ``attention`` take one argument more, and ``kept_experts`` is the experts' forward
pass for training. The load-balancing loss is computed by that module.
"""

from gptoss_ref.kernels.gradients.attention import attention
from gptoss_ref.kernels.gradients.cross_entropy import cross_entropy
from gptoss_ref.kernels.gradients.embedding import embedding
from gptoss_ref.kernels.gradients.experts import experts, kept_experts
from gptoss_ref.kernels.gradients.linear import linear, projections
from gptoss_ref.kernels.gradients.rmsnorm import rmsnorm
from gptoss_ref.kernels.gradients.rope import rope
from gptoss_ref.kernels.gradients.router import router
from gptoss_ref.kernels.gradients.swiglu import swiglu

__all__ = [
    "attention",
    "cross_entropy",
    "embedding",
    "experts",
    "kept_experts",
    "linear",
    "projections",
    "rmsnorm",
    "rope",
    "router",
    "swiglu",
]
