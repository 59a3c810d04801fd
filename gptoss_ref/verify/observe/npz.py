"""Somebody's .npz file, which may be damaged in any way, or made to fill the memory."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

from numpy.lib import format as npy

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


def load_npz(path: Path) -> dict[str, Array]:
    """The arrays by name.

    Raises:
        TraceError: there is no such file, it is no whole .npz file of plain arrays, or it unpacks
            to more than SMALL bytes and MAX_RATIO times its size.
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
        if file.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX:
            raise TraceError(f"{path}: a single array: expected an .npz file of several")
        size = file.seek(0, 2)
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
                arrays[name] = _read_array(archive, member)
    except TraceError:
        raise
    except DAMAGED as error:
        reason = str(error) or type(error).__name__
        raise TraceError(f"{path}: not a whole .npz file of plain arrays: {reason}") from None
    return arrays


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    """One .npy file; its header must agree with its size before anything is allocated."""
    with archive.open(member) as content:
        version = npy.read_magic(content)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{member.filename}: version {version} of .npy: expected 1.0 or 2.0")
        read_header: Any = (
            npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        )
        shape, _, dtype = read_header(content)
        if dtype.hasobject:
            raise ValueError(f"{member.filename}: holds Python objects")
        declared = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or declared != member.file_size - content.tell():
            raise ValueError(
                f"{member.filename}: {dtype} of shape {shape} takes {declared} bytes, the file "
                f"holds {member.file_size - content.tell()}"
            )
    with archive.open(member) as content:
        return npy.read_array(content, allow_pickle=False)
