"""The whole model's backward pass.

``whole_model`` has the public function; ``blocks`` goes through the model from the last block to
the first; ``rules`` says which functions compute the gradients of a layer for a backend.
"""

from gptoss_ref.backpropagation.whole_model import (
    Gradients,
    TapGradients,
    WeightGradients,
    backward,
)

__all__ = ["Gradients", "TapGradients", "WeightGradients", "backward"]
