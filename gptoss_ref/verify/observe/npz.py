"""Somebody's .npz file, which may be damaged in any way."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from gptoss_ref.errors import TraceError
from gptoss_ref.numerics import Array

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
        TraceError: there is no such file, or it is no whole .npz file of plain arrays.
    """
    arrays: dict[str, Array] = {}
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise TraceError(f"{path}: a single array: expected an .npz file of several")
        with file:
            for name in file.files:
                values = file[name]
                if not isinstance(values, np.ndarray):  # a member that is no .npy file: its bytes
                    raise TraceError(f"{path}: {name!r} is no array")
                arrays[name] = values
    except TraceError:
        raise
    except FileNotFoundError:
        raise TraceError(f"{path}: no such file") from None
    except DAMAGED as error:
        reason = str(error) or type(error).__name__
        raise TraceError(f"{path}: not a whole .npz file of plain arrays: {reason}") from None
    return arrays
