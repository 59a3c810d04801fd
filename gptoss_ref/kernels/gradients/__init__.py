"""Gradients as Numba kernels, named as in :mod:`gptoss_ref.gradients`.

A function has the signature of its namesake there and gives its result under the float32 policy,
within the error bound that its file states. They share no computation. ``experts`` and
``attention`` have one more argument, and ``kept_experts`` is the experts' forward pass for
training. The load-balancing loss has no kernel; :mod:`gptoss_ref.gradients` computes it.
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
