"""The trained parameters: low-rank factors and whole weights, as one set of named arrays.

The factors of a weight are named ``block.3.attn.q_weight.lora_A`` and ``.lora_B``; a whole weight
has its own name. All arrays are in the policy's dtype, whatever the checkpoint stores: in bfloat16,
rounding would undo most steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from gptoss_ref.checkpoint.adapter import Adapter, LowRank
from gptoss_ref.errors import GptOssError
from gptoss_ref.layers.linear import dense
from gptoss_ref.model import Model
from gptoss_ref.numerics import Array
from gptoss_ref.tracing.taps import matching
from gptoss_ref.training.lora import LoRA, gradients

A, B = ".lora_A", ".lora_B"


@dataclass(frozen=True)
class Parameters:
    """The trained arrays, and the settings that apply them to a model.

    Attributes:
        arrays: the arrays that the optimiser updates, by name.
        scales: s of each weight with factors.
        lora: the settings of the factors; None if there are none.
    """

    arrays: dict[str, Array]
    scales: dict[str, float]
    lora: LoRA | None

    @classmethod
    def start(cls, model: Model, lora: LoRA | None, whole: Iterable[str], seed: int) -> Parameters:
        """The parameters before the first step, which do not change the model.

        Raises:
            GptOssError: a pattern matches nothing, or there is nothing to train.
            CheckpointError: a whole weight has scale bytes of 255.
        """
        named, policy = model.weights.named(), model.policy
        names = matching(whole, list(named), "weight") if whole else []
        arrays = {name: dense(named[name], policy).copy() for name in names}
        scales = {}
        for name, low_rank in (lora.start(model.weights, seed) if lora else {}).items():
            if name in arrays:
                raise GptOssError(
                    f"{name} matches both the whole weights and the LoRA targets: expected one"
                )
            arrays[name + A] = low_rank.a.astype(policy.dtype)
            arrays[name + B] = low_rank.b.astype(policy.dtype)
            scales[name] = low_rank.scale
        if not arrays:
            raise GptOssError("nothing to train: expected LoRA, or patterns of whole weights")
        return cls(arrays, scales, lora)

    @property
    def count(self) -> int:
        """Number of trained values."""
        return sum(array.size for array in self.arrays.values())

    @property
    def weights(self) -> list[str]:
        """Names of the weights whose gradients are needed."""
        return [*self.scales, *(n for n in self.arrays if not n.endswith((A, B)))]

    def with_arrays(self, arrays: dict[str, Array]) -> Parameters:
        """The same parameters with other values."""
        return replace(self, arrays=arrays)

    def adapter(self, base: str = "") -> Adapter:
        """The parameters as an adapter, with the shapes and values of the arrays."""
        factors = {name: self._low_rank(name) for name in self.scales}
        whole = {n: self.arrays[n] for n in self.weights if n not in self.scales}
        lora = self.lora or LoRA()
        return Adapter(factors, whole, lora.alpha, lora.rslora, base)

    def applied(self, model: Model) -> Model:
        """``model`` with these parameters in its weights."""
        weights = self.adapter().applied(model.weights, model.policy)
        return Model(
            model.config,
            weights,
            policy=model.policy,
            backend=model.backend,
            checkpoint=model.checkpoint,
        )

    def add_gradient(
        self, name: str, d_weight: Array, share: float, sums: dict[str, Array]
    ) -> None:
        """Adds ``share`` · ``d_weight``, in the shape of its weight, to the arrays' gradients."""
        found = {name: d_weight}
        if name in self.scales:
            d_a, d_b = gradients(d_weight, self._low_rank(name))
            found = {name + A: d_a, name + B: d_b}
        for key, gradient in found.items():
            gradient = gradient * gradient.dtype.type(share)
            sums[key] = sums[key] + gradient if key in sums else gradient

    def _low_rank(self, name: str) -> LowRank:
        return LowRank(self.arrays[name + A], self.arrays[name + B], self.scales[name])
