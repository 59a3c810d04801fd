"""What a live torch model computes, caught by hooks: transformers' and OpenAI's module names.

Forward hooks see what enters and leaves a module. What happens between modules is seen by standing
in for a function for the time of one pass, where the model has it under a name of its own. What
cannot be seen is left out. Everything is put back afterwards, also after an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any

import numpy as np

from gptoss_ref.config import ModelConfig
from gptoss_ref.errors import ConfigError, TraceError
from gptoss_ref.numerics import Array
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.verify.observe.adapters.arrays import from_arrays
from gptoss_ref.verify.observe.adapters.gradients import cross_entropy, differentiated
from gptoss_ref.verify.observe.adapters.torch_openai import watch_openai
from gptoss_ref.verify.observe.adapters.torch_transformers import watch_transformers
from gptoss_ref.verify.observe.adapters.watching import Caught


def capture(
    module: Any,
    tokens: Iterable[int] | Array,
    *,
    config: ModelConfig | None = None,
    targets: Iterable[int] | Array | None = None,
    loss: Callable[[Any, Any], Any] | None = None,
    router_aux_loss_coef: float = 0.0,
) -> Trace:
    """Run somebody's torch model on one prompt and keep what its tap points see.

    The module runs in evaluation mode, without gradients unless targets are given, and is left as
    it was; its parameters' own ``grad`` is not touched.

    Args:
        module: transformers' ``GptOssForCausalLM`` (or its ``GptOssModel``: no logits), or a module
            with the names of OpenAI's ``Transformer``; plain or inside a wrapper.
        tokens: (T,), the whole prompt.
        config: what the module is meant to be. None takes what the module says of itself.
        targets: (T,), the id that each position should predict, −100 where it does not count: then
            the trace also holds the gradients of the loss, for what was seen and for the weights.
            A parameter that may be trained and gets no gradient counts as zero.
        loss: called with the module's logits (T, V) and the targets (T,), both tensors, for a loss
            of your own that should be the cross entropy; None: torch's.
        router_aux_loss_coef: of the load-balancing loss that ``loss`` includes, if it does.

    Raises:
        TraceError: the module has neither naming, its outputs do not fit the configuration, or the
            tokens do not fit the vocabulary.
        ConfigError: the module's own configuration is unusable, and none is given.
    """
    ids = np.asarray(tokens if isinstance(tokens, np.ndarray) else list(tokens))
    naming, root, head = _recognised(module)
    config = config or (_own_config(module) if naming == "transformers" else _openai_config(root))
    Trace({}, tokens=ids, config=config)  # the prompt is judged before the model runs
    wanted = None if targets is None else Trace({}, tokens=ids, config=config, targets=targets)
    caught = Caught()
    torch = import_module("torch")
    if wanted is not None:
        caught.tensors = {}
    with ExitStack() as stack, torch.set_grad_enabled(wanted is not None):
        stack.enter_context(_evaluating(module))
        if naming == "transformers":
            watch_transformers(stack, root, head, caught)
            where = _device(root.embed_tokens)
            runner, extra = (module if head is not None else root), {"use_cache": False}
            prompt = torch.tensor(ids[None], device=where)  # (1, T)
        else:
            watch_openai(stack, root, caught, config, len(ids))
            runner, extra = root, {}
            prompt = torch.tensor(ids, device=_device(root.embedding))  # (T,)
        result = runner(prompt, **extra)
        if wanted is not None:
            logits = getattr(result, "logits", result)
            logits = logits[0] if logits.ndim == 3 else logits
            value = (loss or cross_entropy(torch))(
                logits, torch.tensor(wanted.targets, device=logits.device)
            )
            found = differentiated(torch, module, config, caught.tensors or {}, value)
            caught.arrays |= found
    trace = from_arrays(
        caught.arrays,
        ids,
        config,
        names=caught.names,
        producer=f"{type(module).__module__.partition('.')[0]} {type(module).__qualname__}",
        dtype=caught.dtype,
        targets=targets,
        router_aux_loss_coef=router_aux_loss_coef,
    )
    if not trace:
        raise TraceError(f"{type(module).__qualname__} ran, but none of its modules was called")
    return trace


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
