"""The state file of a run, ``training_state.safetensors``, from which the run can be resumed.

It holds the parameters and both moments of the optimiser exactly, and in its metadata the step, the
recipe and the history. The recipe's seed and the step determine the order of the examples, so no
state of a random generator is needed. Hashes of the data and of the model show whether the resumed
run is the same one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from gptoss_ref._files import replacing
from gptoss_ref.checkpoint.reader import SafetensorsFile
from gptoss_ref.errors import CheckpointError, GptOssError
from gptoss_ref.model import Model
from gptoss_ref.numerics import Array, widen
from gptoss_ref.training.adamw import Moments
from gptoss_ref.training.data import Example
from gptoss_ref.weights import MXFP4

STATE = "training_state.safetensors"
FORMAT = "gptoss-training-1"
_FREE = ("evaluate_every", "save_every")  # settings that do not affect the result


@dataclass(frozen=True)
class State:
    """A run after ``step`` steps.

    Attributes:
        arrays: the parameters, by name.
        moments: of the optimiser.
        step: number of steps done.
        history: a record for each step and each evaluation; see :class:`gptoss_ref.training.Run`.
    """

    arrays: dict[str, Array]
    moments: Moments
    step: int
    history: tuple[dict[str, Any], ...]


def identity(model: Model, examples: Sequence[Example], recipe: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a run as plain data; a resumed run must have the same."""
    data = hashlib.sha256()
    for example in examples:
        for array in (example.tokens, example.targets, example.mask):
            data.update(len(array).to_bytes(8, "little") + array.tobytes())
    weights = hashlib.sha256(json.dumps(model.config.to_json("hf"), sort_keys=True).encode())
    for name, weight in model.weights.named().items():
        # matrices are too large to hash; models that differ also differ in their vectors
        if not isinstance(weight, MXFP4) and weight.ndim == 1:
            weights.update(name.encode() + widen(weight, np.float64).tobytes())
    return {
        "recipe": {key: value for key, value in recipe.items() if key not in _FREE},
        "data": data.hexdigest(),
        "model": weights.hexdigest(),
        "backend": model.backend.name,
        "policy": model.policy.name,
    }


def write_state(folder: Path, state: State, about: dict[str, Any]) -> None:
    """Writes the file; the old one is replaced when the new one is complete.

    Raises:
        GptOssError: the file cannot be written.
    """
    groups = {"parameter": state.arrays, "m": state.moments.first, "v": state.moments.second}
    tensors = {
        f"{group}.{name}": np.ascontiguousarray(array)
        for group, arrays in groups.items()
        for name, array in arrays.items()
    }
    run = {"format": FORMAT, **about, "step": state.step, "history": state.history}
    with replacing(folder / STATE) as file:  # one key: the library does not keep their order
        file.write(save(tensors, {"run": json.dumps(run)}))


def read_state(folder: Path, arrays: dict[str, Array], about: dict[str, Any]) -> State:
    """The state of the run that ``about`` and the first step's ``arrays`` describe.

    Raises:
        GptOssError: the file is missing or damaged, or belongs to another run; says what differs.
    """
    path = folder / STATE
    if not path.is_file():
        raise GptOssError(f"{path}: no such file: expected the state of a run to resume")
    try:
        file = SafetensorsFile(path)
        run = json.loads(file.metadata["run"])
        if run["format"] != FORMAT:
            raise GptOssError(f"{path}: its format is {run['format']!r}: expected {FORMAT!r}")
        step, history = int(run["step"]), tuple(dict(entry) for entry in run["history"])
        if step < 0 or not all(isinstance(entry["step"], int) for entry in history):
            raise ValueError(f"step {step}")
    except CheckpointError as error:
        raise GptOssError(str(error)) from None
    except GptOssError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise GptOssError(f"{path}: the metadata is damaged: {error!r}") from None
    for key, now in json.loads(json.dumps(about)).items():
        if run.get(key) != now:
            raise GptOssError(
                f"{path}: {_difference(key, run.get(key), now)}: expected the same to resume a run"
            )
    read: dict[str, dict[str, Array]] = {"parameter": {}, "m": {}, "v": {}}
    expected = {f"{group}.{name}" for group in read for name in arrays}
    if set(file.tensors) != expected:
        name = min(set(file.tensors) ^ expected)
        raise GptOssError(f"{path}: tensor {name!r} is missing or unknown")
    for group, values in read.items():
        for name, like in arrays.items():
            array = file.array(f"{group}.{name}")
            if array.shape != like.shape or array.dtype != like.dtype:
                raise GptOssError(
                    f"{path}: tensor '{group}.{name}' has shape {array.shape} and dtype "
                    f"{array.dtype}: expected {like.shape} and {like.dtype}"
                )
            values[name] = array.copy()
    return State(read["parameter"], Moments(read["m"], read["v"], step), step, history)


def _difference(key: str, before: Any, now: Any) -> str:
    if key in ("data", "model"):
        return f"the {key} has changed since the run began"
    if isinstance(before, dict) and isinstance(now, dict):
        name = next(k for k in {**now, **before} if before.get(k) != now.get(k))
        return _difference(name, before.get(name), now.get(name))
    return f"{key} was {before!r} and is {now!r}"
