"""Convert a checkpoint to another layout, tensor by tensor in bounded memory; merge adapters."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gptoss_ref._files import read_object
from gptoss_ref.checkpoint.load import Checkpoint, load_adapted
from gptoss_ref.checkpoint.locate import TINY
from gptoss_ref.checkpoint.made import MADE
from gptoss_ref.checkpoint.merge import Merged, MergedExperts, Merger
from gptoss_ref.checkpoint.names import Layout, Place, places
from gptoss_ref.checkpoint.writer import Output, Progress, new_folder, write_json, write_shards
from gptoss_ref.errors import CheckpointError, ConfigError, GptOssError
from gptoss_ref.layers import mxfp4
from gptoss_ref.numerics import float_to_bfloat16, widen
from gptoss_ref.weights import MXFP4_BLOCK

_COPY_VALUES = 1 << 23  # values a plain copy reads at a time
_TILE_VALUES = 1 << 20  # values decoded or encoded at a time; encoding takes ~50 B of each
_FINITE_SCALE = 252  # with scale bytes up to this, 6 * 2^(s - 127) is below 2^128
# Files that belong to the model in every layout.
_COMPANIONS = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "chat_template.jinja", "LICENSE", "USAGE_POLICY",
)  # fmt: skip
# Source config keys that the written ones replace.
_REPLACED = {"rope_parameters", "rope_scaling", "quantization_config", "torch_dtype", "dtype"}
# Source config keys by which other libraries choose code to load (CVE-2026-4372 in transformers);
# keys that begin with "_" may do so too. The result has none of them.
_CODE = {"auto_map", "custom_pipelines", "attn_implementation", "experts_implementation"}


@dataclass(frozen=True)
class Conversion:
    """The result of `convert`.

    `notes` says what the new layout cannot hold; `merged` holds the rounding error of each weight
    that an adapter changed.
    """

    path: str
    layout: str
    experts: str
    nbytes: int
    files: tuple[str, ...]
    notes: tuple[str, ...]
    merged: tuple[Merged, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The fields, for ``json.dumps``."""
        return asdict(self)

    def __str__(self) -> str:
        files = f"{len(self.files)} file{'s' if len(self.files) > 1 else ''}"
        line = f"{self.path}: {self.layout} layout, {self.experts} experts, {self.nbytes} bytes"
        notes = (f"note: {note}" for note in self.notes)
        return "\n".join([f"{line}, {files}", *self._merged_lines(), *notes])

    def _merged_lines(self) -> Iterator[str]:
        """One line for each way in which merged weights were stored."""
        for stored in sorted({merged.stored for merged in self.merged}):
            of = [merged for merged in self.merged if merged.stored == stored]
            worst = max(of, key=lambda merged: merged.lost)
            yield (
                f"merged into {stored}: {len(of)} weights; rounding error at most "
                f"{max(merged.error for merged in of):.2%} of a weight and "
                f"{worst.lost:.1%} of the adapter's change ({worst.weight})"
            )


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    adapter: str | Path | None = None,
    layout: Literal["hf", "openai"] | None = None,
    experts: Literal["mxfp4", "bfloat16"] | None = None,
    rule: mxfp4.ScaleRule = "floor",
    max_shard_bytes: int = 5_000_000_000,
    progress: Progress | None = None,
) -> Conversion:
    """Writes a checkpoint in another layout, or with its experts in another format.

    Tensors that both formats store alike are copied byte for byte. MXFP4 becomes bfloat16 exactly;
    bfloat16 becomes MXFP4 by `layers.mxfp4.encode`. MXFP4 to bfloat16 and back gives the same
    values under every rule except `ceil`, though a block may get another scale and other codes.
    Tokenizer and generation files are copied.

    An adapter is added to its weights in float64, and the sum is rounded once to the target's
    format. `Conversion.merged` has the errors.

    Args:
        src: as for `load_checkpoint`, or a folder with an adapter, which names its checkpoint.
        adapter: a folder with an adapter in PEFT's files, for the checkpoint `src`.
        dst: a folder that does not exist yet. It is created complete, or not at all.
        layout: `hf` or `openai`; None: the source's.
        experts: `mxfp4` or `bfloat16` (Hugging Face only); None: the source's.
        rule: how encoding chooses MXFP4 scales; see `layers.mxfp4.encode`.
        max_shard_bytes: the largest size of the tensors in one file.
        progress: called with (bytes done, total bytes, tensor) during the work.

    Raises:
        ConfigError: the target cannot express the configuration, or the two options conflict.
        CheckpointError: the source or the adapter is bad, the target exists or cannot be written,
            or a value has no counterpart: a NaN or infinity to MXFP4, a scale byte of 255 or a
            value of 2^128 and more to bfloat16.
    """
    if dst == "":
        raise CheckpointError("the path of the result is empty; expected the path of a new folder")
    name = Path(dst).name
    if name in (TINY, *MADE):
        raise CheckpointError(
            f"{dst}: {name!r} names a bundled model; expected another name for the new folder"
        )
    source, learnt = load_adapted(src, adapter)
    merger = None if learnt is None else Merger(learnt, source.weights)
    target, experts = _target(source, layout, experts)
    if max_shard_bytes < 1:
        raise GptOssError(f"max_shard_bytes must be positive, not {max_shard_bytes}")
    dst = Path(dst)
    config, notes = _config(source, target, experts)
    outputs = list(_outputs(source, target, rule, merger))
    nbytes = sum(output.nbytes for output in outputs)
    with new_folder(dst) as folder:
        free = shutil.disk_usage(folder).free
        if free < nbytes:
            raise CheckpointError(f"{dst}: needs {nbytes} bytes, the disk has {free} free")
        files = write_shards(folder, outputs, max_shard_bytes, progress)
        write_json(folder / "config.json", config)
        notes += _copy_companions(source, target, folder)
    return Conversion(
        path=str(dst),
        layout="openai" if target == "openai" else "hf",
        experts=experts,
        nbytes=nbytes,
        files=tuple(files),
        notes=tuple(notes),
        merged=() if merger is None else merger.errors,
    )


def _target(
    source: Checkpoint, layout: str | None, experts: str | None
) -> tuple[Layout, Literal["mxfp4", "bfloat16"]]:
    layout = layout or ("openai" if source.layout == "openai" else "hf")
    if layout not in ("hf", "openai"):
        raise ConfigError(f"layout must be 'hf' or 'openai', not {layout!r}")
    experts = experts or ("mxfp4" if layout == "openai" else source.experts)
    if experts == "mxfp4":
        for name in ("hidden_size", "intermediate_size"):
            if getattr(source.config, name) % MXFP4_BLOCK:
                raise ConfigError(
                    f"{name} ({getattr(source.config, name)}) must be a multiple of "
                    f"{MXFP4_BLOCK} for MXFP4 experts"
                )
        return ("openai" if layout == "openai" else "hf"), "mxfp4"
    if experts != "bfloat16":
        raise ConfigError(f"experts must be 'mxfp4' or 'bfloat16', not {experts!r}")
    if layout == "openai":
        raise ConfigError("the OpenAI layout stores experts as MXFP4 only, not as bfloat16")
    return "hf-bfloat16", "bfloat16"


def _config(source: Checkpoint, target: Layout, experts: Any) -> tuple[dict[str, Any], list[str]]:
    """The target's config.json, and notes about it.

    Unknown keys of a Hugging Face source are kept, except those that choose code to load.
    """
    if target == "openai":
        return source.config.to_json("openai"), []
    written = source.config.to_json("hf", experts)
    path = source.companion("config.json")
    raw = read_object(path) if path is not None else {}
    if "model_type" not in raw:  # the OpenAI dialect, which the written keys cover
        return written, []
    code = [key for key in raw if key in _CODE or key.startswith("_")]
    raw = {key: value for key, value in raw.items() if key not in {*_REPLACED, *code}}
    notes = [f"config.json: left out {key!r}: it may choose code to load" for key in code]
    return {**raw, **written}, notes


def _copy_companions(source: Checkpoint, target: Layout, folder: Path) -> list[str]:
    """Copies the tokenizer and similar files; returns notes on lost configuration values."""
    for name in _COMPANIONS:
        path = source.companion(name)
        if path is not None:
            shutil.copyfile(path, folder / name)
    config = source.config
    if target != "openai":
        return []
    if config.eos_token_ids and not (folder / "generation_config.json").exists():
        # The OpenAI config names no stop tokens.
        stop = {"eos_token_id": list(config.eos_token_ids), "pad_token_id": config.pad_token_id}
        write_json(folder / "generation_config.json", stop)
    implied = round(config.initial_context_length * max(config.rope_scaling_factor, 1.0))
    if config.max_position_embeddings != implied:
        return [
            f"the OpenAI config has no max_position_embeddings: {config.max_position_embeddings} "
            f"becomes initial_context_length * rope_scaling_factor = {implied}"
        ]
    return []


def _outputs(
    source: Checkpoint, target: Layout, rule: mxfp4.ScaleRule, merger: Merger | None
) -> Iterator[Output]:
    """The target's tensors in the order of the model, each with a function that yields its data."""
    have = {place.weight: place for place in places(source.config, source.layout)}
    grouped: dict[str, list[Place]] = {}  # q, k and v may share a tensor
    for place in places(source.config, target):
        grouped.setdefault(place.tensor, []).append(place)
    encoders: dict[str, _Encoder] = {}
    mergers: dict[str, MergedExperts] = {}
    for tensor, parts in grouped.items():
        weight, shape = parts[0].weight, parts[0].shape
        matrix, _, part = weight.rpartition(".")
        if merger is not None and any(place.weight in merger for place in parts):
            yield merger.output(source, tensor, parts, have)
        elif merger is not None and matrix in merger:
            merging = mergers.setdefault(matrix, MergedExperts(merger, matrix, rule))
            yield Output(tensor, "U8", shape, getattr(merging, part))
        elif all(place.weight in have for place in parts):
            yield _copied(source, tensor, shape, [have[place.weight] for place in parts])
        elif part in ("blocks", "scales"):
            encoder = encoders.setdefault(matrix, _Encoder(source, have[matrix], rule))
            yield Output(tensor, "U8", shape, getattr(encoder, part))
        else:
            pair = have[f"{weight}.blocks"], have[f"{weight}.scales"]
            yield Output(tensor, "BF16", shape, _Decoder(source, *pair).chunks)


def _copied(source: Checkpoint, tensor: str, shape: tuple[int, ...], parts: list[Place]) -> Output:
    """A tensor copied from one source tensor, from rows of one, or from several joined."""
    dtype = source.shards.common_dtype([place.tensor for place in parts], tensor)

    def chunks() -> Iterator[NDArray[Any]]:
        for place in parts:
            array = source.shards.array(place.tensor)
            rows = array if place.rows is None else array[slice(*place.rows)]
            flat = rows.reshape(-1)
            for start in range(0, flat.size, _COPY_VALUES):
                source.shards.check_sizes()
                yield flat[start : start + _COPY_VALUES]
                source.shards.release()

    return Output(tensor, dtype, shape, chunks)


def _tiles(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, _TILE_VALUES // columns)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


@functools.cache
def _bfloat16_pairs() -> NDArray[np.uint32]:
    """The two bfloat16 values of every byte under every scale, at scale * 256 + byte."""
    every = np.arange(256, dtype=np.uint8)
    blocks = np.broadcast_to(every.reshape(1, 16, 16), (256, 16, 16))
    scales = np.broadcast_to(every[:, None], (256, 16))
    return float_to_bfloat16(mxfp4.decode(blocks, scales)).view(np.uint32).reshape(-1)


class _Decoder:
    """MXFP4 (E, N, M) to bfloat16 (E, M, N): exact, and transposed as Hugging Face stores it."""

    def __init__(self, source: Checkpoint, blocks: Place, scales: Place) -> None:
        self.source, self.blocks, self.scales = source, blocks, scales

    def chunks(self) -> Iterator[NDArray[Any]]:
        shards = self.source.shards
        blocks, scales = shards.array(self.blocks.tensor), shards.array(self.scales.tensor)
        experts, rows, groups = scales.shape
        for e in range(experts):
            dense = np.empty((rows, groups * MXFP4_BLOCK), np.uint16)
            for tile in _tiles(*dense.shape):
                shards.check_sizes()
                if scales[e, tile].max() > _FINITE_SCALE:
                    self._check(blocks[e, tile], scales[e, tile], e)
                pair = scales[e, tile].astype(np.uint16)[..., None] << 8 | blocks[e, tile]
                dense[tile] = _bfloat16_pairs()[pair].view(np.uint16).reshape(dense[tile].shape)
            yield np.ascontiguousarray(dense.T)
            shards.release()

    def _check(self, blocks: NDArray[np.uint8], scales: NDArray[np.uint8], e: int) -> None:
        name = f"{self.scales.tensor}[{e}] ({self.source.shards.path(self.scales.tensor)})"
        if np.isinf(mxfp4.decode(blocks, scales, scale_255="error", name=name)).any():
            raise CheckpointError(
                f"{name}: holds values of 2^128 or more, which bfloat16 cannot represent; expected "
                "scale times code below 2^128"
            )


class _Encoder:
    """Dequantised (E, M, N) to MXFP4 blocks (E, N, M/32, 16) and scales (E, N, M/32).

    `blocks` runs first and leaves the scales, which are small, in memory for `scales`.
    """

    def __init__(self, source: Checkpoint, place: Place, rule: mxfp4.ScaleRule) -> None:
        self.source, self.place, self.rule = source, place, rule
        self._scales: list[NDArray[np.uint8]] = []

    def blocks(self) -> Iterator[NDArray[Any]]:
        array = self.source.shards.array(self.place.tensor)  # (E, M, N)
        self._scales = []
        for e, expert in enumerate(array):
            self.source.shards.check_sizes()
            dense = np.ascontiguousarray(expert.T)  # (N, M)
            for tile in _tiles(*dense.shape):
                blocks, scales = self._encode(widen(dense[tile], np.float64), e)
                self._scales.append(scales)
                yield blocks
            self.source.shards.release()

    def scales(self) -> Iterator[NDArray[Any]]:
        yield from self._scales
        self._scales = []

    def _encode(self, values: NDArray[Any], e: int) -> Any:
        if not np.isfinite(values).all():
            where = self.source.shards.path(self.place.tensor)
            raise CheckpointError(
                f"{where}: {self.place.tensor}[{e}] holds a NaN or an infinity, which MXFP4 "
                "cannot; expected finite values"
            )
        return mxfp4.encode(values, rule=self.rule)
