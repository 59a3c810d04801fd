"""Read one or several files of arrays under any names as a Trace."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from gptoss_ref._files import is_special
from gptoss_ref.checkpoint.reader import ARRAY_DTYPES, SafetensorsFile, looks_like_safetensors
from gptoss_ref.config import ModelConfig
from gptoss_ref.errors import CheckpointError, TraceError
from gptoss_ref.numerics import Array
from gptoss_ref.tracing.file import FORMAT
from gptoss_ref.tracing.npz import load_npz, split_npz
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.verify.observe.adapters.arrays import Names, from_arrays, prompt_ids
from gptoss_ref.verify.observe.adapters.names import lookup
from gptoss_ref.verify.observe.adapters.partial_rows import merged
from gptoss_ref.verify.observe.adapters.suggest import UnknownName

TOKENS = ("tokens", "input_ids", "token_ids")
"""Names of the array that holds the prompt."""

POSITIONS = "positions"
"""Name of the array that holds the positions of the rows."""

_DTYPES: dict[str, DTypeLike] = {**ARRAY_DTYPES, "I32": "<i4", "I64": "<i8"}
_OTHER_KINDS = (".pt", ".pth", ".pkl", ".gguf", ".json", ".csv", ".h5")


def read(
    path: str | Path | Sequence[str | Path],
    *,
    tokens: Iterable[int] | Array | None = None,
    config: ModelConfig | None = None,
    names: Names | None = None,
    unknown: str = "raise",
    positions: Iterable[int] | None = None,
) -> Trace:
    """A Trace from a trace file, or from .npz, .npy or .safetensors files with any names.

    Args:
        path: the file, or several files of one run, such as its prefill and its decoding steps in
            order: each holds the next rows, or has an array ``positions``. An .npy file is one
            array, whose name is that of the file; if that is unknown, it is the logits.
        tokens: the prompt, if the file does not hold it (as an array ``tokens`` or ``input_ids``,
            or in the metadata); if both exist, they must agree.
        config: of the model; a trace file has its own.
        names, unknown, positions: see :func:`from_arrays`.

    Raises:
        TraceError: a file is missing, truncated or of another kind; the prompt or the configuration
            is missing; or :func:`from_arrays` cannot read the arrays.
    """
    paths = [Path(path)] if isinstance(path, str | Path) else [Path(part) for part in path]
    if not paths:
        raise TraceError("no files: expected at least one")
    given = None if tokens is None else prompt_ids(tokens)
    contents = [_Content.of(part, config) for part in paths]
    if len(contents) == 1 and isinstance(contents[0], Trace):
        return contents[0]
    ids = _prompt(contents, given)
    if config is None:
        traces = [content for content in contents if isinstance(content, Trace)]
        if not traces:
            raise TraceError(f"{paths[0]}: no configuration: pass the model's configuration")
        config = traces[0].config
    parts: list[Trace] = []
    start = 0
    for content in contents:
        if isinstance(content, Trace):
            parts.append(content)
            continue
        rows = content.rows if content.rows is not None else positions
        if len(contents) > 1 and rows is None:
            count = content.count(start, len(ids), config, names)
            rows = range(start, start + count)
            start += count
        try:
            trace = from_arrays(
                content.arrays,
                ids,
                config,
                names=names,
                producer=content.path.name,
                unknown=unknown,
                positions=rows,
            )
        except UnknownName as error:
            error.args = (f"{content.path}: {error}",)
            raise
        except TraceError as error:
            raise TraceError(f"{content.path}: {error}") from None
        parts.append(trace)
    return parts[0] if len(parts) == 1 else merged(parts)


@dataclass(frozen=True)
class _Content:
    """The contents of a file of arrays.

    Attributes:
        arrays: by name.
        ids: (T,) the prompt, or the part of it that has rows in the file; None if it has none.
        rows: (P,) the positions of the rows; None if it has none.
    """

    path: Path
    arrays: dict[str, Array]
    ids: Array | None
    rows: Array | None

    @staticmethod
    def of(path: Path, config: ModelConfig | None) -> _Content | Trace:
        """Read a file, whose kind its first bytes tell."""
        kind = _kind(path)
        if kind == "safetensors":
            arrays, metadata = _read_safetensors(path)
        else:
            arrays, metadata = split_npz(load_npz(path), path)
        if metadata.get("format") == FORMAT:
            return Trace.load(path)
        if kind == "npy" and config is not None:
            ((name, values),) = arrays.items()
            arrays = {name if name in lookup(config) else "logits": values}
        own = next((prompt_ids(arrays.pop(name), path) for name in TOKENS if name in arrays), None)
        if own is None and "tokens" in metadata:
            own = _json_tokens(metadata["tokens"], path)
        rows = arrays.pop(POSITIONS, None)
        return _Content(path, arrays, own, None if rows is None else rows.reshape(-1))

    def count(self, start: int, length: int, config: ModelConfig, names: Names | None) -> int:
        """The number of its rows, which begin at position ``start``."""
        left = length - start
        if self.ids is not None and len(self.ids) <= left:
            return len(self.ids)
        own = {**dict.fromkeys(lookup(config)), **(names or {})}
        array = next((self.arrays[name] for name in self.arrays if name in own), None)
        shape: tuple[int, ...] = getattr(array, "shape", ())
        for count in sorted({*shape, 1}):
            if 1 <= count <= left:
                rows = range(start, start + count)
                some = replace(self, rows=np.array(rows))
                trace = from_arrays(
                    some.arrays,
                    np.zeros(length, np.int64),
                    config,
                    names=names,
                    unknown="skip",
                    positions=rows,
                )
                if trace:
                    return count
        raise TraceError(
            f"{self.path}: the number of its rows, from token {start} of {left + start}, is "
            f"ambiguous: expected an array {POSITIONS!r}"
        )


def _prompt(contents: Sequence[_Content | Trace], given: Array | None) -> Array:
    """The ids (T,) of a run: as given, from one file, or the concatenated ids of the files.

    Raises:
        TraceError: there are none, or they contradict one another.
    """
    said = [(c.path, c.ids) for c in contents if isinstance(c, _Content) and c.ids is not None]
    traces = [content for content in contents if isinstance(content, Trace)]
    if given is None and traces:
        given = traces[0].tokens
    if len(contents) > 1:
        if given is None and len(said) == len(contents):
            every = [ids for _, ids in said]
            same = all(np.array_equal(ids, every[0]) for ids in every) and len(every[0]) > 1
            return every[0] if same else np.concatenate(every)
    elif said:
        path, own = said[0]
        if given is not None and not np.array_equal(own, given):
            raise TraceError(
                f"{path}: its {len(own)} tokens differ from the {len(given)} given ones"
            )
        return own
    if given is None:
        paths = [content.path for content in contents if isinstance(content, _Content)]
        raise TraceError(f"{paths[0]}: the prompt is missing: expected an array {TOKENS[0]!r}")
    return given


def _kind(path: Path) -> str:
    """``npz``, ``npy`` or ``safetensors``, by a file's first bytes, or by its name if it is empty.

    Raises:
        TraceError: the file is missing, or is of another kind.
    """
    expected = f"{path}: expected a trace, an .npz, .npy or .safetensors file"
    if path.suffix in _OTHER_KINDS:
        raise TraceError(expected)
    if is_special(path):  # opening a pipe would wait for a writer
        raise TraceError(f"{path}: cannot be read: not a regular file")
    try:
        with path.open("rb") as file:
            begin = file.read(6)
        safetensors = looks_like_safetensors(path)
    except FileNotFoundError:
        raise TraceError(f"{path}: no such file") from None
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from None
    if path.suffix == ".npz" or begin[:4] == b"PK\3\4":
        return "npz"
    if path.suffix == ".npy" or begin == b"\x93NUMPY":
        return "npy"
    if not safetensors:
        raise TraceError(expected)
    return "safetensors"


def _read_safetensors(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    try:
        file = SafetensorsFile(path)
        return {name: file.array(name, _DTYPES) for name in file.tensors}, dict(file.metadata)
    except CheckpointError as error:
        raise TraceError(str(error)) from None


def _json_tokens(text: str, path: Path) -> Array:
    try:
        ids = np.asarray(json.loads(text))
    except (ValueError, RecursionError):
        ids = np.empty(0)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise TraceError(f"{path}: tokens in the metadata are not a JSON list of integers")
    return ids


def names_of(raw: Any, config: ModelConfig) -> Mapping[str, str | tuple[str, str]]:
    """The ``names`` argument of :func:`from_arrays`, from a JSON object.

    A value is a tap point, or a list of a tap point and the order of axes; ``{n}`` in a name and
    its tap point stands for the number of each block.

    Raises:
        TraceError: the JSON has another form.
    """
    if not isinstance(raw, dict):
        raise TraceError("expected a JSON object of names and tap points")
    found: dict[str, str | tuple[str, str]] = {}
    for name, entry in raw.items():
        pair = [entry] if isinstance(entry, str) else entry
        fits = isinstance(pair, list) and 1 <= len(pair) <= 2
        if not fits or not all(isinstance(part, str) for part in pair):
            raise TraceError(f"{name!r}: expected a tap point, or [tap point, order of axes]")
        blocks = range(config.num_hidden_layers) if "{n}" in name else [0]
        for n in blocks:
            tap = pair[0].replace("{n}", str(n))
            found[name.replace("{n}", str(n))] = (tap, pair[1]) if len(pair) == 2 else tap
    return found
