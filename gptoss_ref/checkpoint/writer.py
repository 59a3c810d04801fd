"""Writes safetensors shards tensor by tensor, and creates a folder complete or not at all."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.checkpoint.reader import DTYPE_BITS
from gptoss_ref.checkpoint.shards import INDEX, SINGLE
from gptoss_ref.errors import CheckpointError

Progress = Callable[[int, int, str], None]
"""Called with the bytes written so far, the total bytes, and the tensor being written."""


@dataclass(frozen=True)
class Output:
    """A tensor to be written: `chunks()` yields its data in order, piece by piece."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterator[NDArray[Any]]]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * DTYPE_BITS[self.dtype] // 8


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `target`, and renames it to `target` if the block succeeds.

    If the block fails or is interrupted, the temporary folder is deleted.
    Raises CheckpointError if `target` exists (it is never changed) or cannot be created.
    """

    def refuse_existing() -> None:
        if os.path.lexists(target):
            raise CheckpointError(f"{target}: already exists; the result needs a new folder")

    refuse_existing()
    staging = target.parent / f".{target.name}.{os.urandom(6).hex()}.partial"
    try:
        staging.mkdir()
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be created: {error.strerror}") from None
    try:
        yield staging
        for path in (*staging.iterdir(), staging):
            _flush(path)
        refuse_existing()
        staging.rename(target)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise CheckpointError(f"{target}: cannot be written: {error.strerror or error}") from error
    except BaseException:  # also Ctrl-C
        shutil.rmtree(staging, ignore_errors=True)
        raise
    _flush(target.parent)


def _flush(path: Path) -> None:
    """Flush a file, or a folder's directory entries, to the disk (fsync)."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open folders
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_shards(
    folder: Path, outputs: Sequence[Output], max_shard_bytes: int, progress: Progress | None
) -> list[str]:
    """Writes the tensors as one file, or as shards with an index; returns the files' names.

    A shard holds at most `max_shard_bytes` of tensors, unless a single tensor is larger.
    """
    shards: list[list[Output]] = [[]]
    for output in outputs:
        size = sum(o.nbytes for o in shards[-1])
        if shards[-1] and size + output.nbytes > max_shard_bytes:
            shards.append([])
        shards[-1].append(output)
    total = sum(o.nbytes for o in outputs)
    if len(shards) == 1:
        _write_file(folder / SINGLE, shards[0], 0, total, progress)
        return [SINGLE]
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    done = 0
    for name, shard in zip(names, shards, strict=True):
        done = _write_file(folder / name, shard, done, total, progress)
    weight_map = {
        output.name: name for name, shard in zip(names, shards, strict=True) for output in shard
    }
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return names


def _write_file(
    path: Path, outputs: list[Output], done: int, total: int, progress: Progress | None
) -> int:
    """Writes one file; returns the number of bytes written so far.

    Wide dtypes come first, so that every tensor is aligned to its dtype.
    """
    outputs = sorted(outputs, key=lambda output: -DTYPE_BITS[output.dtype])
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers requires it
    at = 0
    for output in outputs:
        offsets = [at, at + output.nbytes]
        header[output.name] = {
            "dtype": output.dtype,
            "shape": list(output.shape),
            "data_offsets": offsets,
        }
        at += output.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for output in outputs:
            expected = file.tell() + output.nbytes
            for chunk in output.chunks():
                file.write(np.ascontiguousarray(chunk).data)
                done += chunk.nbytes
                if progress is not None:
                    progress(done, total, output.name)
            if file.tell() != expected:
                raise RuntimeError(f"{output.name}: {file.tell() - expected} bytes too many")
    return done


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` as indented JSON."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
