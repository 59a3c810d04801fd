"""The record of a bug of a backward pass: wrong versions of some stages, with a description.

A bug is a function of the function that it replaces, the context, and the stage's own arguments;
its docstring is the summary::

    @bug("sinks-without-gradient", stages="grad.weights.attn.sinks", consequence="…", reports=…)
    def sinks_without_gradient(right, ctx, *arguments):
        \"\"\"The sinks get no gradient: …\"\"\"
        return np.zeros_like(right(ctx, *arguments))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from gptoss_ref.numerics import Array
from gptoss_ref.verify.gradients.operations import BlockContext, Compute


@dataclass(frozen=True)
class GradientMutant:
    """One small, named, wrong version of the backward pass.

    Attributes:
        name: as in a list of public bugs.
        stage: the gradient, without its block, that it changes first.
        summary: one sentence: what is wrong.
        consequence: what that does to training.
        wrong: for each stage, the function that replaces it.
        reports: public reports, as ``repository#number``.
        note: what hides it, or how it is modelled.
        equivalent: a convention, which is not a bug.
        label: the form, if it is not the usual one.
    """

    name: str
    stage: str
    summary: str
    consequence: str
    wrong: Mapping[str, Compute]
    reports: tuple[str, ...] = ()
    note: str = ""
    equivalent: bool = False
    label: str | None = None


Decorator = Callable[[Compute], GradientMutant]


def bug(
    name: str,
    *,
    stages: str,
    consequence: str,
    reports: tuple[str, ...] = (),
    note: str = "",
    equivalent: bool = False,
    label: str | None = None,
) -> Decorator:
    """Make a function a :class:`GradientMutant` of ``stages``, names separated by spaces."""

    def decorate(function: Compute) -> GradientMutant:
        changed = stages.split()
        return GradientMutant(
            name=name,
            stage=changed[0],
            summary=" ".join((function.__doc__ or "").split()),
            consequence=consequence,
            wrong=dict.fromkeys(changed, function),
            reports=reports,
            note=note,
            equivalent=equivalent,
            label=label,
        )

    return decorate


def zero(right: Compute, ctx: BlockContext, *arguments: Array) -> Array:
    """No gradient arrives."""
    return np.zeros_like(right(ctx, *arguments))


def name_of(right: Compute) -> str:
    """Name of the stage function below all bugs."""
    return getattr(right, "__name__", "")
