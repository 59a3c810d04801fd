"""The context of a stage: one block, the operations that apply, and the weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np

from gptoss_ref.config import ModelConfig
from gptoss_ref.numerics import Array, Policy
from gptoss_ref.verify.replay.ops import ModelOps, OpContext, expert_linear, expert_matrix
from gptoss_ref.weights import BlockWeights, ExpertMatrix, ModelWeights, release

Decoded = dict[tuple[Callable[..., Array], int, object], Array]
"""One expert's matrix, shared by runs: by decoding rule, stored matrices and dtype."""


class BlockContext:
    """One block (or the ends, if ``layer`` is None) with its operations and weights."""

    def __init__(
        self,
        config: ModelConfig,
        policy: Policy,
        ops: ModelOps,
        tokens: Array,
        weights: ModelWeights,
        layer: int | None,
        experts: frozenset[int] | None = None,
        length: int | None = None,
    ) -> None:
        self.config, self.policy, self.ops = config, policy, ops
        self.tokens, self.layer = tokens, layer
        self.positions = np.arange(len(tokens))  # (T,)
        self._weights, self.experts, self._length = weights, experts, length

    def at(self, tap: str, expert: int | None = None) -> OpContext:
        return OpContext(self.config, self.policy, tap, self.layer, expert, self._length)

    @cached_property
    def ends(self) -> ModelWeights:
        """The weights of embedding, last norm and unembedding, as the operations load them."""
        return self.ops.end_weights(self.at("embedding"), self._weights)

    @cached_property
    def block(self) -> BlockWeights:
        """This block's weights, as the operations load them."""
        assert self.layer is not None
        return self.ops.block_weights(self.at("attn.norm"), self._weights.blocks[self.layer])

    @cached_property
    def tables(self) -> tuple[Array, Array]:
        """Cosines and sines (T, C/2)."""
        at = self.at("attn.q_rope")
        return self.ops.rope_tables(at, self.positions, *self.ops.yarn(at))

    def matrix(self, tap: str, stored: ExpertMatrix, expert: int, decoded: Decoded) -> ExpertMatrix:
        """Return one expert's matrix (N, M) of ``stored`` (E, N, M).

        It is decoded to values. If no operation differs from the specification, it is returned as
        stored, because the specification's product decodes a few rows at a time and does not read
        them twice.

        Args:
            decoded: this expert's matrix as other runs have decoded it, for runs that decode it
                equally.
        """
        ops, at = self.ops, self.at(tap, expert)
        op = ops.expert_matrix
        key = (op, id(stored), at.policy.dtype)  # the contexts hold ``stored``: its id is unique
        if key not in decoded:
            if (op, ops.expert_linear) == (expert_matrix, expert_linear):
                return stored[expert]
            decoded[key] = op(at, stored[expert])
        return decoded[key]

    def release(self) -> None:
        """Let the system drop the pages of the stored weights; they are read again if used."""
        release(self._weights if self.layer is None else self._weights.blocks[self.layer])
