"""Record the calls of a model's parts, for frameworks without hooks.

During one pass, the classes of the parts get a ``__call__`` that records arguments and results.
mlx, keras and flax run their modules through ``__call__``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from gptoss_ref.config import ModelConfig
from gptoss_ref.errors import TraceError
from gptoss_ref.numerics import Array
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.verify.observe.adapters.arrays import Names, from_arrays
from gptoss_ref.verify.observe.adapters.framework_names import FRAMEWORKS, names_in

_NAME = re.compile(r"(?P<path>.*?)(?P<call>#\d+)?(?:\.input(?:\.(?P<argument>\d+))?)?")


def capture_calls(
    model: Any,
    run: Callable[[], Any],
    tokens: Iterable[int] | Array,
    config: ModelConfig,
    *,
    framework: str | None = None,
    names: Names | None = None,
    producer: str | None = None,
) -> Trace:
    """Run a model of any framework, and keep arguments and results of the calls of its parts.

    Arrays that fit no tap point are listed in ``trace.skipped``.

    Args:
        model: the object at which the paths begin.
        run: a function that runs it once on the prompt, uncompiled; its result is ignored.
        tokens: (T,), the prompt.
        config: of the model.
        framework: the names to use: mlx, keras_hub or torchtitan; None: only ``names``.
        names: the meaning of further paths, see
            :mod:`~gptoss_ref.verify.observe.adapters.framework_names`.
        producer: the program that computes, in words.

    Raises:
        TraceError: an unknown framework, or none of the parts was called.
    """
    if framework is not None and framework not in FRAMEWORKS:
        raise TraceError(f"unknown framework {framework!r}: expected {', '.join(FRAMEWORKS)}")
    wanted: dict[str, Any] = {} if framework is None else dict(names_in(framework, config))
    wanted |= names or {}
    recorder = _Recorder(model, wanted)
    with ExitStack() as stack:
        for kind in recorder.kinds:
            stack.enter_context(_watched(kind, recorder))
        run()
    if not recorder.arrays:
        raise TraceError(
            f"no known part of {type(model).__qualname__} was called; the first known path is "
            f"{next(iter(wanted), 'none')!r}: pass names="
        )
    return from_arrays(
        recorder.arrays,
        tokens,
        config,
        names=wanted,
        producer=producer or framework or type(model).__qualname__,
        unknown="skip",
    )


class _Recorder:
    """The recorded calls of the named parts.

    Attributes:
        arrays: by name.
        kinds: the classes of the parts.
    """

    def __init__(self, model: Any, wanted: Iterable[str]) -> None:
        self.arrays: dict[str, Any] = {}
        self._calls: dict[int, int] = {}
        self._names: dict[int, list[tuple[str, int, int | None, int]]] = {}
        self._parts: dict[int, Any] = {}  # kept alive, so that their ids stay unique
        for name in wanted:
            for path, item in ((name, 0), *_item(name)):
                found = _NAME.fullmatch(path)
                part = found and _at(model, found["path"])
                if found and part is not None:
                    call = int(found["call"][1:]) if found["call"] else 1
                    entering = ".input" in path[len(found["path"]) :]
                    argument = int(found["argument"] or 1) if entering else None
                    self._parts[id(part)] = part
                    self._names.setdefault(id(part), []).append((name, call, argument, item))
                    break
        self.kinds = {type(part) for part in self._parts.values()}

    def note(self, part: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """One call."""
        call = self._calls[id(part)] = self._calls.get(id(part), 0) + 1
        given = [*args, *kwargs.values()]
        for name, wanted, argument, item in self._names.get(id(part), ()):
            if call != wanted or (argument is not None and argument > len(given)):
                continue
            value = result if argument is None else given[argument - 1]
            if argument is None and isinstance(result, tuple | list):
                value = result[item] if item < len(result) else None
            if hasattr(value, "shape"):
                self.arrays[name] = value


def _item(name: str) -> list[tuple[str, int]]:
    """Split a name that ends in the number of a result into the name and the number."""
    head, _, last = name.rpartition(".")
    return [(head, int(last))] if last.isdecimal() and ".input." not in name else []


def _at(model: Any, path: str) -> Any:
    """The object at a dotted path of attributes, keys and indices; None if there is none."""
    part = model
    for step in filter(None, path.split(".")):
        if step.isdecimal() and not hasattr(part, step):
            try:
                part = part[int(step)] if not hasattr(part, "keys") else part[step]
            except (LookupError, TypeError):
                return None
        else:
            part = getattr(part, step, None)
    return part if callable(part) else None


@contextmanager
def _watched(kind: Any, recorder: _Recorder) -> Iterator[None]:
    """Record the calls of a class during the block."""
    own, original = vars(kind).get("__call__"), kind.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        recorder.note(self, args, kwargs, result)
        return result

    kind.__call__ = call
    try:
        yield
    finally:
        if own is None:
            del kind.__call__
        else:
            kind.__call__ = own
