"""Hooks of `capture` for a module with the names of OpenAI's reference.

Modules have hooks; between them, a wrapper of ``swiglu`` and the results of torch's ``topk``,
``softmax`` and ``einsum`` are recorded. Source: openai/gpt-oss gpt_oss/torch/model.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

from gptoss_ref.config import ModelConfig
from gptoss_ref.verify.observe.adapters.watching import (
    Caught,
    Hook,
    Watch,
    blocks_of,
    item_of,
    namespace_of,
    part_of,
    replaced,
)


def watch_openai(stack: Watch, root: Any, caught: Caught, config: ModelConfig, length: int) -> None:
    """Put hooks on OpenAI's modules, and record the torch functions between them."""
    stack.on_exit(root.embedding, caught.output("embedding"))
    stack.on_exit(root.norm, caught.output("norm"))
    stack.on_exit(root.unembedding, caught.output("unembedding"))
    between = _Between(caught, config, length)
    for n, block in blocks_of(root.block):
        at, mlp = f"block.{n}", part_of(block, "mlp")
        stack.on_exit(part_of(block, "attn"), caught.rounding)
        for name in ("attn.norm", "attn.qkv", "attn.out", "attn", "mlp.norm", "mlp.gate", "mlp"):
            stack.on_exit(part_of(block, name), caught.output(f"{at}.{name}"))
        stack.on_entry(part_of(block, "attn.out"), caught.input(f"{at}.attn.out.input"))
        stack.on_exit(part_of(block, "attn.rope"), _rotated(caught, f"{at}.attn."))
        stack.on_exit(mlp, between.leaves_mlp)
        for part in ("attn", "mlp"):
            stack.on_entry(part_of(block, part), between.at(n, part))
            stack.on_exit(part_of(block, part), between.at(None, ""))
        if mlp is not None:
            between.watch_swiglu(stack, namespace_of(mlp))
    stack.enter_context(between.mode(stack))


def _rotated(caught: Caught, at: str) -> Hook:
    """A forward hook on OpenAI's RotaryEmbedding, which returns q (T, K, G, C) and k (T, K, C)."""

    def hook(_module: Any, _args: Any, value: Any) -> None:
        q = item_of(value, 0)
        layout = "T K G C" if getattr(q, "ndim", 0) == 4 else ""
        caught.keep(f"{at}rotated q", q, at + "q_rope", layout)
        caught.keep(f"{at}rotated k", item_of(value, 1), at + "k_rope")

    return hook


class _Between:
    """Records results of torch functions inside OpenAI's attention and expert modules.

    The arguments identify them: the softmax over T + 1 columns gives the attention weights, the
    topk over E logits the experts, and the einsum of (T, A, D) with (T, A) the weighted sum of the
    experts' outputs. That sum is ``mlp.out`` only if the module returns its input plus the sum;
    otherwise (for instance, if a bias is added later) both are left out.
    """

    def __init__(self, caught: Caught, config: ModelConfig, length: int) -> None:
        self.caught, self.config, self.length = caught, config, length
        self.block: int | None = None
        self.part = ""
        self._sum: Any = None
        self._gated: list[tuple[Any, Any]] = []
        self._seen: set[int] = set()

    def at(self, n: int | None, part: str) -> Hook:
        def hook(*_: Any) -> None:
            self.block, self.part, self._sum, self._gated = n, part, None, []

        return hook

    def watch_swiglu(self, stack: Watch, namespace: dict[str, Any]) -> None:
        original = namespace.get("swiglu")
        if original is None or id(namespace) in self._seen:
            return
        self._seen.add(id(namespace))

        def stand_in(x: Any, *args: Any, **kwargs: Any) -> Any:
            act = original(x, *args, **kwargs)
            if hasattr(x, "detach"):
                self._gated.append((x.detach().clone(), act.detach().clone()))
            return act

        stack.enter_context(replaced(namespace, "swiglu", stand_in))

    def mode(self, watch: Watch) -> Any:
        """A context that calls ``_called`` with the result of every torch function."""
        watched = watch.guarded(self._called)
        base: Any = import_module("torch.overrides").TorchFunctionMode

        def torch_function(
            _mode: Any, function: Any, _types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = function(*args, **(kwargs or {}))
            if self.part:
                watched(getattr(function, "__name__", ""), args, result)
            return result

        return type("Watch", (base,), {"__torch_function__": torch_function})()

    def _called(self, function: str, args: Any, result: Any) -> None:
        tokens, chosen = self.length, self.config.experts_per_token
        if self.part == "attn" and function == "softmax" and result.shape[-1] == tokens + 1:
            layout = "K G T S+1" if result.ndim == 4 else "KG T S+1"
            self._keep("weights", result, layout)
        elif self.part == "mlp" and function == "topk":
            if tuple(result[1].shape) == (tokens, chosen):
                self._keep("expert_indices", result[1])
        elif self.part == "mlp" and function == "einsum":
            operands = [x for x in _flat(args) if hasattr(x, "detach")]
            by_shape = {tuple(x.shape): x for x in operands}
            outputs = by_shape.get((tokens, chosen, self.config.hidden_size))
            weights = by_shape.get((tokens, chosen))
            if len(operands) == 2 and outputs is not None and weights is not None:
                self._sum = result.detach().clone()
                self._keep("expert_out", outputs)
                self._keep("expert_weights", weights)
                self._keep("out", result)

    def leaves_mlp(self, _module: Any, args: tuple[Any, ...], value: Any) -> None:
        """A forward hook on the expert module; it checks the weighted sum."""
        self._keep_gated()
        total = args[0] + self._sum if self._sum is not None and args else None
        added = total is not None and ((total == value) | (total != total)).all()
        if not added:
            for stage in ("expert_out", "out"):
                self.caught.drop(f"block.{self.block}.mlp.{stage} of a function")

    def _keep_gated(self) -> None:
        """Keep the inputs and outputs of ``swiglu``, from one call or one for each token."""
        shape = self.length, self.config.experts_per_token
        sizes = [len(x) if x.ndim > 1 else 1 for x, _ in self._gated]
        for item, stage in enumerate(("gate_up", "swiglu")):
            calls = [call[item] for call in self._gated]
            if len(calls) == 1:
                self._keep(stage, calls[0])
            elif sizes in ([shape[1]] * shape[0], [1] * (shape[0] * shape[1])):
                rows = import_module("torch").cat([x.reshape(-1, x.shape[-1]) for x in calls])
                self._keep(stage, rows.reshape(*shape, -1))
            elif calls:
                why = f"swiglu was called {len(calls)} times; the tokens of its rows are unknown"
                self.caught.skip(f"block.{self.block}.mlp.{stage}", calls[0], why)

    def _keep(self, stage: str, value: Any, layout: str = "") -> None:
        tap = f"block.{self.block}.{self.part}.{stage}"
        self.caught.keep(f"{tap} of a function", value, tap, layout)


def _flat(args: Iterable[Any]) -> Iterator[Any]:
    for arg in args:
        if isinstance(arg, tuple | list):
            yield from _flat(arg)
        else:
            yield arg
