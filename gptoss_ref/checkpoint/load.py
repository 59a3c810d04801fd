"""Load a checkpoint folder as ModelWeights: every tensor is checked, and mapped instead of read."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gptoss_ref._files import outside, read_object
from gptoss_ref.checkpoint.adapter import Adapter
from gptoss_ref.checkpoint.locate import locate
from gptoss_ref.checkpoint.names import Layout, Place, detect_layout, places
from gptoss_ref.checkpoint.peft import base_of, is_adapter, read_adapter
from gptoss_ref.checkpoint.shards import Shards
from gptoss_ref.config import ModelConfig
from gptoss_ref.errors import CheckpointError, ConfigError
from gptoss_ref.weights import (
    MXFP4,
    MXFP4_BLOCK,
    AttentionWeights,
    BlockWeights,
    Matrix,
    MLPWeights,
    ModelWeights,
)

_FLOATS = ("BF16", "F16", "F32", "F64")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint on disk, mapped.

    Attributes:
        config: from `config.json`.
        weights: views of the mapped files.
        layout: `openai`, `hf` (MXFP4 experts) or `hf-bfloat16` (dequantised experts).
        path: the folder that holds the tensors.
        root: the folder of the tokenizer and other companions: `path`, or for
            `REPOSITORY/original` the repository.
        nbytes: bytes of all tensors.
        generation: the object in `generation_config.json`, empty if there is none.
        shards: the tensors under their names in the files.
    """

    config: ModelConfig
    weights: ModelWeights
    layout: Layout
    path: Path
    root: Path
    nbytes: int
    generation: dict[str, Any] = field(repr=False)
    shards: Shards = field(repr=False)

    @property
    def experts(self) -> str:
        """How the expert matrices are stored: `mxfp4`, or `bfloat16` for dequantised ones."""
        return "bfloat16" if self.layout == "hf-bfloat16" else "mxfp4"

    def companion(self, name: str) -> Path | None:
        """A file that goes with the weights, from `path` or `root`; None if neither has it.

        Raises CheckpointError for a link to a file elsewhere; see `_files.outside`.
        """
        return _companion(self.path, self.root, name)


def _companion(folder: Path, root: Path, name: str) -> Path | None:
    for at in (folder, root):
        path = at / name
        if outside(path, at) and (reason := outside(path, root)):
            raise CheckpointError(f"{path}: {reason}")
        if path.is_file():
            return path
    return None


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Opens a checkpoint: `"tiny"`, a folder in any layout, or a Hub id in the local cache.

    Reads the headers and `config.json`; weights are mapped and read when used.

    Raises:
        ConfigError: `config.json` lacks a key or contradicts itself.
        CheckpointError: there is no such checkpoint, or its files, tensors, shapes or dtypes do
            not match the configuration.
    """
    folder, root = locate(path)
    if is_adapter(folder) and not (folder / "config.json").exists():
        raise CheckpointError(
            f"{path}: an adapter, not a checkpoint: gr.load applies it to the model that it was "
            "trained on, and gptoss-ref convert merges it"
        )
    config_path = _companion(folder, root, "config.json") or root / "config.json"
    config = ModelConfig.from_json(config_path)
    shards = Shards(folder)
    layout = detect_layout(set(shards))
    if layout is None:
        raise CheckpointError(
            f"{folder}: not gpt-oss: tensors such as {next(iter(shards), None)!r} have "
            "neither OpenAI's names (block.0. ...) nor Hugging Face's (model.layers.0. ...)"
        )
    _check_quantization(config_path, layout)
    _check_blocks(config, layout, config_path)
    _check_layers(config, shards, config_path)
    wanted = list(places(config, layout))
    _check_names(shards, wanted)
    for place in wanted:
        _check_tensor(shards, place, config_path)
    generation = _generation(_companion(folder, root, "generation_config.json"), config)
    return Checkpoint(
        config=_with_stop_tokens(config, generation),
        weights=_assemble(config, layout, {place.weight: place for place in wanted}, shards),
        layout=layout,
        path=folder,
        root=root,
        nbytes=shards.nbytes,
        generation=generation,
        shards=shards,
    )


def load_adapted(
    path: str | Path, adapter: str | Path | None = None
) -> tuple[Checkpoint, Adapter | None]:
    """Opens a checkpoint and its adapter, if there is one.

    Args:
        path: as for :func:`load_checkpoint`, or a folder with an adapter in PEFT's files, which
            name the checkpoint that it was trained on.
        adapter: such a folder, for the checkpoint ``path``.

    Raises:
        ConfigError, CheckpointError: as for :func:`load_checkpoint`; also if the adapter does not
            fit the checkpoint, or names a checkpoint that cannot be found.
    """
    if adapter is None and isinstance(path, str | Path) and is_adapter(Path(path)):
        adapter, path = path, base_of(Path(path))
        try:
            checkpoint = load_checkpoint(path)
        except CheckpointError as error:
            raise CheckpointError(
                f"{adapter}: an adapter for a model that cannot be loaded: {error}"
            ) from None
    else:
        checkpoint = load_checkpoint(path)
    if adapter is None:
        return checkpoint, None
    if not is_adapter(Path(adapter)):
        raise CheckpointError(f"{adapter}: expected a folder with PEFT's adapter_config.json")
    return checkpoint, read_adapter(Path(adapter), checkpoint.config)


def _check_quantization(config_path: Path, layout: Layout) -> None:
    """Raises ConfigError unless quantization_config, if present, describes the expert tensors."""
    quantization = read_object(config_path).get("quantization_config")
    if quantization is None:
        return
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    if method != "mxfp4":
        raise ConfigError(
            f"{config_path}: quantization_config.quant_method must be 'mxfp4', not {method!r}"
        )
    if layout == "hf-bfloat16":
        raise CheckpointError(
            f"{config_path}: quantization_config says mxfp4, but the expert tensors are "
            "dequantised (gate_up_proj, down_proj)"
        )


def _check_blocks(config: ModelConfig, layout: Layout, config_path: Path) -> None:
    if layout == "hf-bfloat16":
        return
    for name in ("hidden_size", "intermediate_size"):
        if getattr(config, name) % MXFP4_BLOCK:
            raise ConfigError(
                f"{config_path}: {name} ({getattr(config, name)}) must be a multiple of "
                f"{MXFP4_BLOCK} for MXFP4 experts"
            )


def _check_layers(config: ModelConfig, shards: Shards, config_path: Path) -> None:
    """Raises CheckpointError unless the files have num_hidden_layers layers."""
    parts = (name.removeprefix("model.").split(".") for name in shards)  # block.N. or layers.N.
    found = {int(part[1]) for part in parts if len(part) > 2 and _is_layer(part[1])}
    if len(found) != config.num_hidden_layers:
        raise CheckpointError(
            f"{shards.folder}: holds tensors of {len(found)} layers, but {config_path} has "
            f"num_hidden_layers {config.num_hidden_layers}"
        )


def _is_layer(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


def _check_names(shards: Shards, wanted: list[Place]) -> None:
    expected = {place.tensor: place for place in wanted}
    missing = [name for name in expected if name not in shards]
    unknown = [name for name in shards if name not in expected]
    if missing:
        near = difflib.get_close_matches(missing[0], unknown)
        hint = f"; the nearest unknown name is {near[0]!r}" if near else ""
        raise CheckpointError(
            f"{shards.folder}: the tensor {missing[0]!r} is missing{_others(missing)}{hint}"
        )
    if unknown:
        near = difflib.get_close_matches(unknown[0], expected)
        hint = f"; the nearest expected name is {near[0]!r}" if near else ""
        raise CheckpointError(
            f"{shards.path(unknown[0])}: unknown tensor {unknown[0]!r}{_others(unknown)}{hint}"
        )


def _others(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _check_tensor(shards: Shards, place: Place, config_path: Path) -> None:
    info = shards[place.tensor]
    if info.dtype not in (_FLOATS if place.kind == "float" else ("U8",)):
        expected = "BF16 (F16, F32 and F64 load too)" if place.kind == "float" else "U8"
        raise CheckpointError(
            f"{shards.path(place.tensor)}: tensor {place.tensor!r} is {info.dtype}; "
            f"expected {expected}"
        )
    if info.shape != place.shape:
        raise CheckpointError(
            f"{shards.path(place.tensor)}: tensor {place.tensor!r} has shape {info.shape}; "
            f"{config_path} requires ({', '.join(place.axes.split())}) = {place.shape}"
        )


def _generation(path: Path | None, config: ModelConfig) -> dict[str, Any]:
    """The object in generation_config.json, with checked stop tokens; empty without the file."""
    if path is None:
        return {}
    generation = read_object(path)
    eos = generation.get("eos_token_id")
    for token in eos if isinstance(eos, list) else [] if eos is None else [eos]:
        if type(token) is not int or not 0 <= token < config.vocab_size:
            raise ConfigError(
                f"{path}: eos_token_id must hold token ids from 0 to "
                f"{config.vocab_size - 1}, not {token!r}"
            )
    return generation


def _with_stop_tokens(config: ModelConfig, generation: dict[str, Any]) -> ModelConfig:
    """Take the stop tokens from generation_config.json: the OpenAI dialect has none."""
    eos = generation.get("eos_token_id")
    if config.eos_token_ids or eos is None:
        return config
    ids = tuple(eos) if isinstance(eos, list) else (eos,)
    return dataclasses.replace(config, eos_token_ids=ids)


def _assemble(
    config: ModelConfig, layout: Layout, where: dict[str, Place], shards: Shards
) -> ModelWeights:
    def view(weight: str) -> Matrix:
        place = where[weight]
        array = shards.array(place.tensor)
        if place.rows is not None:
            array = array[slice(*place.rows)]
        if array.dtype == np.float16:  # exact; the kernels have no float16 path
            array = array.astype(np.float32)
        return array.swapaxes(-2, -1) if place.transposed else array

    def experts(weight: str) -> MXFP4 | Matrix:
        if layout == "hf-bfloat16":
            return view(weight)
        blocks, scales = where[f"{weight}.blocks"], where[f"{weight}.scales"]
        name = f"{scales.tensor} ({shards.path(scales.tensor)})"
        return MXFP4(shards.array(blocks.tensor), shards.array(scales.tensor), name)

    def part(kind: Callable[..., Any], prefix: str) -> Any:
        """An AttentionWeights or MLPWeights; its fields are the last parts of the weight names."""
        names = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
        matrices = ("mlp1_weight", "mlp2_weight")
        return kind(**{n: (experts if n in matrices else view)(f"{prefix}.{n}") for n in names})

    return ModelWeights(
        embedding=view("embedding"),
        blocks=tuple(
            BlockWeights(
                attn=part(AttentionWeights, f"block.{n}.attn"),
                mlp=part(MLPWeights, f"block.{n}.mlp"),
            )
            for n in range(config.num_hidden_layers)
        ),
        norm_scale=view("norm_scale"),
        unembedding=view("unembedding"),
    )
