"""Candidates that may explain a divergence: the catalogue's mutants, in all or some blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gptoss_ref.config import ModelConfig
from gptoss_ref.verify.mutants import CATALOGUE, EQUIVALENT, TIES, Mutant
from gptoss_ref.verify.replay.ops import SPECIFICATION, ModelOps, OpContext
from gptoss_ref.weights import ModelWeights, release

BY_TAP = frozenset(("rmsnorm", "linear", "expert_linear", "expert_matrix", "rope", "residual"))
"""Operations that are used at several tap points, and may be wrong at one of them only."""

AT_ONCE = 8
"""Number of candidates computed together; each has its own copy of a tap point."""


@dataclass(frozen=True)
class Candidate:
    """One mutant in one form.

    Attributes:
        mutant: the mutant.
        change: a function from the operations without it to those with it.
        label: of the variant, or of the standard form if that has one.
        blocks: the only blocks that have it; None: all.
        sites: the only tap points at which it acts, if an operation is used at several; None: all.
        value: of the mutant's parameter, if it was fitted to the other's numbers.
    """

    mutant: Mutant
    change: Callable[[ModelOps], ModelOps]
    label: str | None = None
    blocks: frozenset[int] | None = None
    sites: frozenset[str] | None = None
    value: float | None = None

    @property
    def placed(self) -> int:
        """How specific its place is: 0 everywhere, 1 in some blocks, 2 at some tap points."""
        return 2 if self.sites is not None else 1 if self.blocks is not None else 0

    @property
    def usual(self) -> bool:
        """Whether it is the standard form."""
        return self.label == self.mutant.form

    @property
    def name(self) -> str:
        return self.mutant.name

    @property
    def harmless(self) -> bool:
        """Whether it is no error: an equivalent rewriting, or rounding that may change a tie."""
        return self.mutant.equivalent or self.mutant in TIES

    @cached_property
    def ops(self) -> frozenset[str]:
        """Names of the operations that it changes."""
        return changes(SPECIFICATION, self.change(SPECIFICATION))

    def apply(self, ops: ModelOps) -> ModelOps:
        """Return ``ops`` with this candidate added, in its blocks."""
        changed = self.change(ops)
        if not self.placed:
            return changed
        return dataclasses.replace(
            ops,
            **{
                name: _placed(self, getattr(changed, name), getattr(ops, name))
                for name in changes(ops, changed)
            },
        )

    def acts(self, at: OpContext) -> bool:
        """Return whether it acts where an operation is applied."""
        if self.blocks is not None and at.layer not in self.blocks:
            return False
        if self.sites is None:
            return True
        tap = at.tap if at.layer is None else f"block.{at.layer}.{at.tap}"
        return tap in self.sites

    def within(self, blocks: Iterable[int]) -> Candidate:
        """Return this candidate in some blocks only."""
        return dataclasses.replace(self, blocks=frozenset(blocks))

    def at(self, sites: Iterable[str]) -> Candidate:
        """Return this candidate at some tap points only."""
        return dataclasses.replace(self, sites=frozenset(sites))


Option = tuple[Candidate, ...]
"""Some candidates at once, applied one after the other; empty: none."""


def applied(option: Iterable[Candidate], ops: ModelOps = SPECIFICATION) -> ModelOps:
    """Return the operations with some candidates, applied one after the other."""
    for candidate in option:
        ops = candidate.apply(ops)
    return ops


def changes(before: ModelOps, after: ModelOps) -> frozenset[str]:
    """Names of the operations that differ."""
    names = (field.name for field in dataclasses.fields(ModelOps))
    return frozenset(n for n in names if getattr(before, n) is not getattr(after, n))


def _placed(
    candidate: Candidate, wrong: Callable[..., Any], right: Callable[..., Any]
) -> Callable[..., Any]:
    def op(at: OpContext, *arguments: Any) -> Any:
        return (wrong if candidate.acts(at) else right)(at, *arguments)

    return op


def catalogue(config: ModelConfig, weights: ModelWeights, length: int) -> list[Candidate]:
    """Return all candidates for a model and a prompt length: bugs first, then their other forms.

    Mutants that this model cannot show are left out.
    """
    applicable = [m for m in (*CATALOGUE, *TIES, *EQUIVALENT) if m.applies(config, weights)]
    release(weights)  # obstacles are looked for in all blocks
    standard = [Candidate(mutant, mutant.apply, mutant.form) for mutant in applicable]
    others = [
        Candidate(mutant, variant.apply, variant.label)
        for mutant in applicable
        for variant in mutant.variants(config, length)
    ]
    return standard + others
