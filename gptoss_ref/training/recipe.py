"""Recipe: the checked settings of a training run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gptoss_ref.errors import GptOssError
from gptoss_ref.numerics import Array
from gptoss_ref.training.adamw import AdamW
from gptoss_ref.training.checks import is_number
from gptoss_ref.training.lora import LoRA
from gptoss_ref.training.schedule import share


@dataclass(frozen=True)
class Recipe:
    """The settings of a training run.

    Attributes:
        steps: number of optimiser steps; None: those of ``epochs`` passes over the data.
        epochs: passes over the data, if ``steps`` is None.
        batch_size: examples per step.
        accumulation: number of parts in which a batch is computed, to save memory. The result is
            the same except for rounding, because each target has the same weight. The
            load-balancing loss is that of each part, which is another loss than that of the batch.
        learning_rate: at the peak of the schedule.
        schedule, warmup, floor: see :mod:`gptoss_ref.training.schedule`; ``warmup`` in steps.
        optimizer: the constants of AdamW.
        clip: largest norm of all gradients together; None: no clipping.
        lora: settings of the low-rank factors; None: no factors.
        whole: patterns of weights that are trained without factors.
        router_aux_loss_coef: coefficient of the load-balancing loss.
        seed: for the initial factors and the order of the examples.
        evaluate_every, save_every: in steps; 0: at the end only.
    """

    steps: int | None = None
    epochs: float = 1.0
    batch_size: int = 16
    accumulation: int = 1
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup: int = 0
    floor: float = 0.0
    optimizer: AdamW = field(default_factory=AdamW)
    clip: float | None = 1.0
    lora: LoRA | None = field(default_factory=LoRA)
    whole: Iterable[str] = ()
    router_aux_loss_coef: float = 0.0
    seed: int = 0
    evaluate_every: int = 0
    save_every: int = 0

    def __post_init__(self) -> None:
        share(self.schedule, 0, 1)  # raises if the schedule is unknown
        least: dict[str, float] = {"batch_size": 1, "accumulation": 1, "seed": 0, "warmup": 0}
        least |= {"evaluate_every": 0, "save_every": 0} | (
            {} if self.steps is None else {"steps": 1}
        )
        for name, low in least.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise GptOssError(f"{name} is {value!r}: expected an integer of {low} or more")
        positive = {"epochs": self.epochs, "learning_rate": self.learning_rate}
        if self.clip is not None:
            positive["clip"] = self.clip
        for name, value in positive.items():
            if not (is_number(value) and value > 0):
                raise GptOssError(f"{name} is {value!r}: expected a number above 0")
        for name, value in (("floor", self.floor), ("aux loss", self.router_aux_loss_coef)):
            if not (is_number(value) and value >= 0):
                raise GptOssError(f"{name} is {value!r}: expected a number of 0 or more")
        whole = (self.whole,) if isinstance(self.whole, str) else tuple(self.whole)  # one pattern
        object.__setattr__(self, "whole", whole)

    def length(self, examples: int) -> int:
        """Number of steps of the run, for a number of examples."""
        if self.steps is not None:
            return self.steps
        return max(1, math.ceil(self.epochs * examples / self.batch_size))

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step; steps count from 0."""
        here = share(self.schedule, step, steps, warmup=self.warmup, floor=self.floor)
        return self.learning_rate * here

    def batch(self, step: int, examples: int) -> Array:
        """Indices (N,) of the N = ``batch_size`` examples of a step; a function of the seed.

        Every epoch has another order. A resumed run needs no state of a random generator.

        >>> recipe = Recipe(batch_size=2)
        >>> sorted(int(i) for step in range(3) for i in recipe.batch(step, 6))
        [0, 1, 2, 3, 4, 5]
        """
        at = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        orders = {
            int(epoch): np.random.default_rng([self.seed, int(epoch)]).permutation(examples)
            for epoch in np.unique(at // examples)
        }
        return np.array([orders[int(i // examples)][i % examples] for i in at], np.int64)

    def to_json(self) -> dict[str, Any]:
        """The fields, for ``json.dumps``."""
        return dataclasses.asdict(self)
