"""Merge an adapter into a checkpoint: W + s · B A, rounded to the checkpoint's format.

    stored = round(W + s · B A)         to bfloat16, or to MXFP4

Rounding loses a part of what was learnt, and MXFP4 with its 16 codes may lose most of it: an
addition smaller than half a step changes no code. So the rounding error of each matrix is measured,
relative to the sum and relative to the addition.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.checkpoint.adapter import Adapter
from gptoss_ref.checkpoint.load import Checkpoint
from gptoss_ref.checkpoint.names import Place
from gptoss_ref.checkpoint.reader import ARRAY_DTYPES
from gptoss_ref.checkpoint.writer import Output
from gptoss_ref.errors import CheckpointError
from gptoss_ref.layers import mxfp4
from gptoss_ref.layers.linear import dense
from gptoss_ref.numerics import FLOAT64, Array, bfloat16_to_float, float_to_bfloat16
from gptoss_ref.weights import MXFP4, ExpertMatrix, ModelWeights


@dataclass(frozen=True)
class Merged:
    """The rounding error of one merged weight.

    Attributes:
        weight: its name.
        stored: ``"bfloat16"``, ``"mxfp4"``, ``"float32"`` or ``"float64"``.
        error: ‖stored − W'‖ / ‖W'‖, W' being the exact sum.
        lost: ‖stored − W'‖ / ‖W' − W‖, the same relative to the adapter's addition. If it is 1 or
            more, the rounding error is as large as the addition.
    """

    weight: str
    stored: str
    error: float
    lost: float


class Merger:
    """Adds an adapter to weights piece by piece, and measures the rounding errors."""

    def __init__(self, adapter: Adapter, weights: ModelWeights) -> None:
        self.adapter, self.named = adapter, weights.named()
        self._squares: dict[tuple[str, str], NDArray[np.float64]] = {}

    def __contains__(self, weight: str) -> bool:
        """Whether the adapter changes this weight."""
        return weight in self.adapter.factors or weight in self.adapter.whole

    @property
    def errors(self) -> tuple[Merged, ...]:
        """The errors of the weights stored so far."""
        return tuple(
            Merged(weight, stored, *(float(_ratio(off, by)) for by in (total, added)))
            for (weight, stored), (off, total, added) in self._squares.items()
        )

    def bfloat16(self, weight: str) -> Iterator[NDArray[np.uint16]]:
        """bfloat16 bits of the sum: (N, M), or one (N, M) for each expert."""
        for before, after in self._pieces(weight):
            bits = float_to_bfloat16(after)
            self._note(weight, "bfloat16", bfloat16_to_float(bits), before, after)
            yield bits

    def floats(self, weight: str, dtype: np.dtype[Any]) -> Iterator[Array]:
        """The sum in ``dtype``, in the same pieces (N, M) as :meth:`bfloat16`."""
        for before, after in self._pieces(weight):
            values = after.astype(dtype)
            self._note(weight, dtype.name, values, before, after)
            yield values

    def mxfp4(
        self, weight: str, rule: mxfp4.ScaleRule
    ) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
        """Blocks (N, M/32, 16) and scales (N, M/32) of each expert's sum."""
        for before, after in self._pieces(weight):
            blocks, scales = mxfp4.encode(after, rule=rule)
            stored = mxfp4.decode(blocks, scales, dtype=np.float64)
            self._note(weight, "mxfp4", stored, before, after)
            yield blocks, scales

    def output(
        self, source: Checkpoint, tensor: str, parts: Sequence[Place], have: Mapping[str, Place]
    ) -> Output:
        """A tensor with merged weights or rows, in the floating-point dtype of the source.

        Args:
            source: the checkpoint.
            tensor: the name in the target.
            parts: the weights that the tensor stacks along its rows.
            have: the source tensor of each weight.
        """
        stored = [have[place.weight].tensor for place in parts if place.weight in have]
        # dequantised experts are bfloat16
        dtype = source.shards.common_dtype(stored, tensor) if stored else "BF16"

        def chunks() -> Iterator[NDArray[Any]]:
            for place in parts:
                if place.weight not in self:
                    at = have[place.weight]
                    array = source.shards.array(at.tensor)
                    yield array if at.rows is None else array[slice(*at.rows)]
                    continue
                pieces: Iterator[NDArray[Any]]
                if dtype == "BF16":
                    pieces = self.bfloat16(place.weight)
                else:
                    pieces = self.floats(place.weight, np.dtype(ARRAY_DTYPES[dtype]))
                for piece in pieces:
                    yield np.ascontiguousarray(piece.T) if place.transposed else piece
            source.shards.release()

        return Output(tensor, dtype, parts[0].shape, chunks)

    def _pieces(self, weight: str) -> Iterator[tuple[Array, Array]]:
        """The weight before and after the merge, in float64, one expert at a time."""
        matrix: ExpertMatrix = self.named[weight]
        factors, whole = self.adapter.factors.get(weight), self.adapter.whole.get(weight)
        experts = matrix.shape[0] if len(matrix.shape) == 3 else None
        for e in range(experts or 1):
            at = e if experts else slice(None)
            before = dense(matrix[at], FLOAT64)
            after = before if whole is None else whole[at].astype(np.float64)
            if factors is not None:
                a, b = factors.a[at].astype(np.float64), factors.b[at].astype(np.float64)
                after = after + factors.scale * b @ a
            if not np.isfinite(before).all():
                scale = " (a scale byte of 255)" if isinstance(matrix, MXFP4) else ""
                raise CheckpointError(
                    f"{weight}: holds a NaN or an infinity{scale} before the adapter is added: "
                    "expected finite weights"
                )
            if not np.isfinite(after).all():
                raise CheckpointError(
                    f"{weight}: the sum with the adapter holds a NaN or an infinity"
                )
            yield before, after

    def _note(self, weight: str, stored: str, values: Array, before: Array, after: Array) -> None:
        pairs = ((values, after), (after, 0.0), (after, before))
        squares = np.array([np.square(x - y).sum() for x, y in pairs])
        self._squares[weight, stored] = self._squares.get((weight, stored), 0.0) + squares


class MergedExperts:
    """The two tensors of one expert matrix: blocks first; the small scales are kept in memory."""

    def __init__(self, merger: Merger, weight: str, rule: mxfp4.ScaleRule) -> None:
        self.merger, self.weight, self.rule = merger, weight, rule
        self._scales: list[NDArray[np.uint8]] = []

    def blocks(self) -> Iterator[NDArray[np.uint8]]:
        """(N, M/32, 16) of each expert."""
        self._scales = []
        for blocks, scales in self.merger.mxfp4(self.weight, self.rule):
            self._scales.append(scales)
            yield blocks

    def scales(self) -> Iterator[NDArray[np.uint8]]:
        """(N, M/32) of each expert, after :meth:`blocks`."""
        yield from self._scales


def _ratio(error: float, by: float) -> float:
    return float(np.sqrt(error / by)) if by else (0.0 if error == 0 else float("inf"))
