"""Hooks of `capture` for transformers' GptOssModel.

Modules have hooks; a wrapper of ``apply_rotary_pos_emb`` records the rotated q and k, and one of
``_apply_gate`` the values before and after SwiGLU. Sources: transformers
models/gpt_oss/modeling_gpt_oss.py and integrations/moe.py.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

from gptoss_ref.verify.observe.adapters.watching import (
    Caught,
    Hook,
    Watch,
    blocks_of,
    inside,
    item_of,
    namespace_of,
    part_of,
    replaced,
)


def watch_transformers(stack: Watch, root: Any, head: Any, caught: Caught) -> None:
    """Put hooks on transformers' modules; ``root`` is the GptOssModel."""
    stack.on_exit(root.embed_tokens, caught.output("model.embed_tokens"))
    stack.on_exit(root.norm, caught.output("model.norm"))
    if head is not None:
        stack.on_exit(head, caught.output("lm_head"))
    rotating = _Rotating(caught)
    for n, layer in blocks_of(root.layers):
        at = f"model.layers.{n}"
        stack.on_exit(layer, caught.output(at))
        stack.on_exit(layer, caught.rounding)
        for part in (
            "input_layernorm",
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "post_attention_layernorm",
        ):
            stack.on_exit(part_of(layer, part), caught.output(f"{at}.{part}"))
        for part in ("self_attn.o_proj", "post_attention_layernorm"):
            stack.on_entry(part_of(layer, part), caught.input(f"{at}.{part}.input"))
        attn, experts = part_of(layer, "self_attn"), part_of(layer, "mlp.experts")
        stack.on_exit(attn, caught.output(f"{at}.self_attn.attn_weights", 1))
        stack.on_entry(attn, rotating.at(n))
        if attn is not None:
            rotating.watch(stack, namespace_of(attn))
        stack.on_exit(part_of(layer, "mlp.router"), _routed(caught, n))
        stack.on_exit(part_of(layer, "mlp"), caught.output(f"{at}.mlp"))
        if experts is not None:
            stack.on_exit(experts, caught.output(f"{at}.mlp.experts"))
            _Gating(n, inside(experts), caught).watch(stack)


def _routed(caught: Caught, n: int) -> Hook:
    """A forward hook on the router: logits, weights (T, A) and experts; transformers 4 returned
    weights over all experts (T, E) and experts."""

    def hook(_module: Any, _args: Any, value: Any) -> None:
        at = f"model.layers.{n}.mlp.router"
        if isinstance(value, tuple) and len(value) == 2:
            caught.keep(f"{at} weights", value[0], f"block.{n}.mlp.expert_weights", "dense")
            caught.keep(f"{at}.2", value[1])
        else:
            for item in range(3):
                caught.keep(f"{at}.{item}", item_of(value, item))

    return hook


class _Rotating:
    """Records q and k after ``apply_rotary_pos_emb(q, k, ...)``, both (1, heads, T, C)."""

    def __init__(self, caught: Caught) -> None:
        self.caught = caught
        self.block: int | None = None
        self._seen: set[int] = set()

    def at(self, n: int) -> Hook:
        def hook(*_: Any) -> None:
            self.block = n

        return hook

    def watch(self, stack: Watch, namespace: dict[str, Any]) -> None:
        name = "apply_rotary_pos_emb"
        if name not in namespace or id(namespace) in self._seen:
            return
        self._seen.add(id(namespace))
        original = namespace[name]

        def stand_in(*args: Any, **kwargs: Any) -> Any:
            q, k = original(*args, **kwargs)
            at = f"block.{self.block}.attn."
            self.caught.keep(f"{at}rotated q", q, at + "q_rope", "H T C")
            self.caught.keep(f"{at}rotated k", k, at + "k_rope", "K T C")
            return q, k

        stack.enter_context(replaced(namespace, name, stand_in))


class _Gating:
    """Records ``_apply_gate`` of transformers' experts, from (rows, 2F) to (rows, F).

    The token and the expert of a row depend on the implementation:
    ``batched_mm`` keeps the order (T, A), ``grouped_mm`` sorts by expert, and ``eager`` calls once
    for each expert that has tokens, in ascending order.
    """

    def __init__(self, n: int, experts: Any, caught: Caught) -> None:
        self.at, self.experts, self.caught = f"block.{n}.mlp.", experts, caught
        self.indices: Any = None
        self.calls: list[tuple[Any, Any]] = []
        self.live: list[tuple[Any, Any]] = []  # the same tensors, not detached

    def watch(self, stack: Watch) -> None:
        original = getattr(self.experts, "_apply_gate", None)
        if original is None:
            return

        def stand_in(gate_up: Any, *args: Any, **kwargs: Any) -> Any:
            act = original(gate_up, *args, **kwargs)
            self.calls.append((gate_up.detach().clone(), act.detach().clone()))
            self.live.append((gate_up, act))
            return act

        stack.enter_context(replaced(vars(self.experts), "_apply_gate", stand_in))
        stack.on_entry(self.experts, self._enters)
        stack.on_exit(self.experts, self._leaves)

    def _enters(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [*args, *kwargs.values()]
        self.indices = next(x for x in given if hasattr(x, "dtype") and not x.is_floating_point())
        self.calls.clear()
        self.live.clear()

    def _leaves(self, *_: Any) -> None:
        rows = self._rows()
        if rows is None or sum(len(gate_up) for gate_up, _ in self.calls) != len(rows):
            name = f"{self.at}gate_up, swiglu of _apply_gate"
            why = f"{len(self.calls)} calls whose rows cannot be assigned to tokens"
            self.caught.skip(name, self.calls[0][0] if self.calls else None, why)
            return
        tokens, chosen = self.indices.shape
        for item, tap in enumerate(("gate_up", "swiglu")):
            values = self.experts_rows(item)
            ordered = values.new_empty(values.shape)
            ordered[rows] = values
            self.caught.keep(
                f"{self.at}{tap} of _apply_gate",
                ordered.reshape(tokens, chosen, -1),
                self.at + tap,
            )
            if self.caught.tensors is not None and all(c[item].requires_grad for c in self.live):
                parts = [call[item] for call in self.live]
                order = partial(_ordered, rows, (tokens, chosen))
                self.caught.tensors[f"{self.at}{tap} of _apply_gate"] = parts, order

    def experts_rows(self, item: int) -> Any:
        """All rows of gate_up (0) or of the activation (1) in the order of the calls."""
        torch = import_module("torch")
        return torch.cat([call[item] for call in self.calls])

    def _rows(self) -> Any:
        """The index in flattened (T, A) of each row, in order of the calls; None if unknown."""
        config = getattr(self.experts, "config", None)
        implementation = getattr(config, "_experts_implementation", None)
        torch = import_module("torch")
        flat = self.indices.reshape(-1)  # (T*A,)
        if implementation == "batched_mm":
            return torch.arange(len(flat))
        if implementation == "grouped_mm":
            return torch.sort(flat)[1].cpu()
        if implementation == "eager":
            place = torch.arange(len(flat), device=flat.device).reshape(self.indices.shape)
            by_choice, places = self.indices.T.reshape(-1), place.T.reshape(-1)
            return places[torch.sort(by_choice, stable=True)[1]].cpu()
        return None


def _ordered(rows: Any, shape: tuple[int, int], parts: list[Any]) -> Any:
    """The rows of all calls in the order (T, A)."""
    joined = import_module("torch").cat(parts)
    ordered = joined.new_empty(joined.shape)
    ordered[rows] = joined
    return ordered.reshape(*shape, -1)
