"""Where a stage is computed: one block, the rules it follows, and the weights it needs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np

from gptoss_ref.config import ModelConfig
from gptoss_ref.numerics import Array, Policy
from gptoss_ref.verify.replay.ops import At, Rules, expert_linear, expert_matrix
from gptoss_ref.weights import BlockWeights, ExpertMatrix, ModelWeights

_DENSE_BYTES = 1 << 28  # decoded expert matrices kept for the other runs of the same block


class Site:
    """One block (or the ends, ``layer`` None) under one set of rules: what its stages need."""

    def __init__(
        self,
        config: ModelConfig,
        policy: Policy,
        rules: Rules,
        tokens: Array,
        weights: ModelWeights,
        layer: int | None,
        decoded: Decoded,
    ) -> None:
        self.config, self.policy, self.rules = config, policy, rules
        self.tokens, self.layer = tokens, layer
        self.positions = np.arange(len(tokens))  # (T,)
        self._weights, self._decoded = weights, decoded

    def at(self, tap: str, expert: int | None = None) -> At:
        return At(self.config, self.policy, tap, self.layer, expert)

    @cached_property
    def ends(self) -> ModelWeights:
        """Embedding, last norm and unembedding, as the rules load them."""
        return self.rules.end_weights(self.at("embedding"), self._weights)

    @cached_property
    def block(self) -> BlockWeights:
        """This block's weights, as the rules load them."""
        assert self.layer is not None
        return self.rules.block_weights(self.at("attn.norm"), self._weights.blocks[self.layer])

    @cached_property
    def tables(self) -> tuple[Array, Array]:
        """Cosines and sines (T, C/2)."""
        at = self.at("attn.q_rope")
        return self.rules.rope_tables(at, self.positions, *self.rules.yarn(at))

    def matrix(self, tap: str, stored: ExpertMatrix, expert: int) -> ExpertMatrix:
        """One expert's matrix (N, M) out of ``stored`` (E, N, M).

        As values; but as it is stored where nothing differs from the specification, whose product
        decodes a few rows at a time: what is in the cache is not read from memory again.
        """
        rules, at = self.rules, self.at(tap, expert)
        if (rules.expert_matrix, rules.expert_linear) == (expert_matrix, expert_linear):
            return stored[expert]
        return self._decoded.get(rules.expert_matrix, at, stored)


class Decoded:
    """Expert matrices decoded for one block, kept up to a limit for its other runs."""

    def __init__(self) -> None:
        self._bytes = 0
        self._kept: dict[object, tuple[ExpertMatrix, Array]] = {}

    def get(self, rule: Callable[..., Array], at: At, stored: ExpertMatrix) -> Array:
        """Values of expert ``at.expert`` of ``stored`` by ``rule``."""
        assert at.expert is not None
        key = (rule, id(stored), at.tap, at.expert, at.policy.dtype)
        if key not in self._kept:
            values = rule(at, stored[at.expert])
            if self._bytes + values.nbytes > _DENSE_BYTES:
                return values
            self._bytes += values.nbytes
            self._kept[key] = stored, values  # holding ``stored`` keeps its id its own
        return self._kept[key][1]
