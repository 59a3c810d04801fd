"""Reader of one memory-mapped safetensors file: it checks the header and returns views of tensors.

A file is: 8 bytes, the header's length n (little-endian); n bytes of JSON, which gives each
tensor's dtype, shape and [begin, end) within the data; the data. Tensors cover the data without
gap or overlap. Only the header is read. The NumPy interface of the safetensors package has no
bfloat16 and copies, hence this reader. Source: the format section of huggingface/safetensors.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from gptoss_ref._files import is_special, release
from gptoss_ref.errors import CheckpointError

# Bits per value of every dtype that the format defines.
DTYPE_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8,
    "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16,
    "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
    "C64": 64,
}  # fmt: skip
# The dtypes a gpt-oss checkpoint uses, as NumPy holds them: bfloat16 as its bits.
ARRAY_DTYPES: dict[str, DTypeLike] = {
    "U8": np.uint8,
    "BF16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors package


@dataclass(frozen=True)
class TensorInfo:
    """One entry of a header: `begin` and `end` are byte offsets in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.end - self.begin


class SafetensorsFile:
    """A mapped safetensors file.

    `tensors` maps each name to its TensorInfo, in file order; `metadata` is the header's.

    Raises CheckpointError, with the file and the tensor, unless the whole header is valid.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if is_special(path):  # opening a pipe would wait for a writer
            raise CheckpointError(f"{path}: cannot be read: not a regular file")
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(0)
                header, start = _read_header(file, size, path)
                self.metadata: dict[str, str] = header.pop("__metadata__", {})
                self.tensors = {t.name: t for t in _entries(header, start, size, path)}
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            _ask_for_large_pages(self._map)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None

    def array(self, name: str, dtypes: Mapping[str, DTypeLike] = ARRAY_DTYPES) -> NDArray[Any]:
        """A tensor as a read-only view in the shape of its header; bfloat16 as uint16 bits.

        The view may be unaligned, as the file is; NumPy reads it correctly.
        Raises CheckpointError if the dtype is not among `dtypes` (by default: those of a gpt-oss
        checkpoint), or if the file has been truncated since it was mapped.
        """
        self.check_size()
        info = self.tensors[name]
        if info.dtype not in dtypes:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} is {info.dtype}; expected one of {', '.join(dtypes)}"
            )
        dtype = np.dtype(dtypes[info.dtype])
        count = math.prod(info.shape)
        return np.frombuffer(self._map, dtype, count, info.begin).reshape(info.shape)

    def check_size(self) -> None:
        """Raises CheckpointError if the file has been truncated since it was mapped.

        Reading the lost part of a view ends the process (SIGBUS on Linux and macOS), so callers
        that read for a long time call this in between. If another file is renamed over this one,
        the mapping keeps the old contents.
        """
        if self._map.size() < len(self._map):
            raise CheckpointError(
                f"{self.path}: was truncated while in use, from {len(self._map)} to "
                f"{self._map.size()} bytes"
            )

    def release(self) -> None:
        """Lets the operating system drop the mapping's pages; they are read again when used."""
        release((self._map,))


def looks_like_safetensors(path: Path) -> bool:
    """Whether the suffix is that of a safetensors or trace file, or the JSON header is in place.

    Raises:
        OSError: the file cannot be read.
    """
    if path.suffix in (".safetensors", ".trace") or is_special(path):
        return True  # SafetensorsFile says what is wrong with it
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"  # after eight bytes of length


def _ask_for_large_pages(mapped: mmap.mmap) -> None:
    """Ask for pages of 2 MiB: where the system has them, reading weights is a third faster.

    Linux has them for pages that are not yet in its cache, on file systems with large folios.
    """
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a system without them
            mapped.madvise(mmap.MADV_HUGEPAGE)


def _read_header(file: Any, size: int, path: Path) -> tuple[dict[str, Any], int]:
    """The header's JSON object and the offset at which the data begins."""
    first = file.read(8)
    if first.startswith(b"version "):
        raise CheckpointError(
            f"{path}: a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"
        )
    if len(first) < 8:
        raise CheckpointError(f"{path}: truncated: {size} bytes, too few for a header")
    length = int.from_bytes(first, "little")
    if length > MAX_HEADER:
        raise CheckpointError(
            f"{path}: not a safetensors file: it claims a header of {length} bytes "
            f"(at most {MAX_HEADER})"
        )
    if length > size - 8:
        raise CheckpointError(
            f"{path}: truncated: the header has {length} bytes, but the whole file has {size}"
        )

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                raise CheckpointError(f"{path}: the header names {key!r} twice")
            seen[key] = value
        return seen

    try:
        header = json.loads(file.read(length).decode(), object_pairs_hook=unique)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the safetensors header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the safetensors header is not a JSON object")
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ must map names to strings")
    return header, 8 + length


def _entries(header: dict[str, Any], start: int, size: int, path: Path) -> Iterator[TensorInfo]:
    """The header's tensors in file order, each checked against its neighbours and the file."""
    parsed = [_entry(name, raw, start, path) for name, raw in header.items()]
    parsed.sort(key=lambda t: (t.begin, t.end))
    at, before = start, "the header"
    for tensor in parsed:
        if tensor.begin < at:
            raise CheckpointError(f"{path}: tensor {tensor.name!r} overlaps {before}")
        if tensor.begin > at:
            raise CheckpointError(
                f"{path}: {tensor.begin - at} bytes between {before} and tensor "
                f"{tensor.name!r} belong to no tensor"
            )
        at, before = tensor.end, f"tensor {tensor.name!r}"
    if at > size:
        raise CheckpointError(
            f"{path}: truncated: the tensors need {at} bytes, the file has {size}"
        )
    if at < size:
        raise CheckpointError(f"{path}: {size - at} bytes after {before} belong to no tensor")
    yield from parsed


def _entry(name: str, raw: Any, start: int, path: Path) -> TensorInfo:
    def fail(message: str) -> CheckpointError:
        return CheckpointError(f"{path}: tensor {name!r}: {message}")

    if not isinstance(raw, dict) or set(raw) != {"dtype", "shape", "data_offsets"}:
        raise fail("its header entry must hold dtype, shape and data_offsets")
    dtype, shape, offsets = raw["dtype"], raw["shape"], raw["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise fail(f"unknown dtype {dtype!r}")
    if not _counts(shape) or math.prod(max(n, 1) for n in shape) >= 2**60:
        raise fail(f"shape must be a list of sizes, not {_brief(shape)}")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise fail(f"data_offsets must be [begin, end], not {_brief(offsets)}")
    begin, end = offsets
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits != 8 * (end - begin):
        raise fail(f"{dtype} of shape {tuple(shape)} takes {bits / 8:g} bytes, not {end - begin}")
    return TensorInfo(name, dtype, tuple(shape), start + begin, start + end)


def _counts(value: Any) -> bool:
    """Whether this is a list of non-negative integers that fit a file's size."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**60 for n in value)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
