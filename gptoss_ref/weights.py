"""Containers of the weights, as views of the checkpoint's bytes, and the router's result.

Nothing here computes.

Fields carry the names of the OpenAI checkpoint. Axis letters: D hidden size, H query heads,
K key/value heads, C head size, E experts, F expert intermediate size, V vocabulary.
A weight is bfloat16 bits (uint16), a float32 or float64 array, or, for experts, MXFP4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.numerics import Array

Matrix = NDArray[Any]
"""A matrix or vector of floats, or of bfloat16 bits (uint16)."""

MXFP4_BLOCK = 32
"""Values that share one scale byte."""


@dataclass(frozen=True)
class MXFP4:
    """Matrices (…, N, M) stored as MXFP4 along M, the input dimension.

    Attributes:
        blocks: uint8 (…, N, M/32, 16); byte j holds value 2j (low nibble) and 2j+1 (high).
        scales: uint8 (…, N, M/32); the scale of 32 values is 2^(byte − 127).
        name: tensor and file, for error messages.
        scale_255: what a scale byte of 255 means; see :func:`gptoss_ref.layers.mxfp4.decode`.
    """

    blocks: NDArray[np.uint8]
    scales: NDArray[np.uint8]
    name: str = "MXFP4 scales"
    scale_255: Literal["nan", "exponent", "error"] = "nan"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the decoded array, (…, N, M)."""
        *lead, groups = self.scales.shape
        return (*lead, groups * MXFP4_BLOCK)

    def __getitem__(self, index: Any) -> MXFP4:
        """One or some of the leading entries (experts, then rows); slices copy no bytes."""
        name = f"{self.name}[{index}]" if isinstance(index, int) else self.name
        return MXFP4(self.blocks[index], self.scales[index], name, self.scale_255)


ExpertMatrix = Matrix | MXFP4
"""The matrices of all experts of a block, dense or in MXFP4."""


@dataclass(frozen=True)
class AttentionWeights:
    """Weights of one attention layer."""

    norm_scale: Matrix  # (D,)
    q_weight: Matrix  # (H*C, D)
    q_bias: Matrix  # (H*C,)
    k_weight: Matrix  # (K*C, D)
    k_bias: Matrix  # (K*C,)
    v_weight: Matrix  # (K*C, D)
    v_bias: Matrix  # (K*C,)
    sinks: Matrix  # (H,)
    out_weight: Matrix  # (D, H*C)
    out_bias: Matrix  # (D,)


@dataclass(frozen=True)
class MLPWeights:
    """Weights of one mixture-of-experts layer."""

    norm_scale: Matrix  # (D,)
    gate_weight: Matrix  # (E, D)
    gate_bias: Matrix  # (E,)
    mlp1_weight: ExpertMatrix  # (E, 2F, D), gate and up rows interleaved
    mlp1_bias: Matrix  # (E, 2F)
    mlp2_weight: ExpertMatrix  # (E, D, F)
    mlp2_bias: Matrix  # (E, D)


@dataclass(frozen=True)
class BlockWeights:
    """Weights of one transformer block."""

    attn: AttentionWeights
    mlp: MLPWeights


@dataclass(frozen=True)
class ModelWeights:
    """All weights of a model."""

    embedding: Matrix  # (V, D)
    blocks: tuple[BlockWeights, ...]
    norm_scale: Matrix  # (D,)
    unembedding: Matrix  # (V, D)


class RouterOutput(NamedTuple):
    """What a router decided for T tokens, A of E experts each."""

    logits: Array  # (T, E)
    indices: NDArray[np.int64]  # (T, A), largest logit first
    weights: Array  # (T, A), each row sums to one
