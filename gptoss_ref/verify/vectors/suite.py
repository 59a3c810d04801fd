"""The conformance suite as files: a manifest, its schema, and the numbers.

    manifest.json               operations, cases, tolerances, flags and the bugs they catch
    schema.json                 JSON Schema of the manifest
    README.md                   how to use the suite from any language
    <operation>.safetensors     "<case>/<name>" for every input and every expected output
    harmony.json                cases of Harmony: render, parse, stream, tokenize
    harmony.schema.json         JSON Schema of harmony.json

Expected values are computed in float64 and stored as float32, indices as int32, bytes as uint8.
The files are byte for byte the same on every machine; :data:`DIGEST` is their hash.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from gptoss_ref.checkpoint.writer import new_folder
from gptoss_ref.numerics import Array
from gptoss_ref.verify.mutants import CATALOGUE, TIES
from gptoss_ref.verify.vectors.case import Case
from gptoss_ref.verify.vectors.cases import all_cases
from gptoss_ref.verify.vectors.flags import FLAGS
from gptoss_ref.verify.vectors.harmony import harmony_files
from gptoss_ref.verify.vectors.mistakes import MISTAKES
from gptoss_ref.verify.vectors.operation import Operation
from gptoss_ref.verify.vectors.operations import OPERATIONS

FORMAT = "gptoss-vectors-1"
MANIFEST = "manifest.json"
DIGEST = "d092ddd44a349db229f1c9d15759729546db55032c0cd639aa43b168bfc89ec8"
"""SHA-256 over the suite's files in the order of their names, each name before its content."""


def write_vectors(folder: str | Path) -> str:
    """Write the suite into a new ``folder``, complete or not at all; return its digest.

    Raises:
        CheckpointError: the folder exists or cannot be created.
    """
    contents = suite_files()
    with new_folder(Path(folder)) as staging:
        for name, content in contents.items():
            (staging / name).write_bytes(content)
    return digest(contents)


@cache
def suite_files() -> dict[str, bytes]:
    """The contents of every file of the suite by name."""
    here = files(__package__)
    contents = {name: (here / name).read_bytes() for name in ("README.md", "schema.json")}
    contents |= harmony_files()
    contents[MANIFEST] = (json.dumps(manifest(), indent=1, ensure_ascii=False) + "\n").encode()
    for operation in OPERATIONS.values():
        contents[_file(operation)] = save(suite_arrays(operation))
    return dict(sorted(contents.items()))


def digest(contents: dict[str, bytes]) -> str:
    """SHA-256 of named files."""
    total = hashlib.sha256()
    for name, content in sorted(contents.items()):
        total.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
    return total.hexdigest()


def stored(values: Array) -> Array:
    """An array of any shape in the suite's dtype: float32, int32 or uint8."""
    if values.dtype.kind == "f":
        with np.errstate(over="ignore", invalid="ignore"):
            return np.ascontiguousarray(values, np.float32)
    return np.ascontiguousarray(values, np.uint8 if values.dtype == np.uint8 else np.int32)


def cases_of(operation: Operation) -> list[Case]:
    """The cases of one operation."""
    return [case for case in all_cases() if case.operation is operation]


@cache
def expected(case: Case) -> dict[str, Array]:
    """The specification's answer to a case, as stored."""
    return {name: stored(values) for name, values in case.answer().items()}


def manifest() -> dict[str, Any]:
    """The manifest: see ``schema.json``."""
    known = {mutant.name: mutant.summary for mutant in (*CATALOGUE, *TIES)}
    known |= {mistake.name: mistake.summary for mistake in MISTAKES}
    return {
        "format": FORMAT,
        "flags": {
            name: {"note": flag.note, "catches": list(flag.catches)} for name, flag in FLAGS.items()
        },
        "bugs": {name: known[name] for flag in FLAGS.values() for name in flag.catches},
        "operations": [_operation(operation) for operation in OPERATIONS.values()],
    }


def _operation(operation: Operation) -> dict[str, Any]:
    return {
        "name": operation.name,
        "summary": operation.summary,
        "file": _file(operation),
        "inputs": dict(operation.inputs),
        "parameters": dict(operation.parameters),
        "outputs": dict(operation.outputs),
        "tolerance": dict(operation.tolerance),
        "cases": [_case(case) for case in cases_of(operation)],
    }


def _case(case: Case) -> dict[str, Any]:
    described: dict[str, Any] = {
        "id": case.id,
        "note": case.note,
        "flags": list(case.flags),
        "parameters": dict(case.parameters),
        "inputs": {name: _shape(values) for name, values in case.inputs.items()},
        "outputs": {name: _shape(values) for name, values in expected(case).items()},
    }
    if case.accepted:
        described["accepted"] = [list(other) for other in case.accepted]
    return described


def _shape(values: Array) -> list[int]:
    return list(values.shape)


def _file(operation: Operation) -> str:
    return f"{operation.name}.safetensors"


def suite_arrays(operation: Operation) -> dict[str, Array]:
    """All arrays of one operation by name; other accepted answers are ``<case>/<name>.or1`` …"""
    tensors = {}
    for case in cases_of(operation):
        for name, values in (*case.inputs.items(), *expected(case).items()):
            key = f"{case.id}/{name}"
            assert key not in tensors, f"{key} is both an input and an output"
            tensors[key] = stored(values)
        for number, other in enumerate(case.accepted, 1):
            for name, values in other.items():
                tensors[f"{case.id}/{name}.or{number}"] = stored(values)
    return tensors
