"""The catalogue of bugs of backward passes: what others got wrong in public, or could.

``CATALOGUE`` are errors. ``CONVENTIONS`` differ and are nobody's bug.
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
