"""Files of NumPy: traces, and somebody's .npz or .npy, which may be damaged in any way."""

from __future__ import annotations

import json
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from gptoss_ref._files import replacing
from gptoss_ref.errors import TraceError
from gptoss_ref.numerics import Array

MAX_RATIO = 250
"""Bytes that one byte of the file may become. Attention weights of a windowed layer, mostly zeros,
come to 40 at 1,000 tokens of tiny; zeros alone to 1,000."""
SMALL = 1 << 30
"""Bytes that any file may become, whatever its size."""

# What NumPy, zipfile and zlib raise for files that are cut off, changed or of another kind.
# NotImplementedError (an unknown compression) is a RuntimeError (an encrypted member).
DAMAGED = (
    OSError,
    ValueError,
    TypeError,
    SyntaxError,
    LookupError,
    EOFError,
    RuntimeError,
    OverflowError,
    MemoryError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)

METADATA = "trace_metadata"
"""The name under which a trace's .npz holds its metadata, as JSON."""


def load_npz(path: Path) -> dict[str, Array]:
    """The arrays by name; of an .npy file its one array, under the file's name without the end.

    Raises:
        TraceError: there is no such file, it is no whole .npz or .npy file of plain arrays, or it
            unpacks to more than SMALL bytes and MAX_RATIO times its size.
    """
    try:
        with path.open("rb") as file:
            return read_npz(file, path)
    except FileNotFoundError:
        raise TraceError(f"{path}: no such file") from None
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from None


def read_npz(file: IO[bytes], path: Path) -> dict[str, Array]:
    """The arrays of an open file; see :func:`load_npz`. ``path`` names it in errors."""
    arrays: dict[str, Array] = {}
    try:
        single = file.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX
        size = file.seek(0, 2)
        if single and path.suffix == ".npz":
            raise TraceError(f"{path}: a single array: expected an .npz file of several")
        if single:
            file.seek(0)
            return {path.stem: _read_array(file, size, path.name)}
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            unpacked = sum(member.file_size for member in members)
            if unpacked > max(SMALL, MAX_RATIO * size):
                raise TraceError(
                    f"{path}: {size} bytes that unpack to {unpacked}, more than {MAX_RATIO} times "
                    "as many: not read"
                )
            for member in members:
                name = member.filename.removesuffix(".npy")
                if name == member.filename:
                    raise TraceError(f"{path}: {name!r} is no array")
                if name in arrays:
                    raise TraceError(f"{path}: holds {name!r} twice")
                with archive.open(member) as content:
                    arrays[name] = _read_array(content, member.file_size, member.filename)
    except TraceError:
        raise
    except DAMAGED as error:
        reason = str(error) or type(error).__name__
        raise TraceError(f"{path}: not a whole .npz file of plain arrays: {reason}") from None
    return arrays


def _read_array(file: IO[bytes], size: int, name: str) -> Array:
    """One .npy file of ``size`` bytes, which its header must agree with."""
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{name}: version {version} of .npy: expected 1.0 or 2.0")
    read_header: Any = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError(f"{name}: holds Python objects")
    declared = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or declared != size - file.tell():
        raise ValueError(
            f"{name}: {dtype} of shape {shape} takes {declared} bytes, the file "
            f"holds {size - file.tell()}"
        )
    file.seek(0)
    values: Array = npy.read_array(file, allow_pickle=False)
    return values


def save_npz(path: Path, arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Write arrays and metadata; a file that is already there is replaced once this one is whole.

    Raises:
        TraceError: the file cannot be written.
    """
    with replacing(path, TraceError) as file:
        np.savez(file, **{METADATA: np.array(json.dumps(dict(metadata)))}, **arrays)  # type: ignore[arg-type]


def split_npz(arrays: dict[str, Array], path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """The arrays of a trace's .npz, and its metadata; without any of somebody else's.

    Raises:
        TraceError: the metadata is damaged.
    """
    if METADATA not in arrays:
        return arrays, {}
    try:
        metadata = json.loads(str(arrays[METADATA]))
        metadata = {str(key): str(value) for key, value in metadata.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise TraceError(f"{path}: its metadata is damaged: {error}") from None
    return {name: values for name, values in arrays.items() if name != METADATA}, metadata
