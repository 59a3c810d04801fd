"""The catalogue of bugs of backward passes: reported in public, or plausible.

``CATALOGUE`` holds errors; ``CONVENTIONS`` holds differences that are not bugs.
"""

from gptoss_ref.verify.gradients.mutants.attention import ATTENTION
from gptoss_ref.verify.gradients.mutants.experts import CONVENTIONS, EXPERTS
from gptoss_ref.verify.gradients.mutants.loss import LOSS
from gptoss_ref.verify.gradients.mutants.mutant import GradientMutant
from gptoss_ref.verify.gradients.mutants.norms import NORMS_AND_RESIDUALS
from gptoss_ref.verify.gradients.mutants.routing import ROUTING

CATALOGUE: tuple[GradientMutant, ...] = (
    *LOSS,
    *NORMS_AND_RESIDUALS,
    *EXPERTS,
    *ROUTING,
    *ATTENTION,
)

__all__ = ["CATALOGUE", "CONVENTIONS", "GradientMutant"]
