"""Hooks of `capture` for modules with other naming schemes: every module with a known name.

TransformerLens' hook points are modules whose output is the observed array.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from gptoss_ref.config import ModelConfig
from gptoss_ref.verify.observe.adapters.names import bare
from gptoss_ref.verify.observe.adapters.watching import Caught, Hook, Watch


def watch_names(
    watch: Watch, module: Any, caught: Caught, wanted: Collection[str], *, list_others: bool
) -> None:
    """Put hooks on the modules whose names are ``wanted``.

    A name that ends in ``.input`` is the input of a module; one that ends in a number is one of
    several outputs. ``list_others`` notes the other modules as skipped.
    """
    points = getattr(module, "hook_dict", None)  # of TransformerLens, under its own names
    for path, part in module.named_modules() if points is None else points.items():
        if not path:
            continue
        found = [name for name in dict.fromkeys((path, bare(path))) if _known(name, wanted)]
        if found:
            watch.on_exit(part, _outputs(caught, found[0], wanted))
            if f"{found[0]}.input" in wanted:
                watch.on_entry(part, caught.input(f"{found[0]}.input"))
        elif list_others and not any(True for _ in part.children()):
            watch.on_exit(part, _unknown(caught, path))


def keep_logits(caught: Caught, result: Any, config: ModelConfig, length: int) -> None:
    """Keep the model's result as the logits, if it has their shape and no hook recorded them."""
    values = result.get("logits") if isinstance(result, Mapping) else result
    values = getattr(values, "logits", values)
    values = values[0] if isinstance(values, tuple | list) and values else values
    shape = tuple(getattr(values, "shape", ()))
    seen = {"lm_head", "unembedding", "unembed.hook_out"}.intersection(caught.arrays)
    if shape in ((1, length, config.vocab_size), (length, config.vocab_size)) and not seen:
        caught.keep("logits", values)


def _known(name: str, wanted: Collection[str]) -> bool:
    return any(f"{name}{end}" in wanted for end in ("", ".input", ".0", ".1", ".2"))


def _outputs(caught: Caught, name: str, wanted: Collection[str]) -> Hook:
    """A forward hook that keeps a module's output, and each of several outputs by number."""

    def hook(_module: Any, _args: Any, value: Any) -> None:
        items = value if isinstance(value, tuple | list) else [value]
        for n, item in enumerate(items):
            if f"{name}.{n}" in wanted:
                caught.keep(f"{name}.{n}", item)
            elif n == 0 and name in wanted:
                caught.keep(name, item)
                caught.rounding(_module, _args, item)

    return hook


def _unknown(caught: Caught, path: str) -> Hook:
    def hook(_module: Any, _args: Any, value: Any) -> None:
        caught.skip(path, value, "no tap point is known under this name")

    return hook
