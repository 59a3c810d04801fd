"""The record of an operation of the suite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace

from gptoss_ref.numerics import Array
from gptoss_ref.verify.replay.ops import ModelOps

Values = dict[str, Array]
"""Arrays by name."""
Compute = Callable[[ModelOps, SimpleNamespace], Values]
"""A function from the model's operations and a case's inputs to the outputs."""


@dataclass(frozen=True)
class Operation:
    """One operation.

    Attributes:
        name: as on the command line.
        summary: its equation, in one line of plain text.
        inputs: name to axes, in the order of a function's arguments.
        parameters: name to meaning; they follow the inputs.
        outputs: name to axes, in the order of a function's results.
        compute: computes the outputs; it gets inputs and parameters as attributes.
        tolerance: largest relative L2 error of an output, by the precision of the implementation;
            0 requires equality.
    """

    name: str
    summary: str
    inputs: Mapping[str, str]
    parameters: Mapping[str, str]
    outputs: Mapping[str, str]
    compute: Compute
    tolerance: Mapping[str, float]

    @property
    def signature(self) -> str:
        """The signature of a function for it, for messages."""
        return f"{self.name}({', '.join((*self.inputs, *self.parameters))})"
