"""Recompute one gradient from the other implementation's nearest ones, and judge it by rounding.

Values that the other does not give are computed: forward values by the local replay of the forward
pass, gradients by the stages of :mod:`~gptoss_ref.verify.gradients.stages`. The error that rounding
explains is measured as for the forward pass: the same stage is computed from the same inputs in
float64 and in the other's rounding, with slightly changed terms in its sums.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.errors import TraceError
from gptoss_ref.losses import IGNORED, Counted
from gptoss_ref.numerics import Array
from gptoss_ref.tracing import gradients as names
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.verify.gradients.stages import BlockContext, Compute, Node, balancing, nodes
from gptoss_ref.verify.noise.metrics import Errors, measure_arrays, over
from gptoss_ref.verify.noise.noise_floor import NoiseFloor, level, runs_of
from gptoss_ref.verify.noise.rounding import UNITS
from gptoss_ref.verify.replay.evaluate import walk
from gptoss_ref.verify.replay.ops import ModelOps
from gptoss_ref.weights import ModelWeights

Wrong = Mapping[str, Compute]
"""For each stage, the function that replaces it; its first argument is the original function."""


@dataclass(frozen=True)
class Judged:
    """One gradient, compared with its recomputation.

    Attributes:
        name: of the gradient.
        inputs: the other's gradients from which it was recomputed.
        exact: the recomputation in float64; None once it is dropped to save memory.
        errors: of the other's gradient, per row of the first axis (of T, for a tap point).
        level: the error that rounding explains.
    """

    name: str
    inputs: tuple[str, ...]
    exact: Array | None
    errors: Errors
    level: NoiseFloor

    @property
    def excess(self) -> float:
        """Ratio of the error to what rounding explains; above 1 something is wrong."""
        if self.errors.broken.any():
            return float("inf")
        rows = over(self.errors.rows(), self.level.allowed_rows).max(initial=0.0)
        return float(max(rows, over(self.errors.rel_l2, self.level.allowed)))

    @property
    def wrong_rows(self) -> NDArray[np.bool_]:
        """Rows whose error rounding does not explain."""
        return (self.errors.rows() > self.level.allowed_rows) | (self.errors.broken > 0)


class Replay:
    """Recomputes the gradients of a trace, each from the trace's own nearest gradients.

    Args:
        weights: of the model.
        trace: gradients, targets, and any number of forward values.
        rounding: of the other implementation.

    Raises:
        TraceError: the trace has gradients but no targets.
    """

    def __init__(self, weights: ModelWeights, trace: Trace, rounding: str) -> None:
        if trace.targets is None:
            raise TraceError("the trace holds gradients and no targets: expected targets (T,)")
        self.weights, self.trace, self.rounding = weights, trace, rounding
        self.nodes = nodes(trace.config)
        self.runs = [policy for _, policy in runs_of(ModelOps(), rounding, len(trace.tokens))]
        counted = Counted(trace.targets, trace.targets != IGNORED)
        forward = trace.forward()
        needed = {tap for node in self.nodes.values() for tap in node.forward}
        self._forward = self._values(forward, needed)
        self._sites = [
            BlockContext(trace.config, policy, weights, trace.tokens, counted)
            for policy in self.runs
        ]
        if trace.router_aux_loss_coef:
            self._sites = [self._balanced(ctx, run) for run, ctx in enumerate(self._sites)]
        self._known: dict[tuple[str, int, str], Array] = {}

    def _values(self, forward: Trace, needed: set[str]) -> list[dict[str, Array]]:
        """For each run, the forward values: the trace's own, or computed from its nearest ones."""
        found = [
            {name: self._given(forward[name], run) for name in sorted(needed & set(forward))}
            for run in self._all()
        ]
        missing = needed - set(forward)
        ways = [(ModelOps(), policy) for policy in self.runs]
        tokens, config = self.trace.tokens, self.trace.config
        for name, arrays in walk(self.weights, config, ways, tokens, forward, missing):
            for values, array in zip(found, arrays, strict=True):
                values[name] = array
        return found

    def _given(self, values: Array, run: int, rounding: str = "float32") -> Array:
        """The trace's own values as inputs of a run; in all runs but the first, they are one
        rounding off.

        A gradient is a sum of many terms, which may cancel, and a sum in float32 is off by about
        as much as if its terms were each off by a rounding. Gradients, in which every stage is
        linear, are off by a rounding of the other's: it may have computed with values that it
        rounded only when it stored them.
        """
        if values.dtype.kind in "iu":
            return values
        values = values.astype(self.runs[run].dtype)
        if run == 0:
            return values
        push = np.random.default_rng(run).uniform(-1, 1, values.shape)
        pushed: Array = values * (1 + UNITS[rounding] * push).astype(values.dtype)
        return pushed

    def _balanced(self, ctx: BlockContext, run: int) -> BlockContext:
        layers = range(self.trace.config.num_hidden_layers)
        logits, indices = (
            [self._forward[run][f"block.{n}.mlp.{stage}"] for n in layers]
            for stage in ("router_logits", "expert_indices")
        )
        assert self.trace.router_aux_loss_coef is not None
        aux = balancing(self.trace.router_aux_loss_coef, logits, indices, ctx.policy)
        return replace(ctx, aux=aux, coefficient=self.trace.router_aux_loss_coef)

    def judge(self, name: str, wrong: Sequence[Wrong] = ()) -> Judged:
        """Compare the trace's gradient with its recomputation, in which the bugs ``wrong`` are
        present."""
        coarse = "float32" if self.rounding == "float64" else self.rounding
        exact, *rounded = (
            self._compute(self.nodes[name], run, wrong, coarse) for run in self._all()
        )
        tap = names.of_tap(name)
        axis = names.axes(name).index("T") if tap is not None else 0
        samples = [measure_arrays(exact, sample, axis) for sample in rounded]
        return Judged(
            name,
            self.inputs(name),
            exact,
            measure_arrays(exact, self.trace[name], axis),
            level(samples, self.rounding),
        )

    def computed(self, name: str, run: int, wrong: Sequence[Wrong]) -> Array:
        """The gradient recomputed from the trace's own nearest ones, with the bugs ``wrong``.

        Run 0 is in float64, run 1 in the other's rounding.
        """
        return self._compute(self.nodes[name], run, wrong, "float32")

    def _all(self) -> range:
        return range(len(self.runs))

    def inputs(self, name: str) -> tuple[str, ...]:
        """The trace's own gradients from which this one is recomputed."""
        found: dict[str, None] = {}
        for grad in self.nodes[name].grads:
            found |= dict.fromkeys([grad] if grad in self.trace else self.inputs(grad))
        return tuple(found)

    def segment(self, name: str) -> frozenset[str]:
        """The stages that are computed for one gradient, its own included."""
        node = self.nodes[name]
        before = [self.segment(grad) for grad in node.grads if grad not in self.trace]
        return frozenset({node.stage.name}).union(*before)

    def _compute(self, node: Node, run: int, wrong: Sequence[Wrong], off: str) -> Array:
        """A stage in a run, whose given gradients are off by one rounding of the format ``off``."""
        ctx = replace(
            self._sites[run],
            layer=node.layer,
            unembedding=lambda: self._gradient("grad.weights.unembedding", run, wrong, off),
        )
        compute = node.stage.compute
        for bug in wrong:
            if node.stage.name in bug:
                compute = _with(bug[node.stage.name], compute)
        grads = (self._gradient(grad, run, wrong, off) for grad in node.grads)
        with np.errstate(invalid="ignore", over="ignore"):
            return compute(ctx, *grads, *(self._forward[run][tap] for tap in node.forward))

    def _gradient(self, name: str, run: int, wrong: Sequence[Wrong], off: str) -> Array:
        given, key = name in self.trace, (name, run, off)
        if (given or not wrong) and key in self._known:
            return self._known[key]
        if given:
            found = self._given(self.trace[name], run, off)
        else:
            found = self._compute(self.nodes[name], run, wrong, off)
        if given or not wrong:
            self._known[key] = found
        return found


def _with(bug: Compute, right: Compute) -> Compute:
    @functools.wraps(right)
    def compute(ctx: BlockContext, *arguments: Array) -> Array:
        return bug(right, ctx, *arguments)

    return compute
