"""Where a stage is computed: one block, the operations it follows, and the weights it needs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np

from gptoss_ref.config import ModelConfig
from gptoss_ref.numerics import Array, Policy
from gptoss_ref.verify.replay.ops import ModelOps, OpContext, expert_linear, expert_matrix
from gptoss_ref.weights import BlockWeights, ExpertMatrix, ModelWeights

Decoded = dict[tuple[Callable[..., Array], int, object], Array]
"""One expert's matrix as several runs decode it: by rule, stored matrices and dtype."""


class BlockContext:
    """One block (or the ends, ``layer`` None) under one set of operations: what its stages need."""

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
        """Embedding, last norm and unembedding, as the operations load them."""
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
        """One expert's matrix (N, M) out of ``stored`` (E, N, M).

        As values; but as it is stored where nothing differs from the specification, whose product
        decodes a few rows at a time: what is in the cache is not read from memory again.

        Args:
            decoded: this expert's matrix as other runs have decoded it, for those that agree.
        """
        ops, at = self.ops, self.at(tap, expert)
        op = ops.expert_matrix
        key = (op, id(stored), at.policy.dtype)  # the sites hold ``stored``: its id is its own
        if key not in decoded:
            if (op, ops.expert_linear) == (expert_matrix, expert_linear):
                return stored[expert]
            decoded[key] = op(at, stored[expert])
        return decoded[key]
