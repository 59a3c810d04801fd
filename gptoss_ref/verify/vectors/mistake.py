"""The record of a mistake: a wrong version of one operation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

from gptoss_ref.verify.vectors.operation import Values


@dataclass(frozen=True)
class Mistake:
    """A wrong version of one operation.

    Attributes:
        name: its name in flags and reports.
        operation: name of the operation.
        summary: what is wrong, in one sentence.
        compute: computes the wrong outputs from the inputs and parameters of a case.
    """

    name: str
    operation: str
    summary: str
    compute: Callable[[SimpleNamespace], Values]


def mistake(name: str, operation: str) -> Callable[[Callable[[SimpleNamespace], Values]], Mistake]:
    """Make a function a :class:`Mistake`; its docstring is the summary."""

    def decorate(compute: Callable[[SimpleNamespace], Values]) -> Mistake:
        return Mistake(name, operation, " ".join((compute.__doc__ or "").split()), compute)

    return decorate
