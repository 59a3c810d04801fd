"""Judge outputs against the suite: find wrong cases, their errors, and bugs that explain them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from typing import Any

import numpy as np

from gptoss_ref.numerics import Array
from gptoss_ref.verify.mutants import CATALOGUE, TIES, Mutant
from gptoss_ref.verify.vectors.case import Case
from gptoss_ref.verify.vectors.flags import FLAGS
from gptoss_ref.verify.vectors.mistake import Mistake
from gptoss_ref.verify.vectors.mistakes import MISTAKES
from gptoss_ref.verify.vectors.operation import Operation, Values
from gptoss_ref.verify.vectors.operations import OPERATIONS
from gptoss_ref.verify.vectors.suite import expected, stored


@dataclass(frozen=True)
class Finding:
    """The result of one case.

    Attributes:
        case: the case.
        verdict: ``"right"``, ``"wrong"``, ``"missing"`` or ``"not judged"``.
        error: largest relative L2 error of its outputs; None if there is none.
        note: what is wrong, in one sentence.
        causes: known bugs that give exactly these numbers.
    """

    case: Case
    verdict: str
    error: float | None = None
    note: str = ""
    causes: tuple[Mutant | Mistake, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "case": self.case.id,
            "verdict": self.verdict,
            "error": self.error,
            "note": self.note,
            "flags": list(self.case.flags),
            "causes": [mutant.name for mutant in self.causes],
        }


@dataclass(frozen=True)
class Judgement:
    """The findings, and remarks on unknown names.

    Attributes:
        findings: one for each case of the operations with results.
        absent: operations without results, which are not judged.
        notes: names in the results that belong to no case.
    """

    findings: tuple[Finding, ...]
    absent: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether something was judged and all of it is right."""
        judged = [finding for finding in self.findings if finding.verdict != "not judged"]
        return bool(judged) and all(finding.verdict == "right" for finding in judged)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "ok": self.ok,
            "findings": [finding.to_json() for finding in self.findings],
            "not_given": list(self.absent),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        flags: dict[str, None] = {}
        width = max([12, *(len(finding.case.operation.name) for finding in self.findings)])
        for name in dict.fromkeys(finding.case.operation.name for finding in self.findings):
            rows = [f for f in self.findings if f.case.operation.name == name]
            judged = [f for f in rows if f.verdict != "not judged"]
            right = [f for f in judged if f.verdict == "right"]
            errors = [f.error for f in judged if f.error is not None]
            worst = f", worst error {max(errors):.1e}" if errors else ""
            yield f"{name:{width}}  {len(right)} of {len(judged)} right{worst}"
            for row in rows:
                if row.verdict == "right":
                    continue
                yield f"  {row.case.id}  {row.verdict}: {row.note}"
                yield f"    {row.case.note} [{', '.join(row.case.flags)}]"
                for mutant in row.causes:
                    yield f"    these are the numbers of {mutant.name}: {mutant.summary}"
                if row.verdict == "wrong":
                    flags.update(dict.fromkeys(row.case.flags))
        if flags:
            yield ""
            yield from (f"{name}: {FLAGS[name].note}" for name in flags)
        if self.absent:
            yield f"not given, not judged: {', '.join(self.absent)}"
        yield from self.notes


def judge_case(case: Case, outputs: Mapping[str, Any], precision: str = "float32") -> Finding:
    """Compare the outputs of one case, arrays by name, with the expected ones."""
    tolerance = case.operation.tolerance.get(precision)
    if tolerance is None:
        return Finding(case, "not judged", note=f"no tolerance for {precision}")
    missing = [name for name in case.operation.outputs if name not in outputs]
    if missing:
        return Finding(case, "missing", note=f"no {', '.join(missing)}")
    error, note = difference(case, outputs, tolerance)
    if not note:
        return Finding(case, "right", error)
    return Finding(case, "wrong", error, note, causes(case, outputs, tolerance))


def difference(
    case: Case, outputs: Mapping[str, Any], tolerance: float
) -> tuple[float | None, str]:
    """The largest relative error of a case's outputs, and the fault in words ("" if right)."""
    right = expected(case)
    answers = [right, *({**right, **_stored(other)} for other in case.accepted)]
    tried = [_compare(case, answer, outputs, tolerance) for answer in answers]
    return next((found for found in tried if not found[1]), tried[0])


@np.errstate(over="ignore")
def _compare(
    case: Case, right: Mapping[str, Array], outputs: Mapping[str, Any], tolerance: float
) -> tuple[float | None, str]:
    """The largest error of the outputs, and the fault of the first wrong one."""
    errors: list[float] = []
    for name, axes in case.operation.outputs.items():
        values = np.asarray(outputs[name])
        error, note = _difference(right[name], values, tolerance)
        if error is not None:
            errors.append(error)
        if note:
            if values.shape != right[name].shape:
                note += f" ({axes})"
            return max(errors, default=None), f"{name} {note}"
    return max(errors, default=None), ""


def _difference(right: Array, values: Array, tolerance: float) -> tuple[float | None, str]:
    """Relative L2 error of ``values`` against ``right``, and the fault in words ("" if right)."""
    if values.dtype.kind not in "fiub":
        return None, f"has dtype {values.dtype}: expected numbers"
    if values.shape != right.shape:
        orders = (np.transpose(values, order).shape for order in permutations(range(values.ndim)))
        hint = ", with its axes in another order" if right.shape in orders else ""
        return None, f"has shape {values.shape}{hint}: expected {right.shape}"
    if values.dtype.kind == "f":  # a value beyond float32, which the suite stores as infinity
        beyond = np.isinf(right) & np.isinf(values.astype(np.float32))
        values = np.where(beyond, np.copysign(np.inf, values), values)
    if right.dtype.kind != "f" or tolerance == 0:
        same = (values == right) | (np.isnan(right) if right.dtype.kind == "f" else False) & (
            values != values
        )
        if right.dtype.kind == "f" and values.dtype.kind == "f":
            zeros = (right == 0) & (values == 0)
            same &= ~zeros | (np.signbit(right) == np.signbit(values))
        if same.all():
            return 0.0 if right.dtype.kind == "f" else None, ""
        return None, _first_difference(right, values, ~same)
    values = values.astype(np.float64)
    odd = ~np.isfinite(right) | ~np.isfinite(values)
    agree = (np.isnan(right) & np.isnan(values)) | (right == values)
    if (odd & ~agree).any():
        return None, _first_difference(right, values, odd & ~agree)
    distance = np.where(odd, 0, values - np.where(odd, 0, right))
    size = float(np.linalg.norm(np.where(odd, 0, right).astype(np.float64)))
    error = float(np.linalg.norm(distance)) / (size or 1.0)
    if error <= tolerance:
        return error, ""
    worst = np.abs(distance) == np.abs(distance).max()
    note = f"has a relative error of {error:.1e}: expected at most {tolerance:.0e}; at worst "
    return error, note + _first_difference(right, values, worst)


def _first_difference(right: Array, values: Array, where: Array) -> str:
    at = tuple(int(i) for i in np.argwhere(where)[0])
    return f"{values[at]:.7g} at {list(at)}: expected {right[at]:.7g}"


def _stored(answer: Mapping[str, Array]) -> dict[str, Array]:
    return {name: stored(values) for name, values in answer.items()}


def causes(
    case: Case, outputs: Mapping[str, Any], tolerance: float
) -> tuple[Mutant | Mistake, ...]:
    """Known bugs that give exactly these outputs for this case."""
    if case.operation is OPERATIONS["model"]:
        return ()  # `diagnose` is for whole models
    found: dict[str, Mutant | Mistake] = {}
    for bug, compute in bugs_of(case.operation):
        try:
            wrong = _stored(case.computed(compute))
        except (ValueError, IndexError):  # the bug cannot be computed with these shapes
            continue
        if (
            difference(case, wrong, tolerance)[1]
            and not _compare(case, wrong, outputs, tolerance)[1]
        ):
            found[bug.name] = bug
    return tuple(found.values())


def bugs_of(operation: Operation) -> Iterator[tuple[Mutant | Mistake, Callable[..., Values]]]:
    """The known bugs of an operation, each with its computation."""
    for mutant in (*CATALOGUE, *TIES):
        yield mutant, partial(operation.compute, mutant.apply())
    for mistake in MISTAKES:
        if mistake.operation == operation.name:
            yield mistake, mistake.compute
