"""Bugs of loading: MXFP4's nibbles and scales, layouts, lost rows, exchanged tensors.

Those of MXFP4 act on one expert's matrix as it is stored, at the moment it is decoded, so that a
large model is never copied.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from gptoss_ref.config import ModelConfig
from gptoss_ref.numerics import Array
from gptoss_ref.verify.mutants.mutant import (
    Change,
    Mutant,
    Obstacle,
    Right,
    Variant,
    bug,
    not_mxfp4,
    replacing,
)
from gptoss_ref.verify.replay.ops import OpContext
from gptoss_ref.weights import MXFP4, MXFP4_BLOCK, BlockWeights, ExpertMatrix, ModelWeights

DECODED = "mlp.gate_up"
"""The tap point at which a wrongly decoded matrix shows first."""


# --- MXFP4 ---


@bug(
    "nibbles-swapped",
    op="expert_matrix",
    stage=DECODED,
    consequence="Neighbouring columns (2j, 2j + 1) of the experts' matrices are swapped.",
    obstacle=not_mxfp4,
)
def nibbles_swapped(right: Right, at: OpContext, matrix: ExpertMatrix) -> Array:
    """The high nibble of a byte is taken for the first of its two values."""
    if isinstance(matrix, MXFP4):
        swapped = (matrix.blocks >> 4) | (matrix.blocks << 4)
        matrix = dataclasses.replace(matrix, blocks=swapped.astype(np.uint8))
    values: Array = right(at, matrix)
    return values


@bug(
    "nibbles-split",
    op="expert_matrix",
    stage=DECODED,
    consequence="The 32 columns of every block are permuted.",
    reports=("kekzl/imp#567",),
    note="In files of ggml, which stores its blocks that way, it is right.",
    obstacle=not_mxfp4,
)
def nibbles_split(right: Right, at: OpContext, matrix: ExpertMatrix) -> Array:
    """Low nibbles are read as a block's first 16 values and high ones as its last 16."""
    values: Array = right(at, matrix)
    if not isinstance(matrix, MXFP4):
        return values
    half = MXFP4_BLOCK // 2
    pairs = values.reshape(*values.shape[:-1], -1, half, 2)  # (N, M/32, 16, 2)
    return pairs.swapaxes(-1, -2).reshape(values.shape)


@bug(
    "scale-bias-128",
    op="expert_matrix",
    stage=DECODED,
    consequence="All values of the experts' matrices are halved.",
    obstacle=not_mxfp4,
)
def scale_bias_128(right: Right, at: OpContext, matrix: ExpertMatrix) -> Array:
    """A scale byte s is worth 2^(s − 128)."""
    values: Array = right(at, matrix)
    return values / 2 if isinstance(matrix, MXFP4) else values


@bug(
    "scale-bias-126",
    op="expert_matrix",
    stage=DECODED,
    consequence="All values of the experts' matrices are doubled.",
    obstacle=not_mxfp4,
    note="The variants are other biases; 125 was one quantiser's own.",
    variants=lambda config, tokens: (
        Variant(f"2^(s − {bias})", replacing(expert_matrix=_scaled(127 - bias)))
        for bias in (125, 124, 129, 130)
    ),
)
def scale_bias_126(right: Right, at: OpContext, matrix: ExpertMatrix) -> Array:
    """A scale byte s is worth 2^(s − 126)."""
    return _scaled(1)(right, at, matrix)


def _scaled(exponent: int) -> Callable[..., Array]:
    """Decoding in which every value is too large by a power of two."""

    def decode(right: Right, at: OpContext, matrix: ExpertMatrix) -> Array:
        values: Array = right(at, matrix)
        return np.ldexp(values, exponent) if isinstance(matrix, MXFP4) else values

    return decode


def _no_scale(byte: int) -> Obstacle:
    """Obstacle: no scale has that byte."""

    def obstacle(config: ModelConfig, weights: ModelWeights) -> str | None:
        for block in weights.blocks:
            for matrix in (block.mlp.mlp1_weight, block.mlp.mlp2_weight):
                if isinstance(matrix, MXFP4) and np.any(matrix.scales == byte):
                    return None
        return not_mxfp4(config, weights) or f"no scale byte is {byte}"

    return obstacle


def _where_scale_is(byte: int, value: float) -> Callable[..., Array]:
    """Decoding in which all values under that scale byte become ``value`` times their sign."""

    def decode(right: Right, at: OpContext, matrix: ExpertMatrix) -> Array:
        values: Array = right(at, matrix)
        if not isinstance(matrix, MXFP4):
            return values
        with np.errstate(invalid="ignore"):  # 0 · inf is NaN, as it is in a product
            return np.where(_under(matrix, byte), np.sign(values) * value, values)

    return decode


def _under(matrix: MXFP4, byte: int) -> Array:
    """Which values (N, M) have that scale byte."""
    return np.repeat(matrix.scales == byte, MXFP4_BLOCK, axis=-1)


@bug(
    "scale-0",
    op="expert_matrix",
    stage=DECODED,
    consequence="Numbers of size 2⁻¹²⁸ become infinite; then everything is NaN.",
    reports=("vllm#46676", "triton-lang/triton#11624"),
    note="Adding the exponent to the bits of a bfloat16 borrows from its sign. The variant makes "
    "the scale infinite; a scale of zero would show only beside numbers of size 2⁻¹²⁷.",
    obstacle=_no_scale(0),
    variants=lambda config, tokens: (
        Variant("as infinity", replacing(expert_matrix=_where_scale_is(0, np.inf))),
    ),
)
def scale_0(right: Right, at: OpContext, matrix: ExpertMatrix) -> Array:
    """Under a scale byte of 0 the codes ±½ become ∓∞."""
    values: Array = right(at, matrix)
    if not isinstance(matrix, MXFP4):
        return values
    borrowed = _under(matrix, 0) & (np.abs(values) == 2.0**-128)
    return np.where(borrowed, np.copysign(np.inf, -values), values)


@bug(
    "scale-134",
    op="expert_matrix",
    stage=DECODED,
    consequence="Everything computed from a block of scale 128 is NaN.",
    reports=("sglang#25519",),
    note="The decoded scale was compared with 128; the byte should be compared with 255.",
    obstacle=_no_scale(134),
)
def scale_134(right: Right, at: OpContext, matrix: ExpertMatrix) -> Array:
    """A scale byte of 134, worth 2⁷, is taken for NaN."""
    return _where_scale_is(134, np.nan)(right, at, matrix)


@bug(
    "scale-255",
    op="expert_matrix",
    stage=DECODED,
    consequence="What should be NaN is 2¹²⁸ times a code: infinite in float32.",
    reports=("sglang#25519", "triton-lang/triton#11624"),
    note="OpenAI's loader and llama.cpp do the same; the MX specification says NaN.",
    obstacle=_no_scale(255),
)
def scale_255(right: Right, at: OpContext, matrix: ExpertMatrix) -> Array:
    """A scale byte of 255 is read as an exponent."""
    if isinstance(matrix, MXFP4):
        matrix = dataclasses.replace(matrix, scale_255="exponent")
    values: Array = right(at, matrix)
    return values


# --- layouts ---


@bug(
    "experts-transposed",
    op="expert_matrix",
    stage="mlp.expert_out",
    consequence="The experts' answers are noise of the right size.",
    reports=("unsloth-zoo#1114",),
    note="If D = F, as in the released models, this is a transpose, and all shapes still fit; "
    "otherwise it needs a loader that ignores shapes.",
)
def experts_transposed(right: Right, at: OpContext, matrix: ExpertMatrix) -> Array:
    """The memory of the experts' second matrix, (D, F), is read as (F, D)."""
    values: Array = right(at, matrix)
    if at.tap != "mlp.expert_out":
        return values
    outputs, inputs = values.shape
    return values.reshape(inputs, outputs).T


@bug(
    "shard-lost-rows",
    op="expert_matrix",
    stage=DECODED,
    consequence="The last gates and ups of every expert are only their biases: benchmarks lose "
    "some points, and texts look normal.",
    reports=("sglang#9433",),
    note="Modelled as the last 4 rows of the first matrix. The variants are other numbers of rows, "
    "and what is left over when 2 to 8 devices share F/32 blocks, biases and columns included.",
    variants=lambda config, tokens: (*_fewer_rows(config), *_lost_shards(config)),
)
def shard_lost_rows(right: Right, at: OpContext, matrix: ExpertMatrix) -> Array:
    """The last rows of the experts' first matrix never arrive and stay zero."""
    return _losing(4)(right, at, matrix)


def _losing(rows: int, columns: int = 0) -> Callable[..., Array]:
    """Loading that leaves the first matrix's last rows and the second's last columns zero."""

    def load(right: Right, at: OpContext, matrix: ExpertMatrix) -> Array:
        values: Array = right(at, matrix).copy()
        if at.tap == DECODED:
            values[len(values) - rows :] = 0
        else:
            values[:, values.shape[1] - columns :] = 0
        return values

    return load


def _fewer_rows(config: ModelConfig) -> list[Variant]:
    """Other numbers of rows, their biases kept."""
    return [
        Variant(f"the last {rows} rows", replacing(expert_matrix=_losing(rows)))
        for rows in (2, 6, 8, 16, 32, 64, 128)
        if rows < 2 * config.intermediate_size
    ]


def _lost_shards(config: ModelConfig) -> list[Variant]:
    """What is left over when devices share F/32 blocks evenly, with its biases and columns."""
    inner = config.intermediate_size
    found: dict[int, Variant] = {}
    for devices in range(2, 9):
        lost = inner // MXFP4_BLOCK % devices * MXFP4_BLOCK
        if 0 < lost < inner:
            found.setdefault(lost, Variant(f"the rest of {devices} shards", _cut(lost)))
    return list(found.values())


def _cut(lost: int) -> Change:
    """Experts without their last ``lost`` of F inner values."""

    def forget(right: Right, at: OpContext, block: BlockWeights) -> BlockWeights:
        block = right(at, block)
        bias = block.mlp.mlp1_bias.copy()  # (E, 2F)
        bias[:, bias.shape[1] - 2 * lost :] = 0
        return dataclasses.replace(block, mlp=dataclasses.replace(block.mlp, mlp1_bias=bias))

    return replacing(block_weights=forget, expert_matrix=_losing(2 * lost, lost))


@bug(
    "qkv-order",
    op="block_weights",
    stage="attn.k",
    consequence="Keys are used as values, and values as keys.",
    note="The variant is the order of other models' fused weights: the queries, key and value of "
    "one key head are together. It already shows in q.",
    variants=lambda config, tokens: (
        Variant("grouped by key head", replacing(block_weights=_grouped_by_key_head)),
    ),
)
def qkv_order(right: Right, at: OpContext, block: BlockWeights) -> BlockWeights:
    """Rows of the fused projection are read in the order q, v, k instead of q, k, v."""
    block = right(at, block)
    w = block.attn
    attn = dataclasses.replace(
        w, k_weight=w.v_weight, k_bias=w.v_bias, v_weight=w.k_weight, v_bias=w.k_bias
    )
    return dataclasses.replace(block, attn=attn)


def _grouped_by_key_head(right: Right, at: OpContext, block: BlockWeights) -> BlockWeights:
    """The fused rows q, k, v are read as G heads of q, one of k and one of v for each key head."""
    block = right(at, block)
    attn, config = block.attn, at.config
    parts: dict[str, Array] = {}
    for kind in ("weight", "bias"):
        fused = np.concatenate([getattr(attn, f"{name}_{kind}") for name in "qkv"])
        rest = fused.shape[1:]
        groups = fused.reshape(
            config.num_key_value_heads, config.group_size + 2, config.head_dim, *rest
        )  # (K, G + 2, C, …)
        cut = (groups[:, :-2], groups[:, -2], groups[:, -1])
        for name, rows in zip("qkv", cut, strict=True):
            parts[f"{name}_{kind}"] = rows.reshape(-1, *rest)
    return dataclasses.replace(block, attn=dataclasses.replace(attn, **parts))


@bug(
    "unembedding-tied",
    op="end_weights",
    stage="logits",
    consequence="Everything before the logits is right and every logit is wrong.",
    obstacle=lambda config, weights: (
        "embedding and unembedding are equal"
        if np.array_equal(weights.embedding, weights.unembedding)
        else None
    ),
)
def unembedding_tied(right: Right, at: OpContext, weights: ModelWeights) -> ModelWeights:
    """The embedding is also used as the unembedding, as in models that tie them."""
    weights = right(at, weights)
    return dataclasses.replace(weights, unembedding=weights.embedding)


LOADING: tuple[Mutant, ...] = (
    nibbles_swapped,
    nibbles_split,
    scale_bias_128,
    scale_bias_126,
    scale_0,
    scale_134,
    scale_255,
    experts_transposed,
    shard_lost_rows,
    qkv_order,
    unembedding_tied,
)
