"""Record the arrays of a live torch model with hooks: transformers' and OpenAI's module names.

Forward hooks record the inputs and outputs of modules. Arrays between modules are recorded by
wrapping named functions during the pass. Arrays that neither can reach are left out. All hooks and
wrappers are removed afterwards, also after an error.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any, cast

import numpy as np

from gptoss_ref.config import ModelConfig
from gptoss_ref.errors import TraceError
from gptoss_ref.numerics import Array
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.verify.observe.adapters.arrays import Names, from_arrays
from gptoss_ref.verify.observe.adapters.framework_names import names_in
from gptoss_ref.verify.observe.adapters.gradients import cross_entropy, differentiated
from gptoss_ref.verify.observe.adapters.names import lookup
from gptoss_ref.verify.observe.adapters.torch_config import own_config
from gptoss_ref.verify.observe.adapters.torch_names import keep_logits, watch_names
from gptoss_ref.verify.observe.adapters.torch_openai import watch_openai
from gptoss_ref.verify.observe.adapters.torch_transformers import watch_transformers
from gptoss_ref.verify.observe.adapters.watching import Caught, Watch


def capture(
    module: Any,
    tokens: Iterable[int] | Array,
    *,
    config: ModelConfig | None = None,
    names: Names | None = None,
    run: Callable[[Any], Any] | None = None,
    targets: Iterable[int] | Array | None = None,
    loss: Callable[[Any, Any], Any] | None = None,
    router_aux_loss_coef: float = 0.0,
) -> Trace:
    """Run a torch model on one prompt, and keep the arrays of its tap points.

    The module runs in evaluation mode, without gradients unless targets are given. Afterwards it is
    unchanged, including the ``grad`` of its parameters. Modules compiled by torch.compile run
    uncompiled. Recorded arrays that fit no tap point are listed in ``trace.skipped``.

    Args:
        module: transformers' ``GptOssForCausalLM`` (or its ``GptOssModel``: no logits), a module
            with the names of OpenAI's ``Transformer``, plain or inside a wrapper, torchtitan's
            ``GptOssModel``, or any other module: then the outputs of modules with known names are
            kept, and those of TransformerLens' hook points.
        tokens: (T,), the whole prompt.
        config: the intended configuration; None takes that of the module.
        names: the meaning of outputs of modules with other names, and their axes; see
            :func:`~gptoss_ref.verify.observe.adapters.from_arrays`.
        run: called with the prompt as a tensor (1, T), if ``module(prompt)`` is not the right call.
        targets: (T,), the id that each position should predict, −100 for positions without a loss.
            With targets the trace also holds the gradients of the loss, for the recorded arrays and
            for the weights. A trainable parameter without a gradient has the gradient zero.
        loss: called with the module's logits (T, V) and the targets (T,), both tensors; a loss
            function to check, which should be the cross entropy. None: that of torch.
        router_aux_loss_coef: coefficient of the load-balancing loss, if ``loss`` includes it.

    Raises:
        TraceError: it is not a torch module, its configuration is unknown and none is given, or
            none of its modules was called.
        TokenError: the tokens do not fit the vocabulary.
        ConfigError: the module's configuration is invalid, and none is given.
    """
    ids = np.asarray(tokens if isinstance(tokens, np.ndarray) else list(tokens))
    naming, root, head = _recognised(module)
    config = config or own_config(module, root, naming)
    Trace({}, tokens=ids, config=config)  # checks the prompt before the model runs
    wanted = None if targets is None else Trace({}, tokens=ids, config=config, targets=targets)
    caught = Caught()
    torch = import_module("torch")
    if wanted is not None:
        caught.tensors = {}
    with Watch(caught) as watch, torch.set_grad_enabled(wanted is not None):
        watch.enter_context(_evaluating(module))
        watch.enter_context(_as_written(torch, module, backward=wanted is not None))
        prompt = torch.tensor(ids[None], device=_device(module))  # (1, T)
        runner: Callable[..., Any] = module
        if naming == "transformers":
            watch_transformers(watch, root, head, caught)
            runner = _without_cache(module if head is not None else root)
        elif naming == "openai":
            watch_openai(watch, root, caught, config, len(ids))
            prompt, runner = prompt[0], root
        if naming is None and hasattr(root, "tok_embeddings"):
            names = {**names_in("torchtitan", config), **(names or {})}
        known = lookup(config) if naming is None else {}
        watch_names(watch, module, caught, {*(names or {}), *known}, list_others=naming is None)
        result = (run or runner)(prompt)
        if naming != "transformers" or head is not None:
            keep_logits(caught, result, config, len(ids))
        if wanted is not None:
            logits = getattr(result, "logits", result)
            logits = logits[0] if logits.ndim == 3 else logits
            value = (loss or cross_entropy(torch))(
                logits, torch.tensor(wanted.targets, device=logits.device)
            )
            found = differentiated(torch, module, config, caught.tensors or {}, value)
            caught.arrays |= found
    if not caught.arrays:
        seen = ", ".join(skipped.name for skipped in caught.skipped.values())
        raise TraceError(
            f"{type(module).__qualname__} ran, but none of its modules has a known name: map some "
            f"with names=; it has {seen[:400] or 'no modules that were called'}"
        )
    trace = from_arrays(
        caught.arrays,
        ids,
        config,
        names={**caught.names, **(names or {})},
        producer=f"{type(module).__module__.partition('.')[0]} {type(module).__qualname__}",
        dtype=caught.dtype,
        targets=targets,
        router_aux_loss_coef=router_aux_loss_coef,
        unknown="skip",
    )
    trace.skipped = (*caught.skipped.values(), *trace.skipped)
    return trace


def _recognised(module: Any) -> tuple[str | None, Any, Any]:
    """The naming scheme, the module that holds the blocks, and transformers' head or None."""
    if not hasattr(module, "named_modules"):
        raise TraceError(f"expected a torch module, not {type(module).__qualname__}")
    if hasattr(module, "hook_dict"):  # TransformerLens, whose hook points record more
        return None, module, None
    modules = dict(module.named_modules())
    for path, candidate in modules.items():
        if hasattr(candidate, "embed_tokens") and hasattr(candidate, "layers"):
            above = modules.get(path.rpartition(".")[0]) if path else None
            return "transformers", candidate, getattr(above, "lm_head", None)
        if all(hasattr(candidate, name) for name in ("embedding", "block", "norm", "unembedding")):
            return "openai", candidate, None
    return None, module, None


def _device(module: Any) -> Any:
    weight = next(module.parameters(), None)
    if weight is None:
        raise TraceError(f"{type(module).__qualname__} has no weights")
    if weight.device.type == "meta":
        raise TraceError("the module has no weights: its parameters are on the meta device")
    return weight.device


@contextmanager
def _evaluating(module: Any) -> Iterator[None]:
    """Set evaluation mode during the block, and restore each submodule's mode afterwards."""
    before = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training


@contextmanager
def _as_written(torch: Any, module: Any, *, backward: bool) -> Iterator[None]:
    """Run compiled modules and functions uncompiled during the block, so that hooks are called.

    An uncompiled flex_attention compiles itself again unless its own flag is set; with that flag
    torch does not promise correct gradients.
    """
    flex = sys.modules.get("torch.nn.attention.flex_attention")
    flag = "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"
    uncompiled = hasattr(flex, flag) and not backward
    compiled = any(
        getattr(part, "_compiled_call_impl", None) is not None or hasattr(part, "_orig_mod")
        for part in module.modules()
    )
    if not (compiled or uncompiled) or not hasattr(torch.compiler, "set_stance"):
        yield
        return
    before = getattr(flex, flag, None)
    try:
        if uncompiled:
            setattr(flex, flag, True)
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        if uncompiled:
            setattr(flex, flag, before)


def _without_cache(module: Any) -> Callable[..., Any]:
    """A call of the module without a key/value cache, if it has an argument for that."""
    parameters = inspect.signature(module.forward).parameters.values()
    takes = any(p.name == "use_cache" or p.kind is p.VAR_KEYWORD for p in parameters)
    return partial(module, use_cache=False) if takes else cast(Callable[..., Any], module)
