"""The record of a case, and the cases of one operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace

import numpy as np

from gptoss_ref.numerics import Array
from gptoss_ref.verify.replay.ops import SPECIFICATION, ModelOps
from gptoss_ref.verify.vectors.operation import Operation, Values
from gptoss_ref.verify.vectors.operations import OPERATIONS

Parameter = float | int | None
"""A scalar input of an operation."""


@dataclass(frozen=True, eq=False)
class Case:
    """A test case with its expected outputs.

    Attributes:
        id: operation and number, e.g. ``"rmsnorm-02"``.
        operation: name of the operation.
        note: the special property of the inputs.
        flags: names in :data:`~gptoss_ref.verify.vectors.flags.FLAGS`.
        inputs: arrays by name, in float32, int32 or uint8.
        parameters: numbers by name.
        accepted: other right answers, output by output (a tie, a scale of 255).
    """

    id: str
    operation: Operation
    note: str
    flags: tuple[str, ...]
    inputs: Mapping[str, Array]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    accepted: tuple[Mapping[str, Array], ...] = ()

    def answer(self, ops: ModelOps = SPECIFICATION) -> Values:
        """The outputs under ``ops``, in float64 (bytes and indices as integers)."""
        return self.computed(partial(self.operation.compute, ops))

    def computed(self, compute: Callable[[SimpleNamespace], Values]) -> Values:
        """The result of ``compute``, which gets the inputs and parameters as attributes."""
        with np.errstate(all="ignore"):
            return compute(SimpleNamespace(**self.inputs, **self.parameters))


class Group:
    """Collects and numbers the cases of one operation."""

    def __init__(self, operation: str) -> None:
        self.operation = OPERATIONS[operation]
        self.cases: list[Case] = []

    def add(
        self,
        note: str,
        flags: str,
        inputs: Mapping[str, Array],
        parameters: Mapping[str, Parameter] | None = None,
        accepted: tuple[Mapping[str, Array], ...] = (),
    ) -> None:
        """Append a case; ``flags`` are separated by spaces."""
        name = f"{self.operation.name}-{len(self.cases) + 1:02d}"
        self.cases.append(
            Case(
                *(name, self.operation, note, tuple(flags.split())),
                *(dict(inputs), dict(parameters or {}), accepted),
            )
        )
