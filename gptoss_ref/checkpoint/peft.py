"""PEFT's files of a LoRA adapter: ``adapter_config.json`` and ``adapter_model.safetensors``.

A tensor's name is ``base_model.model.`` + the module's path in transformers + ``.lora_A.weight`` or
``.lora_B.weight``. A linear layer's factors are stored as they are: A (R, M), B (N, R).

Experts are no modules there but parameters (E, M, N) of one module, which PEFT reaches by
``target_parameters``. It stores the factors of all experts in two matrices: A (E·R, M), whose rows
are those of expert 0, then of expert 1, …; and B (N, R·E), in which the experts of one rank lie
side by side. If both parameters of the module have factors, those of ``gate_up_proj``, wrapped
first, are under ``experts.base_layer``, and those of ``down_proj`` under ``experts``.

Source: PEFT 0.21, ``peft/tuners/lora/layer.py`` (``ParamWrapper``), ``utils/save_and_load.py``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
from safetensors.numpy import save

from gptoss_ref._files import read_object, replacing
from gptoss_ref.checkpoint.adapter import Adapter, LowRank
from gptoss_ref.checkpoint.names import Place, places
from gptoss_ref.checkpoint.reader import SafetensorsFile
from gptoss_ref.config import ModelConfig
from gptoss_ref.errors import CheckpointError, ConfigError
from gptoss_ref.numerics import Array, widen

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(.+?)((?:\.base_layer)*)\.lora_(?:embedding_)?([AB])(?:\.weight)?")
# What an adapter may not ask for: the value that means "no", and what it would change.
_UNSUPPORTED = {
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "bias": ("none", None),
    "layer_replication": (None,),
    "fan_in_fan_out": (False, None),
    "trainable_token_indices": (None,),
    "alora_invocation_tokens": (None,),
    "use_qalora": (False, None),
}


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter."""
    return (folder / CONFIG).is_file()


def base_of(folder: Path) -> str:
    """What the adapter in ``folder`` was trained on: ``"tiny"``, a folder or a Hub id.

    Raises:
        CheckpointError: its configuration cannot be read, or does not say.
    """
    base = _settings(folder / CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise CheckpointError(
            f"{folder / CONFIG}: base_model_name_or_path is {base!r}: load the model it was "
            f"trained on with this adapter, gr.load(MODEL, adapter={str(folder)!r})"
        )
    return base


def read_adapter(folder: Path, config: ModelConfig) -> Adapter:
    """The adapter in ``folder``, checked against the model's configuration.

    Raises:
        CheckpointError: a file is missing or unreadable, a tensor is of an unknown module or of
            another shape, or the adapter needs more than low-rank factors and whole weights.
    """
    settings = _settings(folder / CONFIG)
    path = folder / TENSORS
    if not path.is_file():
        others = sorted(p.name for p in folder.glob("adapter_model.*"))
        hint = f"; it holds {others[0]}: save the adapter as safetensors" if others else ""
        raise CheckpointError(f"{folder}: holds {CONFIG} and no {TENSORS}{hint}")
    file = SafetensorsFile(path)
    by_tensor = {place.tensor: place for place in places(config, "hf-bfloat16")}
    modules = {_module(place): place for place in by_tensor.values()}
    found: dict[tuple[str, int], dict[str, Array]] = {}  # (module, depth) -> A and B
    whole: dict[str, Array] = {}
    for name in file.tensors:
        inner = name.removeprefix(_PREFIX)
        values = widen(file.array(name), np.float32)
        if not np.isfinite(values).all():
            raise CheckpointError(f"{path}: tensor {name!r} holds a NaN or an infinity")
        factor = _FACTOR.fullmatch(inner)
        if factor:
            key = factor[1], factor[2].count(".base_layer")
            found.setdefault(key, {})[factor[3]] = values
            continue
        place = by_tensor.get(re.sub(r"\.(base_layer|modules_to_save)\b", "", inner))
        if place is None:
            raise _unknown(path, name)
        if values.shape != place.shape:
            raise _misfit(path, name, values.shape, f"({place.axes})", place.shape)
        whole[place.weight] = values.swapaxes(-2, -1) if place.transposed else values
    factors: dict[str, LowRank] = {}
    swapped = False
    for (module, depth), pair in sorted(found.items(), key=lambda item: (item[0][0], -item[0][1])):
        name = f"{_PREFIX}{module}{'.base_layer' * depth}.lora_A.weight"
        if set(pair) != {"A", "B"}:
            raise CheckpointError(
                f"{path}: of {module!r} there is lora_{''.join(pair)} alone: expected both lora_A "
                "and lora_B"
            )
        place = _place(module, depth, found, modules, settings)
        if place is None:
            raise _unknown(path, name)
        rank, (a, b), swapped = _factors(path, name, pair, place, swapped)
        stated = _pattern(settings.get("rank_pattern"), module, place, settings.get("r", rank))
        if rank != stated:
            raise CheckpointError(
                f"{path}: the factors of {module!r} have rank {rank}; {CONFIG} says r = {stated:g}"
            )
        alpha = _pattern(settings.get("alpha_pattern"), module, place, settings["lora_alpha"])
        scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
        factors[place.weight] = LowRank(a, b, scale)
    if not factors and not whole:
        raise CheckpointError(f"{path}: holds no tensors")
    return Adapter(
        factors,
        whole,
        float(settings["lora_alpha"]),
        bool(settings.get("use_rslora")),
        settings.get("base_model_name_or_path") or "",
    )


def _settings(path: Path) -> dict[str, Any]:
    """adapter_config.json, refused if it asks for something that is not computed here."""
    try:
        settings = read_object(path)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    if settings.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{path}: peft_type must be 'LORA', not {settings.get('peft_type')!r}"
        )
    for key, allowed in _UNSUPPORTED.items():
        if settings.get(key) not in allowed:
            raise CheckpointError(f"{path}: {key} must be {allowed[0]!r}, not {settings[key]!r}")
    start = settings.get("init_lora_weights", True)
    if start not in (True, False, "gaussian", "eva", "orthogonal"):  # these leave the base alone
        raise CheckpointError(
            f"{path}: init_lora_weights {start!r} changes the base weights, which the file does "
            "not hold; save it in PEFT with path_initial_model_for_weight_conversion"
        )
    alpha = settings.setdefault("lora_alpha", 8)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise CheckpointError(f"{path}: lora_alpha must be a number, not {alpha!r}")
    targets = settings.get("target_parameters")
    if not isinstance(targets, list | NoneType) or not all(
        isinstance(t, str) for t in targets or ()
    ):
        raise CheckpointError(f"{path}: target_parameters must be a list of names, not {targets!r}")
    rank = settings.get("r", 1)
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise CheckpointError(f"{path}: r must be an integer of 1 or more, not {rank!r}")
    for key in ("alpha_pattern", "rank_pattern"):
        patterns = settings.get(key)
        if not isinstance(patterns, dict | NoneType):
            raise CheckpointError(f"{path}: {key} must be an object, not {patterns!r}")
        for pattern, value in (patterns or {}).items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise CheckpointError(f"{path}: {key} {pattern!r}: {error}") from None
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise CheckpointError(f"{path}: {key} {pattern!r} must be a number, not {value!r}")
    return settings


def _module(place: Place) -> str:
    """``model.layers.0.self_attn.q_proj``, or the parameter's path for experts."""
    return place.tensor.removesuffix(".weight")


def _place(
    module: str,
    depth: int,
    found: Mapping[tuple[str, int], Any],
    modules: Mapping[str, Place],
    settings: Mapping[str, Any],
) -> Place | None:
    """Which weight the factors of a module are of; None if of none."""
    if not module.endswith(".mlp.experts"):
        place = modules.get(module)
        matrix = place is not None and len(place.shape) == 2 and not module.endswith("_bias")
        return place if matrix and depth == 0 else None
    if depth > 1:
        return None
    gate_up = f".{module}.gate_up_proj"
    alone = (module, 1) not in found
    targets = settings.get("target_parameters") or ()
    first = any(gate_up.endswith(f".{name}") for name in targets) if alone else depth == 1
    return modules.get(f"{module}.{'gate_up_proj' if first else 'down_proj'}")


def _factors(
    path: Path, name: str, pair: Mapping[str, Array], place: Place, swapped: bool
) -> tuple[int, tuple[Array, Array], bool]:
    """(rank, (A, B), whether the file has inputs and outputs of experts the other way round)."""
    a, b = pair["A"], pair["B"]
    if a.ndim != 2 or b.ndim != 2:
        raise _misfit(path, name, a.shape, "two axes", "(R, M)")
    if "embed_tokens" in name:  # stored as A (R, V), B (D, R) of the transposed table
        a, b = b.T, a.T
    if len(place.shape) == 2:
        outputs, inputs = place.shape
        if (a.shape[1], b.shape) != (inputs, (outputs, a.shape[0])):
            raise _misfit(
                path, name, (a.shape, b.shape), "A, B", f"((R, {inputs}), ({outputs}, R))"
            )
        return len(a), (a, b), swapped
    experts, inputs, outputs = place.shape
    width, height = a.shape[1], b.shape[0]
    if inputs != outputs:  # if they are equal it is as for the others of this file
        swapped = (width, height) == (outputs, inputs)
    expected = (outputs, inputs) if swapped else (inputs, outputs)
    if (width, height) != expected or a.shape[0] != b.shape[1] or a.shape[0] % experts:
        wanted = f"(({experts}·R, {inputs}), ({outputs}, R·{experts}))"
        raise _misfit(path, name, (a.shape, b.shape), "A, B", wanted)
    rank = a.shape[0] // experts
    a = a.reshape(experts, rank, width)
    b = b.reshape(height, rank, experts).transpose(2, 0, 1)  # (E, N, R)
    if swapped:
        a, b = b.transpose(0, 2, 1), a.transpose(0, 2, 1)
    return rank, (np.ascontiguousarray(a), np.ascontiguousarray(b)), swapped


def _pattern(patterns: Any, module: str, place: Place, default: float) -> float:
    """The value of the first pattern that matches the module's path from some dot on."""
    for path in (module, place.tensor):
        for pattern, value in (patterns or {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", path):
                return float(value)
    return float(default)


def _unknown(path: Path, name: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: tensor {name!r} belongs to no matrix of gpt-oss: expected factors of q_proj, "
        "k_proj, v_proj, o_proj, router, experts, lm_head or embed_tokens"
    )


def _misfit(path: Path, name: str, shape: Any, what: str, expected: Any) -> CheckpointError:
    return CheckpointError(
        f"{path}: tensor {name!r}: {what} have shape {shape}; the model calls for {expected}"
    )


def write_adapter(folder: Path, adapter: Adapter, config: ModelConfig) -> None:
    """Writes both files into ``folder``, each whole or not at all; the configuration first.

    Raises:
        CheckpointError: they cannot be written.
    """
    at = {place.weight: place for place in places(config, "hf-bfloat16")}
    tensors: dict[str, Array] = {}
    nested = {n.rpartition(".")[0] for n in adapter.factors if n.endswith("mlp2_weight")}
    for weight, low_rank in adapter.factors.items():
        place, a, b = at[weight], low_rank.a, low_rank.b
        module, kind = _module(place), "lora_{}.weight"
        if a.ndim == 3:
            module = module.rpartition(".")[0]
            if weight.endswith("mlp1_weight") and weight.rpartition(".")[0] in nested:
                module += ".base_layer"
            a = a.reshape(-1, a.shape[-1])  # (E·R, M)
            b = b.transpose(1, 2, 0).reshape(b.shape[1], -1)  # (N, R·E)
        elif weight == "embedding":
            a, b, kind = b.T, a.T, "lora_embedding_{}"
        for letter, values in (("A", a), ("B", b)):
            tensors[f"{_PREFIX}{module}.{kind.format(letter)}"] = values
    for weight, values in adapter.whole.items():
        place = at[weight]
        tensor = place.tensor
        if weight in adapter.factors:  # as PEFT has lm_head and embed_tokens, if they have factors
            tensor = f"{_module(place)}.base_layer.weight"
        tensors[_PREFIX + tensor] = values.swapaxes(-2, -1) if place.transposed else values
    text = json.dumps(_config(adapter, at, config), indent=2) + "\n"
    stored = {name: np.ascontiguousarray(x, np.float32) for name, x in tensors.items()}
    for name, data in ((CONFIG, text.encode()), (TENSORS, save(stored, {"format": "pt"}))):
        with replacing(folder / name, CheckpointError) as file:
            file.write(data)


def _config(adapter: Adapter, at: Mapping[str, Place], config: ModelConfig) -> dict[str, Any]:
    """adapter_config.json as PEFT writes it; what is not given there has PEFT's default."""
    modules: dict[str, list[str]] = {}
    parameters: dict[str, list[str]] = {}
    for weight, low_rank in adapter.factors.items():
        tensor = at[weight].tensor
        router = weight.endswith("gate_weight")
        experts = low_rank.a.ndim == 3
        path = tensor if experts or router else _module(at[weight])
        short = re.sub(r"^model\.layers\.\d+\.(self_attn\.)?", "", path)
        (parameters if experts or router else modules).setdefault(short, []).append(path)

    def targets(found: dict[str, list[str]]) -> list[str]:
        """One short name for what is adapted in all layers, else each path."""
        every = config.num_hidden_layers
        return sorted(
            name for short, paths in found.items() for name in (
                [short] if len(paths) == every else paths
            )
        )  # fmt: skip

    whole = sorted({_module(at[name]) for name in adapter.whole if name not in adapter.factors})
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base,
        "r": max((low_rank.rank for low_rank in adapter.factors.values()), default=1),
        "lora_alpha": adapter.alpha,
        "use_rslora": adapter.rslora,
        "target_modules": targets(modules),
        "target_parameters": targets(parameters) or None,
        "modules_to_save": whole or None,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_dora": False,
        "inference_mode": True,
    }
