"""Trace files: safetensors files whose layout is planned before the first array is computed.

The configuration, the number of tokens and the policy determine the names, shapes and dtypes. So
the header is written first, and then each array, or some of its rows, at its offset. Values that
are never written are zero, as attention weights of later keys should be.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike

from gptoss_ref._files import replacing
from gptoss_ref.checkpoint.reader import SafetensorsFile, looks_like_safetensors
from gptoss_ref.errors import CheckpointError, TraceError
from gptoss_ref.numerics import Array
from gptoss_ref.tracing.npz import load_npz, split_npz

FORMAT = "gptoss-trace-2"
"""Format version of new files."""

READABLE = ("gptoss-trace-1", FORMAT)
"""Format versions that can be read; version 1 has no gradients."""

# What a trace may hold; bfloat16 as its bits, like everywhere in the package.
FILE_DTYPES: dict[str, DTypeLike] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
}
_NAMES = {np.dtype(dtype): name for name, dtype in FILE_DTYPES.items()}


def file_dtype(dtype: np.dtype[Any]) -> str:
    """The name under which a file stores arrays of this dtype; uint16 is bfloat16 bits."""
    return _NAMES[dtype.newbyteorder("<")]


@dataclass(frozen=True)
class Slot:
    """The dtype, shape and file offset of one array.

    Attributes:
        dtype: one of FILE_DTYPES.
        shape: of the whole array.
        begin: offset of its first byte in the file.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int = 0

    @property
    def itemsize(self) -> int:
        """Bytes of one value."""
        return np.dtype(FILE_DTYPES[self.dtype]).itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the array in the file."""
        return math.prod(self.shape) * self.itemsize


class TraceWriter:
    """Writes arrays, whole or by rows, into a file whose layout is planned; see :func:`create`."""

    def __init__(
        self, file: IO[bytes], slots: Mapping[str, Slot], metadata: Mapping[str, str]
    ) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": FORMAT, **metadata}}
        # Wide dtypes come first, so that every array is aligned to its dtype.
        order = sorted(slots, key=lambda name: -slots[name].itemsize)
        at = 0
        for name in order:
            slot = slots[name]
            header[name] = {
                "dtype": slot.dtype,
                "shape": list(slot.shape),
                "data_offsets": [at, at + slot.nbytes],
            }
            at += slot.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        start = 8 + len(text)
        self.slots = {
            name: Slot(
                slots[name].dtype, slots[name].shape, start + header[name]["data_offsets"][0]
            )
            for name in order
        }
        self._file = file
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        file.truncate(start + at)

    def write(self, name: str, values: Array, row: int = 0, *, axis: int = 0) -> None:
        """Write ``values`` into one array, as the rows ``row``, ``row + 1``, … along ``axis``.

        Attention weights (H, t, s) have their rows along axis 1; their s keys are the last s keys
        before row ``row + t``.
        """
        slot = self.slots[name]
        values = values.astype(FILE_DTYPES[slot.dtype], copy=False)
        end = row + values.shape[axis]
        if axis == 0:
            self._put(slot, row * math.prod(slot.shape[1:]), values)
        else:
            _, rows, keys = slot.shape
            block = np.zeros((values.shape[1], keys), values.dtype)
            for head, weights in enumerate(values):
                block[:, end - weights.shape[1] : end] = weights
                self._put(slot, (head * rows + row) * keys, block)

    def _put(self, slot: Slot, first: int, values: Array) -> None:
        self._file.seek(slot.begin + first * slot.itemsize)
        self._file.write(np.ascontiguousarray(values).data)


@contextlib.contextmanager
def create(
    path: Path, slots: Mapping[str, Slot], metadata: Mapping[str, str]
) -> Iterator[TraceWriter]:
    """Yield a writer to a temporary file, which is renamed to ``path`` if the block succeeds.

    An existing file is replaced only then.

    Raises:
        TraceError: the file cannot be written.
    """
    with replacing(path, TraceError) as file:
        yield TraceWriter(file, slots, metadata)


def read(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """The arrays of a trace file, as views that are read when used, and its metadata.

    Raises:
        TraceError: the file is missing or damaged, or is not a trace.
    """
    if path.suffix == ".npz":
        arrays, metadata = split_npz(load_npz(path), path)
        if metadata.get("format") not in READABLE:
            raise TraceError(f"{path}: not a trace: the file has no trace metadata")
        return arrays, {key: value for key, value in metadata.items() if key != "format"}
    try:
        if path.is_file() and not looks_like_safetensors(path):
            raise TraceError(f"{path}: not a trace: expected a .trace, .safetensors or .npz file")
        file = SafetensorsFile(path)
        if file.metadata.get("format") not in READABLE:
            raise TraceError(
                f"{path}: not a trace: its metadata has format "
                f"{file.metadata.get('format')!r}, expected {FORMAT!r}"
            )
        arrays = {name: file.array(name, FILE_DTYPES) for name in file.tensors}
    except CheckpointError as error:
        raise TraceError(str(error)) from None
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from None
    return arrays, {key: value for key, value in file.metadata.items() if key != "format"}


def check_suffix(path: Path) -> None:
    """Raises TraceError if a trace file cannot have the suffix of ``path``."""
    if path.suffix in (".npy", ".pt", ".pth", ".pkl", ".gguf", ".json", ".csv", ".h5", ".bin"):
        raise TraceError(
            f"{path}: a trace file cannot end with {path.suffix}: expected .trace, .safetensors "
            "or .npz"
        )


def text_of(values: Sequence[int] | Array) -> str:
    """Integers (N,) as a JSON list without spaces."""
    return json.dumps([int(value) for value in values], separators=(",", ":"))
