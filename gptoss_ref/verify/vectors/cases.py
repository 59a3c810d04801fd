"""The list of all cases."""

from __future__ import annotations

from functools import cache

from gptoss_ref.verify.vectors import (
    cases_experts,
    cases_gradients,
    cases_model,
    cases_positions,
    cases_rows,
    cases_sampling,
)
from gptoss_ref.verify.vectors.case import Case


@cache
def all_cases() -> tuple[Case, ...]:
    """Every case, in the order of :data:`~gptoss_ref.verify.vectors.operations.OPERATIONS`."""
    groups = [
        *(cases_rows.embedding(), cases_rows.rmsnorm(), cases_rows.linear()),
        *(cases_positions.yarn(), cases_positions.rope(), cases_positions.attention()),
        *(cases_rows.router(), cases_rows.swiglu(), cases_experts.experts()),
        *(cases_experts.mxfp4_decode(), cases_experts.mxfp4_encode()),
        *(cases_sampling.sampling(), cases_model.model()),
        *cases_gradients.gradient_groups(),
    ]
    return tuple(case for group in groups for case in group.cases)
