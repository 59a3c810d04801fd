"""Containers for weights, as views of the checkpoint's bytes, and for results with several arrays.

Fields carry the names of the OpenAI checkpoint. Axis letters: D hidden size, H query heads,
K key/value heads, C head size, E experts, F expert intermediate size, V vocabulary.
A weight is bfloat16 bits (uint16), a float32 or float64 array, or, for experts, MXFP4.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gptoss_ref import _files
from gptoss_ref.errors import GptOssError
from gptoss_ref.numerics import Array

Matrix = NDArray[Any]
"""A matrix or vector of floats, or of bfloat16 bits (uint16)."""

_STORED = (np.float16, np.float32, np.float64, np.uint16)

MXFP4_BLOCK = 32
"""Values that share one scale byte."""


@dataclass(frozen=True)
class MXFP4:
    """Matrices (…, N, M) stored as MXFP4 along M, the input dimension.

    Attributes:
        blocks: uint8 (…, N, M/32, 16); byte j holds value 2j (low nibble) and 2j+1 (high).
        scales: uint8 (…, N, M/32); the scale of 32 values is 2^(byte − 127).
        name: tensor and file, for error messages.
        scale_255: the meaning of a scale byte of 255; see :func:`gptoss_ref.layers.mxfp4.decode`.
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
        """Index the leading axes (experts, then rows); slices copy no bytes."""
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
    """All weights of a model.

    Each matrix has a name: its fields, joined by dots, with ``block.n`` for ``blocks[n]``. To
    replace one matrix of a model::

        weights = model.weights.replaced({"block.3.attn.sinks": np.full(64, -20.0)})
        gr.Model(model.config, weights, checkpoint=model.checkpoint)
    """

    embedding: Matrix  # (V, D)
    blocks: tuple[BlockWeights, ...]
    norm_scale: Matrix  # (D,)
    unembedding: Matrix  # (V, D)

    def named(self) -> dict[str, Any]:
        """All matrices by name: ``"embedding"``, ``"block.0.attn.norm_scale"`` and so on."""
        ends = {"norm_scale": self.norm_scale, "unembedding": self.unembedding}
        inner = {
            f"block.{n}.{part}.{field.name}": getattr(getattr(block, part), field.name)
            for n, block in enumerate(self.blocks)
            for part in ("attn", "mlp")
            for field in fields(getattr(block, part))
        }
        return {"embedding": self.embedding, **inner, **ends}

    def replaced(self, matrices: Mapping[str, ExpertMatrix]) -> ModelWeights:
        """A copy of these weights with some matrices replaced.

        Args:
            matrices: new matrices by the names of :meth:`named`, with the shapes of the old ones:
                float16, float32 or float64 values, bfloat16 bits (uint16), or MXFP4 for experts.

        Raises:
            GptOssError: an unknown name, a wrong shape, or an unsupported dtype.
        """
        held = self.named()
        for name, matrix in matrices.items():
            if name not in held:
                near = difflib.get_close_matches(name, held, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise GptOssError(f"the model has no weight {name!r}{hint}")
            if matrix.shape != held[name].shape:
                raise GptOssError(f"{name} has shape {matrix.shape}: expected {held[name].shape}")
            if not isinstance(matrix, MXFP4) and matrix.dtype not in _STORED:
                raise GptOssError(
                    f"{name} has dtype {matrix.dtype}: expected float16, float32 or float64, or "
                    f"uint16 for bfloat16 bits"
                )
        new = {**held, **matrices}

        def part(n: int, kind: str, old: Any) -> Any:
            names = [field.name for field in fields(old)]
            return replace(old, **{name: new[f"block.{n}.{kind}.{name}"] for name in names})

        return ModelWeights(
            embedding=new["embedding"],
            blocks=tuple(
                BlockWeights(part(n, "attn", block.attn), part(n, "mlp", block.mlp))
                for n, block in enumerate(self.blocks)
            ),
            norm_scale=new["norm_scale"],
            unembedding=new["unembedding"],
        )


def with_scale_255(
    weights: ModelWeights, scale_255: Literal["nan", "exponent", "error"]
) -> ModelWeights:
    """The same weights, with ``scale_255`` set on every MXFP4 matrix."""

    def set_on(matrix: ExpertMatrix) -> ExpertMatrix:
        if isinstance(matrix, MXFP4):
            return replace(matrix, scale_255=scale_255)
        return matrix

    blocks = tuple(
        replace(
            block,
            mlp=replace(
                block.mlp,
                mlp1_weight=set_on(block.mlp.mlp1_weight),
                mlp2_weight=set_on(block.mlp.mlp2_weight),
            ),
        )
        for block in weights.blocks
    )
    return replace(weights, blocks=blocks)


def release(weights: ModelWeights | BlockWeights) -> None:
    """Let the system drop the pages of mapped weights; pages that are used again are read again."""
    _files.release(_arrays(weights))


def _arrays(part: Any) -> Iterator[Array]:
    """Every array of a container of weights, at any depth."""
    if isinstance(part, np.ndarray):
        yield part
    elif isinstance(part, tuple):
        for item in part:
            yield from _arrays(item)
    elif is_dataclass(part):
        for field in fields(part):
            yield from _arrays(getattr(part, field.name))


class RouterOutput(NamedTuple):
    """The router's choice of A of E experts for each of T tokens."""

    logits: Array  # (T, E)
    indices: NDArray[np.int64]  # (T, A), largest logit first
    weights: Array  # (T, A), each row sums to one


class LinearGradients(NamedTuple):
    """Gradients of a linear layer; those of frozen weights are None."""

    d_x: Array  # (T, M)
    d_weight: Array | None  # (N, M)
    d_bias: Array | None  # (N,)


class RMSNormGradients(NamedTuple):
    """Gradients of a norm."""

    d_x: Array  # (T, D)
    d_scale: Array  # (D,)


class AttentionGradients(NamedTuple):
    """Gradients of attention."""

    d_q: Array  # (T, H, C)
    d_k: Array  # (S, K, C)
    d_v: Array  # (S, K, C)
    d_sinks: Array  # (H,)


class RouterGradients(NamedTuple):
    """Gradients of a router; those of frozen weights are None."""

    d_logits: Array  # (T, E)
    d_x: Array  # (T, D)
    d_weight: Array | None  # (E, D)
    d_bias: Array | None  # (E,)


class ExpertGradients(NamedTuple):
    """Gradients of the experts of a block; those of frozen weights are None."""

    d_x: Array  # (T, D)
    d_weights: Array  # (T, A)
    d_mlp1_weight: Array | None  # (E, 2F, D)
    d_mlp1_bias: Array | None  # (E, 2F)
    d_mlp2_weight: Array | None  # (E, D, F)
    d_mlp2_bias: Array | None  # (E, D)
