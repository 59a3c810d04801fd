"""What a live torch model computes, caught by hooks: transformers' and OpenAI's module names.

Forward hooks see what enters and leaves a module. What happens between modules is seen by standing
in for a function for the time of one pass, where the model has it under a name of its own:
``apply_rotary_pos_emb`` and ``_apply_gate`` in transformers; ``swiglu``, and what ``topk``,
``softmax`` and ``einsum`` of torch return, in a module with OpenAI's names. What cannot be seen is
left out. Everything is put back afterwards, also after an error.

Sources: transformers models/gpt_oss/modeling_gpt_oss.py and integrations/moe.py; openai/gpt-oss
gpt_oss/torch/model.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any

import numpy as np

from gptoss_ref.config import ModelConfig
from gptoss_ref.errors import ConfigError, TraceError
from gptoss_ref.numerics import Array
from gptoss_ref.trace import Trace

from .arrays import from_arrays
from .tensors import as_array

Hook = Callable[..., None]


def capture(
    module: Any, tokens: Iterable[int] | Array, *, config: ModelConfig | None = None
) -> Trace:
    """Run somebody's torch model on one prompt and keep what its tap points see.

    The module runs in evaluation mode without gradients and is left as it was.

    Args:
        module: transformers' ``GptOssForCausalLM`` (or its ``GptOssModel``: no logits), or a module
            with the names of OpenAI's ``Transformer``; plain or inside a wrapper.
        tokens: (T,), the whole prompt.
        config: what the module is meant to be. None takes what the module says of itself.

    Raises:
        TraceError: the module has neither naming, its outputs do not fit the configuration, or the
            tokens do not fit the vocabulary.
        ConfigError: the module's own configuration is unusable, and none is given.
    """
    ids = np.asarray(tokens if isinstance(tokens, np.ndarray) else list(tokens))
    naming, root, head = _recognised(module)
    config = config or (_own_config(module) if naming == "transformers" else _openai_config(root))
    Trace({}, tokens=ids, config=config)  # the prompt is judged before the model runs
    caught = _Caught()
    torch = import_module("torch")
    with ExitStack() as stack, torch.no_grad():
        stack.enter_context(_evaluating(module))
        if naming == "transformers":
            _watch_transformers(stack, root, head, caught)
            where = _device(root.embed_tokens)
            runner, extra = (module if head is not None else root), {"use_cache": False}
            prompt = torch.tensor(ids[None], device=where)  # (1, T)
        else:
            _watch_openai(stack, root, caught, config, len(ids))
            runner, extra = root, {}
            prompt = torch.tensor(ids, device=_device(root.embedding))  # (T,)
        runner(prompt, **extra)
    trace = from_arrays(
        caught.arrays,
        ids,
        config,
        names=caught.names,
        producer=f"{type(module).__module__.partition('.')[0]} {type(module).__qualname__}",
        dtype=caught.dtype,
    )
    if not trace:
        raise TraceError(f"{type(module).__qualname__} ran, but none of its modules was called")
    return trace


class _Caught:
    """What the hooks have seen: arrays under the other side's names."""

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}
        self.names: dict[str, tuple[str, str]] = {}
        self.dtype: str | None = None

    def keep(self, name: str, value: Any, tap: str | None = None, layout: str = "") -> None:
        """One tensor; ``tap`` and ``layout`` where names.py does not know the name."""
        if value is None or not hasattr(value, "detach"):
            return
        if name not in self.arrays:  # a module that is called again computes something else
            self.arrays[name] = as_array(value, name)
            if tap is not None:
                self.names[name] = (tap, layout)

    def drop(self, name: str) -> None:
        self.arrays.pop(name, None)
        self.names.pop(name, None)

    def output(self, name: str, item: int = 0) -> Hook:
        """A forward hook that keeps a module's output, or one of several."""

        def hook(_module: Any, _args: Any, value: Any) -> None:
            self.keep(name, _item(value, item))

        return hook

    def input(self, name: str) -> Hook:
        """A forward pre-hook that keeps a module's first input."""

        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.keep(name, args[0] if args else next(iter(kwargs.values()), None))

        return hook

    def rounding(self, _module: Any, _args: Any, value: Any) -> None:
        """A forward hook that notes in what the model computes."""
        name = str(getattr(_item(value, 0), "dtype", "")).removeprefix("torch.")
        self.dtype = name if name in ("float64", "float32", "bfloat16", "float16") else None


def _item(value: Any, item: int) -> Any:
    if isinstance(value, tuple | list):
        return value[item] if item < len(value) else None
    return value if item == 0 else None


def _recognised(module: Any) -> tuple[str, Any, Any]:
    """The naming, the module that holds the blocks, and transformers' head or None."""
    modules = dict(module.named_modules()) if hasattr(module, "named_modules") else {}
    for path, candidate in modules.items():
        if hasattr(candidate, "embed_tokens") and hasattr(candidate, "layers"):
            above = modules.get(path.rpartition(".")[0]) if path else None
            return "transformers", candidate, getattr(above, "lm_head", None)
        if all(hasattr(candidate, name) for name in ("embedding", "block", "norm", "unembedding")):
            return "openai", candidate, None
    raise TraceError(
        f"{type(module).__qualname__} has the module names of neither transformers' "
        "GptOssForCausalLM (embed_tokens, layers) nor OpenAI's Transformer (embedding, block, "
        "norm, unembedding)"
    )


def _own_config(module: Any) -> ModelConfig:
    """The configuration of a transformers model."""
    own: Any = getattr(module, "config", None)
    if not hasattr(own, "to_dict"):
        raise TraceError(f"{type(module).__qualname__} has no configuration: pass config")
    return ModelConfig.from_json(own.to_dict())


def _openai_config(module: Any) -> ModelConfig:
    """The configuration of a module with OpenAI's names, which keeps it only in its parts."""
    try:
        attn, mlp = module.block[0].attn, module.block[0].mlp
        rope = attn.rope
        return ModelConfig(
            num_hidden_layers=len(module.block),
            num_experts=mlp.gate.out_features,
            experts_per_token=mlp.experts_per_token,
            vocab_size=module.embedding.num_embeddings,
            hidden_size=module.embedding.embedding_dim,
            intermediate_size=mlp.mlp1_weight.shape[1] // 2,
            swiglu_limit=mlp.swiglu_limit,
            head_dim=attn.head_dim,
            num_attention_heads=attn.num_attention_heads,
            num_key_value_heads=attn.num_key_value_heads,
            sliding_window=attn.sliding_window,
            initial_context_length=rope.initial_context_length,
            rope_theta=rope.base,
            rope_scaling_factor=rope.scaling_factor,
            rope_ntk_alpha=rope.ntk_alpha,
            rope_ntk_beta=rope.ntk_beta,
            rms_norm_eps=module.norm.eps,
            max_position_embeddings=round(rope.initial_context_length * rope.scaling_factor),
        )
    except (AttributeError, ConfigError) as error:
        raise TraceError(
            f"{type(module).__qualname__} does not say what it is ({error}): pass config"
        ) from None


def _device(embedding: Any) -> Any:
    weight = next(embedding.parameters())
    if weight.device.type == "meta":
        raise TraceError("the module has no weights: its parameters are on the meta device")
    return weight.device


@contextmanager
def _evaluating(module: Any) -> Iterator[None]:
    """Evaluation mode, and each submodule's own mode again afterwards."""
    before = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training


@contextmanager
def _replaced(namespace: dict[str, Any], name: str, value: Any) -> Iterator[None]:
    """``namespace[name]`` is ``value`` meanwhile."""
    absent = object()
    before = namespace.get(name, absent)
    namespace[name] = value
    try:
        yield
    finally:
        if before is absent:
            del namespace[name]
        else:
            namespace[name] = before


def _after(stack: ExitStack, module: Any, hook: Hook) -> None:
    stack.callback(module.register_forward_hook(hook).remove)


def _before(stack: ExitStack, module: Any, hook: Hook) -> None:
    stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)


def _globals(module: Any) -> dict[str, Any]:
    """The namespace in which a module's forward looks up the functions it calls."""
    forward = inspect.unwrap(module.forward)
    found: dict[str, Any] = getattr(getattr(forward, "__func__", forward), "__globals__", {})
    return found


def _watch_transformers(stack: ExitStack, root: Any, head: Any, caught: _Caught) -> None:
    """Hooks of transformers' names; ``root`` is the GptOssModel."""
    _after(stack, root.embed_tokens, caught.output("model.embed_tokens"))
    _after(stack, root.norm, caught.output("model.norm"))
    if head is not None:
        _after(stack, head, caught.output("lm_head"))
    rotating = _Rotating(caught)
    for n, layer in enumerate(root.layers):
        at = f"model.layers.{n}"
        attn, mlp = layer.self_attn, layer.mlp
        _after(stack, layer, caught.output(at))
        _after(stack, layer, caught.rounding)
        for part in ("input_layernorm", "post_attention_layernorm"):
            _after(stack, getattr(layer, part), caught.output(f"{at}.{part}"))
        _before(
            stack,
            layer.post_attention_layernorm,
            caught.input(f"{at}.post_attention_layernorm.input"),
        )
        for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
            _after(stack, getattr(attn, part), caught.output(f"{at}.self_attn.{part}"))
        _before(stack, attn.o_proj, caught.input(f"{at}.self_attn.o_proj.input"))
        _after(stack, attn, caught.output(f"{at}.self_attn.attn_weights", 1))
        _before(stack, attn, rotating.at(n))
        rotating.watch(stack, _globals(attn))
        router = getattr(mlp, "router", None)
        if router is not None:
            for item in range(3):
                _after(stack, router, caught.output(f"{at}.mlp.router.{item}", item))
        if hasattr(mlp, "experts"):
            _after(stack, mlp.experts, caught.output(f"{at}.mlp.experts"))
            _Gating(n, mlp.experts, caught).watch(stack)
        else:
            _after(stack, mlp, caught.output(f"{at}.mlp"))


class _Rotating:
    """Sees q and k after ``apply_rotary_pos_emb(q, k, ...)``, both (1, heads, T, C)."""

    def __init__(self, caught: _Caught) -> None:
        self.caught = caught
        self.block: int | None = None
        self._seen: set[int] = set()

    def at(self, n: int) -> Hook:
        def hook(*_: Any) -> None:
            self.block = n

        return hook

    def watch(self, stack: ExitStack, namespace: dict[str, Any]) -> None:
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

        stack.enter_context(_replaced(namespace, name, stand_in))


class _Gating:
    """Sees what ``_apply_gate`` of transformers' experts turns (rows, 2F) into (rows, F).

    Which token and which of its experts a row belongs to depends on the implementation:
    ``batched_mm`` keeps the order (T, A), ``grouped_mm`` sorts by expert, and ``eager`` calls once
    for each expert that has tokens, in ascending order.
    """

    def __init__(self, n: int, experts: Any, caught: _Caught) -> None:
        self.at, self.experts, self.caught = f"block.{n}.mlp.", experts, caught
        self.indices: Any = None
        self.calls: list[tuple[Any, Any]] = []

    def watch(self, stack: ExitStack) -> None:
        original = getattr(self.experts, "_apply_gate", None)
        if original is None:
            return

        def stand_in(gate_up: Any) -> Any:
            act = original(gate_up)
            self.calls.append((gate_up.detach().clone(), act.detach().clone()))
            return act

        stack.enter_context(_replaced(vars(self.experts), "_apply_gate", stand_in))
        _before(stack, self.experts, self._enters)
        _after(stack, self.experts, self._leaves)

    def _enters(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [*args, *kwargs.values()]
        self.indices = next(x for x in given if hasattr(x, "dtype") and not x.is_floating_point())
        self.calls.clear()

    def _leaves(self, *_: Any) -> None:
        rows = self._rows()
        if rows is None or sum(len(gate_up) for gate_up, _ in self.calls) != len(rows):
            return  # not one of the implementations above
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

    def experts_rows(self, item: int) -> Any:
        """All rows of gate_up (0) or of the activation (1) in the order of the calls."""
        torch = import_module("torch")
        return torch.cat([call[item] for call in self.calls])

    def _rows(self) -> Any:
        """For each row in the order of the calls, its place in (T, A) flattened; None: unknown."""
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


def _watch_openai(
    stack: ExitStack, root: Any, caught: _Caught, config: ModelConfig, length: int
) -> None:
    """Hooks of OpenAI's names, and a watch on the torch functions between the modules."""
    _after(stack, root.embedding, caught.output("embedding"))
    _after(stack, root.norm, caught.output("norm"))
    _after(stack, root.unembedding, caught.output("unembedding"))
    between = _Between(caught, config, length)
    for n, block in enumerate(root.block):
        at = f"block.{n}"
        attn, mlp = block.attn, block.mlp
        _after(stack, attn, caught.rounding)
        for name, part in (
            ("attn.norm", attn.norm),
            ("attn.qkv", attn.qkv),
            ("attn.out", attn.out),
            ("attn", attn),
            ("mlp.norm", mlp.norm),
            ("mlp.gate", mlp.gate),
            ("mlp", mlp),
        ):
            _after(stack, part, caught.output(f"{at}.{name}"))
        _before(stack, attn.out, caught.input(f"{at}.attn.out.input"))
        if hasattr(attn, "rope"):
            _after(stack, attn.rope, _rotated(caught, f"{at}.attn."))
        for part in ("attn", "mlp"):
            _before(stack, getattr(block, part), between.at(n, part))
        _after(stack, mlp, between.leaves_mlp)
        for part in ("attn", "mlp"):
            _after(stack, getattr(block, part), between.at(None, ""))
        between.watch_swiglu(stack, _globals(mlp))
    stack.enter_context(between.mode())


def _rotated(caught: _Caught, at: str) -> Hook:
    """A forward hook on OpenAI's RotaryEmbedding, which returns q (T, K, G, C) and k (T, K, C)."""

    def hook(_module: Any, _args: Any, value: Any) -> None:
        q = _item(value, 0)
        layout = "T K G C" if getattr(q, "ndim", 0) == 4 else ""
        caught.keep(f"{at}rotated q", q, at + "q_rope", layout)
        caught.keep(f"{at}rotated k", _item(value, 1), at + "k_rope")

    return hook


class _Between:
    """Sees what torch's functions return inside OpenAI's attention and expert modules.

    They are told apart by what they are given: the softmax over T + 1 columns gives the attention
    weights, the topk over E logits the experts, and the einsum of (T, A, D) with (T, A) sums the
    experts' outputs with their weights. That sum is what the experts add only if the module then
    returns just its input and it; else a bias, say, comes later, and both are left out.
    """

    def __init__(self, caught: _Caught, config: ModelConfig, length: int) -> None:
        self.caught, self.config, self.length = caught, config, length
        self.block: int | None = None
        self.part = ""
        self._sum: Any = None
        self._seen: set[int] = set()

    def at(self, n: int | None, part: str) -> Hook:
        def hook(*_: Any) -> None:
            self.block, self.part, self._sum = n, part, None

        return hook

    def watch_swiglu(self, stack: ExitStack, namespace: dict[str, Any]) -> None:
        original = namespace.get("swiglu")
        if original is None or id(namespace) in self._seen:
            return
        self._seen.add(id(namespace))

        def stand_in(x: Any, *args: Any, **kwargs: Any) -> Any:
            self._keep("gate_up", x)
            act = original(x, *args, **kwargs)
            self._keep("swiglu", act)
            return act

        stack.enter_context(_replaced(namespace, "swiglu", stand_in))

    def mode(self) -> Any:
        """A context in which every function of torch is shown to ``_called`` with its result."""
        base: Any = import_module("torch.overrides").TorchFunctionMode

        def torch_function(
            _mode: Any, function: Any, _types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = function(*args, **(kwargs or {}))
            if self.part:
                self._called(getattr(function, "__name__", ""), args, result)
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
        """A forward hook on the expert module, before it counts as left."""
        total = args[0] + self._sum if self._sum is not None and args else None
        added = total is not None and ((total == value) | (total != total)).all()
        if not added:
            for stage in ("expert_out", "out"):
                self.caught.drop(f"block.{self.block}.mlp.{stage} of a function")

    def _keep(self, stage: str, value: Any, layout: str = "") -> None:
        tap = f"block.{self.block}.{self.part}.{stage}"
        self.caught.keep(f"{tap} of a function", value, tap, layout)


def _flat(args: Iterable[Any]) -> Iterator[Any]:
    for arg in args:
        if isinstance(arg, tuple | list):
            yield from _flat(arg)
        else:
            yield arg
