"""Files of NumPy: somebody's .npz or .npy, which may be damaged in any way, and traces as .npz."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gptoss_ref._files import replacing
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


METADATA = "trace_metadata"
"""The name under which a trace's .npz holds its metadata, as JSON."""


def load_npz(path: Path) -> dict[str, Array]:
    """The arrays by name; of an .npy file its one array, under the file's name without the end.

    Raises:
        TraceError: there is no such file, or it is no whole .npz or .npy file of plain arrays.
    """
    arrays: dict[str, Array] = {}
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            if path.suffix == ".npz":
                raise TraceError(f"{path}: a single array: expected an .npz file of several")
            return {path.stem: file}
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
        if "allow_pickle" in reason:
            reason = "it holds Python objects"
        raise TraceError(f"{path}: not a whole .npz file of plain arrays: {reason}") from None
    return arrays


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
