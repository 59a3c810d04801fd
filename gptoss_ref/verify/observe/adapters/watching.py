"""Hooks and function wrappers that record arrays of torch modules, for `capture`."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from operator import itemgetter
from typing import Any

from gptoss_ref.numerics import Array
from gptoss_ref.tracing.trace import Skipped
from gptoss_ref.verify.observe.adapters.gradients import Tensors
from gptoss_ref.verify.observe.adapters.tensors import as_array

Hook = Callable[..., None]

_INSIDE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer")
"""The attributes in which wrappers of torch and PEFT keep the wrapped module."""


class Caught:
    """The arrays that hooks have recorded, under the other implementation's names."""

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}
        self.names: dict[str, tuple[str, str]] = {}
        self.dtype: str | None = None
        self.tensors: Tensors | None = None  # kept for gradients, if they are wanted
        self.skipped: dict[str, Skipped] = {}

    def skip(self, name: str, value: Any, why: str) -> None:
        """Note an array that fits no tap point; only the first one under each name."""
        shape = tuple(getattr(value, "shape", ()))
        self.skipped.setdefault(name, Skipped(name, shape, why))

    def keep(self, name: str, value: Any, tap: str | None = None, layout: str = "") -> None:
        """Keep one tensor; ``tap`` and ``layout`` for names that are not in names.py."""
        if value is None or not hasattr(value, "detach"):
            return
        if name not in self.arrays:  # only the first call of a module counts
            try:
                self.arrays[name] = as_array(value, name)
            except Exception as error:
                self.skip(name, value, f"cannot be read: {error}")
                return
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
        """A forward hook that keeps a module's output, or one of several outputs."""

        def hook(_module: Any, _args: Any, value: Any) -> None:
            self.keep(name, item_of(value, item))

        return hook

    def input(self, name: str) -> Hook:
        """A forward pre-hook that keeps a module's first input."""

        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.keep(name, args[0] if args else next(iter(kwargs.values()), None))

        return hook

    def rounding(self, _module: Any, _args: Any, value: Any) -> None:
        """A forward hook that notes the dtype in which the model computes."""
        name = str(getattr(item_of(value, 0), "dtype", "")).removeprefix("torch.")
        self.dtype = name if name in ("float64", "float32", "bfloat16", "float16") else None


def item_of(value: Any, item: int) -> Any:
    """One of several outputs of a module (a single output is item 0); None if it is missing."""
    if isinstance(value, tuple | list):
        return value[item] if item < len(value) else None
    return value if item == 0 else None


@contextmanager
def replaced(namespace: dict[str, Any], name: str, value: Any) -> Iterator[None]:
    """Set ``namespace[name]`` to ``value`` during the block."""
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


class Watch(ExitStack):
    """Hooks and function wrappers for one pass, and the arrays that they record.

    An error in a hook is noted as a skipped array, and the pass continues.
    """

    def __init__(self, caught: Caught) -> None:
        super().__init__()
        self.caught = caught

    def on_exit(self, module: Any, hook: Hook) -> None:
        """Call ``hook(module, args, output)`` after the module; no effect if it is None."""
        if module is not None:
            self.callback(module.register_forward_hook(self.guarded(hook)).remove)

    def on_entry(self, module: Any, hook: Hook) -> None:
        """Call ``hook(module, args, kwargs)`` before the module."""
        if module is not None:
            handle = module.register_forward_pre_hook(self.guarded(hook), with_kwargs=True)
            self.callback(handle.remove)

    def guarded(self, hook: Hook) -> Hook:
        """The hook with errors caught and noted."""

        @functools.wraps(hook)
        def call(*args: Any) -> None:
            try:
                hook(*args)
            except Exception as error:
                what = getattr(hook, "__qualname__", repr(hook)).split(".")[0].strip("_")
                self.caught.skip(what, None, f"{type(error).__name__}: {error}")

        return call


def inside(module: Any) -> Any:
    """The module inside a wrapper of torch or PEFT; other modules unchanged."""
    while True:
        held = (getattr(module, "_modules", {}).get(name) for name in _INSIDE)
        inner = next((part for part in held if part is not None), None)
        if inner is None:
            return module
        module = inner


def blocks_of(layers: Any) -> Iterator[tuple[int, Any]]:
    """Number and module of each block, from a list of modules or a dict.

    The number is the last one in a key, such as ``"3"`` or ``"layer_3"``; a key without one is no
    block. If no key has one, or two have the same, it is the place.
    """
    if not hasattr(layers, "items"):
        yield from enumerate(layers)
        return
    named = [(re.search(r"(\d+)\D*$", str(key)), block) for key, block in layers.items()]
    found = {int(match[1]): block for match, block in named if match}
    if not found or len(found) < sum(match is not None for match, _ in named):
        found = dict(enumerate(block for _, block in named))
    yield from sorted(found.items(), key=itemgetter(0))


def part_of(module: Any, path: str) -> Any:
    """The submodule with that dotted name; None if there is none."""
    for name in path.split("."):
        module = getattr(module, name, None)
    return module if hasattr(module, "register_forward_hook") else None


def namespace_of(module: Any) -> dict[str, Any]:
    """The namespace in which a module's forward method looks up the functions that it calls."""
    forward = inspect.unwrap(inside(module).forward)
    found: dict[str, Any] = getattr(getattr(forward, "__func__", forward), "__globals__", {})
    return found
