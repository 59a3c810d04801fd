"""NumPy files: traces, and untrusted .npz or .npy files, which may be damaged in any way."""

from __future__ import annotations

import json
import math
import struct
import tokenize
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
"""Largest ratio of unpacked to packed bytes. Attention weights of a windowed layer, mostly zeros,
reach 40 at 1,000 tokens of tiny; zeros alone reach 1,000."""
SMALL = 1 << 30
"""Unpacked bytes that are always allowed, whatever the ratio."""

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
    tokenize.TokenError,  # a header in which a bracket is not closed
    zipfile.BadZipFile,
    zlib.error,
)

METADATA = "trace_metadata"
"""Name of the member of a trace's .npz that holds the metadata, as JSON."""


def load_npz(path: Path) -> dict[str, Array]:
    """The arrays of an .npz or .npy file by name; an .npy file's array is named by the file stem.

    Raises:
        TraceError: the file is missing, or is not a complete .npz or .npy file of plain arrays, or
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
            raise TraceError(f"{path}: a single array: expected an .npz file with several")
        if single:
            file.seek(0)
            return {path.stem: _read_array(file, size, path.name)}
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            unpacked = sum(member.file_size for member in members)
            if unpacked > max(SMALL, MAX_RATIO * size):
                raise TraceError(
                    f"{path}: {size} bytes would unpack to {unpacked}, more than {MAX_RATIO} times "
                    "the size: refused"
                )
            for member in members:
                name = member.filename.removesuffix(".npy")
                if name == member.filename:
                    raise TraceError(f"{path}: {name!r} is not an array")
                if name in arrays:
                    raise TraceError(f"{path}: holds {name!r} twice")
                with archive.open(member) as content:
                    arrays[name] = _read_array(content, member.file_size, member.filename)
    except TraceError:
        raise
    except DAMAGED as error:
        reason = str(error) or type(error).__name__
        raise TraceError(f"{path}: not a complete .npz file of plain arrays: {reason}") from None
    return arrays


def _read_array(file: IO[bytes], size: int, name: str) -> Array:
    """Read one .npy file, whose header must agree with its ``size`` in bytes."""
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
    """Write arrays and metadata; an existing file is replaced when the new one is complete.

    Raises:
        TraceError: the file cannot be written.
    """
    with replacing(path, TraceError) as file:
        np.savez(file, **{METADATA: np.array(json.dumps(dict(metadata)))}, **arrays)  # type: ignore[arg-type]


def split_npz(arrays: dict[str, Array], path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """The arrays and the metadata of a trace's .npz; no metadata if another program wrote it.

    Raises:
        TraceError: the metadata is damaged.
    """
    if METADATA not in arrays:
        return arrays, {}
    try:
        metadata = json.loads(str(arrays[METADATA]))
        metadata = {str(key): str(value) for key, value in metadata.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise TraceError(f"{path}: the metadata is damaged: {error}") from None
    return {name: values for name, values in arrays.items() if name != METADATA}, metadata
