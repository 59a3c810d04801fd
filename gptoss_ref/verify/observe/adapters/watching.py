"""Hooks on torch modules that keep what passes, and stand-ins for functions: tools of `capture`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from operator import itemgetter
from typing import Any

from gptoss_ref.numerics import Array
from gptoss_ref.verify.observe.adapters.gradients import Tensors
from gptoss_ref.verify.observe.adapters.tensors import as_array

Hook = Callable[..., None]


class Caught:
    """What the hooks have seen: arrays under the other side's names."""

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}
        self.names: dict[str, tuple[str, str]] = {}
        self.dtype: str | None = None
        self.tensors: Tensors | None = None  # to be differentiated, if gradients are wanted

    def keep(self, name: str, value: Any, tap: str | None = None, layout: str = "") -> None:
        """One tensor; ``tap`` and ``layout`` where names.py does not know the name."""
        if value is None or not hasattr(value, "detach"):
            return
        if name not in self.arrays:  # a module that is called again computes something else
            self.arrays[name] = as_array(value, name)
            if self.tensors is not None and value.requires_grad:
                self.tensors[name] = [value], itemgetter(0)
            if tap is not None:
                self.names[name] = (tap, layout)

    def drop(self, name: str) -> None:
        """Forget one tensor, if it was kept."""
        self.arrays.pop(name, None)
        self.names.pop(name, None)
        if self.tensors is not None:
            self.tensors.pop(name, None)

    def output(self, name: str, item: int = 0) -> Hook:
        """A forward hook that keeps a module's output, or one of several."""

        def hook(_module: Any, _args: Any, value: Any) -> None:
            self.keep(name, item_of(value, item))

        return hook

    def input(self, name: str) -> Hook:
        """A forward pre-hook that keeps a module's first input."""

        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.keep(name, args[0] if args else next(iter(kwargs.values()), None))

        return hook

    def rounding(self, _module: Any, _args: Any, value: Any) -> None:
        """A forward hook that notes in what the model computes."""
        name = str(getattr(item_of(value, 0), "dtype", "")).removeprefix("torch.")
        self.dtype = name if name in ("float64", "float32", "bfloat16", "float16") else None


def item_of(value: Any, item: int) -> Any:
    """One of several outputs of a module; a single output is its item 0, and None is absent."""
    if isinstance(value, tuple | list):
        return value[item] if item < len(value) else None
    return value if item == 0 else None


@contextmanager
def replaced(namespace: dict[str, Any], name: str, value: Any) -> Iterator[None]:
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


def on_exit(stack: ExitStack, module: Any, hook: Hook) -> None:
    """Call ``hook(module, args, output)`` after the module, until the stack closes."""
    if module is not None:
        stack.callback(module.register_forward_hook(hook).remove)


def on_entry(stack: ExitStack, module: Any, hook: Hook) -> None:
    """Call ``hook(module, args, kwargs)`` before the module, until the stack closes."""
    if module is not None:
        stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)


def part_of(module: Any, path: str) -> Any:
    """The submodule of that dotted name; None if somebody's version of the model lacks it."""
    for name in path.split("."):
        module = getattr(module, name, None)
    return module if hasattr(module, "register_forward_hook") else None


def namespace_of(module: Any) -> dict[str, Any]:
    """The namespace in which a module's forward looks up the functions it calls."""
    forward = inspect.unwrap(module.forward)
    found: dict[str, Any] = getattr(getattr(forward, "__func__", forward), "__globals__", {})
    return found
