"""The backward pass: the gradient of every layer of gpt-oss in plain NumPy, one concept a file.

The files are those of :mod:`gptoss_ref.layers`, and so are the axis letters. ``d_y`` is the
gradient of the loss L with respect to ``y``: an array of the shape of ``y`` with the entries
∂L/∂y. A function here takes the gradient of a layer's output first, then what the layer itself
takes, and returns the gradients of the layer's inputs.

Every function takes a ``policy`` as its layer does. float64 is the oracle. The bfloat16 policy
rounds where torch autograd rounds when it differentiates the OpenAI reference: each operation
stores its gradients in bfloat16, and gradients of a value that was used twice are added and rounded
once more. A sum over tokens (a weight's gradient) is rounded once here; torch's gather of expert
weights adds token by token instead, see ``docs/decisions/0028-gradients.md``.
"""

from gptoss_ref.gradients import mxfp4
from gptoss_ref.gradients.attention import attention, attention_weights
from gptoss_ref.gradients.cross_entropy import cross_entropy
from gptoss_ref.gradients.embedding import embedding
from gptoss_ref.gradients.experts import experts
from gptoss_ref.gradients.linear import linear, projections
from gptoss_ref.gradients.rmsnorm import rmsnorm
from gptoss_ref.gradients.rope import rope
from gptoss_ref.gradients.router import load_balancing, router
from gptoss_ref.gradients.swiglu import swiglu

__all__ = [
    "attention",
    "attention_weights",
    "cross_entropy",
    "embedding",
    "experts",
    "linear",
    "load_balancing",
    "mxfp4",
    "projections",
    "rmsnorm",
    "rope",
    "router",
    "swiglu",
]
