"""What a mistake is: one wrong version of one operation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

from gptoss_ref.verify.vectors.operation import Values


@dataclass(frozen=True)
class Mistake:
    """One wrong version of one operation.

    Attributes:
        name: by which flags and reports call it.
        operation: name of the operation.
        summary: one sentence: what is wrong.
        compute: the wrong outputs, of the inputs and parameters of a case.
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
