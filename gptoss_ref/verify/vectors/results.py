"""Read a folder of results: a file for each operation, in one of three formats."""

from __future__ import annotations

import difflib
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from gptoss_ref.errors import GptOssError
from gptoss_ref.numerics import Array
from gptoss_ref.tracing.npz import load_npz
from gptoss_ref.verify.vectors.judge import Judgement, judge_case
from gptoss_ref.verify.vectors.operations import OPERATIONS
from gptoss_ref.verify.vectors.suite import cases_of, suite_arrays

SUFFIXES = (".safetensors", ".npz", ".json")


def check_vectors(folder: str | Path, precision: str = "float32") -> Judgement:
    """Judge the results in ``folder``: ``<operation>.safetensors``, ``.npz`` or ``.json``.

    Args:
        precision: number format of the implementation, ``"float32"`` or ``"bfloat16"``.

    Raises:
        GptOssError: the folder holds no results, a file cannot be read, or an operation has two.
    """
    if precision not in ("float32", "bfloat16"):
        raise GptOssError(f"unknown precision {precision!r}: expected float32 or bfloat16")
    given = _files(Path(folder))
    findings, notes = [], []
    for name, path in given.items():
        operation = OPERATIONS[name]
        outputs: dict[str, dict[str, Array]] = defaultdict(dict)
        known = {f"{c.id}/{o}" for c in cases_of(operation) for o in operation.outputs}
        ours = suite_arrays(operation)  # the suite's own folder also holds inputs
        for key, values in _read(path).items():
            if key in known:
                case, output = key.split("/")
                outputs[case][output] = values
            elif key not in ours:
                near = difflib.get_close_matches(key, known, 1)
                hint = f" (nearest: {near[0]})" if near else ""
                notes.append(f"{path.name}: no case has an output {key!r}{hint}")
        findings += [judge_case(c, outputs[c.id], precision) for c in cases_of(operation)]
    absent = tuple(name for name in OPERATIONS if name not in given)
    return Judgement(tuple(findings), absent, tuple(notes))


def has_results(folder: str | Path) -> bool:
    """Whether a folder holds results of at least one operation."""
    return any((Path(folder) / f"{n}{s}").is_file() for n in OPERATIONS for s in SUFFIXES)


def _files(folder: Path) -> dict[str, Path]:
    """The file of each operation, for operations with a file, in the suite's order."""
    if not folder.is_dir():
        raise GptOssError(f"{folder}: expected a folder of results")
    found: dict[str, Path] = {}
    for name in OPERATIONS:
        paths = [p for suffix in SUFFIXES if (p := folder / f"{name}{suffix}").is_file()]
        if len(paths) > 1:
            raise GptOssError(f"{paths[0]} and {paths[1].name}: expected one file of results")
        if paths:
            found[name] = paths[0]
    if not found:
        raise GptOssError(
            f"{folder}: no results found: expected <operation>.safetensors, .npz or .json with "
            f"the operations {', '.join(OPERATIONS)}"
        )
    return found


def _read(path: Path) -> Mapping[str, Array]:
    """Arrays by name."""
    try:
        if path.suffix == ".safetensors":
            return load_safetensors(path.read_bytes())
        if path.suffix == ".npz":
            return load_npz(path)
        return _from_json(path, json.loads(path.read_text("utf-8")))
    except GptOssError:
        raise
    except (SafetensorError, OSError, LookupError, ValueError, RecursionError) as error:
        raise GptOssError(f"{path}: cannot be read as {path.suffix[1:]}: {error}") from None


def _from_json(path: Path, content: Any) -> Mapping[str, Array]:
    if not isinstance(content, dict):
        raise GptOssError(f"{path}: expected an object of arrays by name")
    arrays = {}
    for key, values in content.items():
        try:
            array = np.array(values, np.float64)
        except (TypeError, ValueError, OverflowError):
            raise GptOssError(f"{path}: {key}: expected nested lists of numbers") from None
        arrays[key] = array
    return arrays
