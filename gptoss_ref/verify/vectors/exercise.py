"""Check a Python function against the vectors of one operation."""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gptoss_ref._files import read_bounded
from gptoss_ref.errors import GptOssError
from gptoss_ref.numerics import Array
from gptoss_ref.verify.vectors.case import Case
from gptoss_ref.verify.vectors.judge import Finding, Judgement, judge_case
from gptoss_ref.verify.vectors.operation import Operation
from gptoss_ref.verify.vectors.operations import OPERATIONS
from gptoss_ref.verify.vectors.suite import cases_of, stored


def check_function(function: Callable[..., Any], operation: str) -> Judgement:
    """Call ``function`` with every case of ``operation``, and judge its results.

    It gets the inputs as float64, int64 or uint8 arrays, then the parameters as numbers, all by
    position and in the order of the operation's signature. It returns one array, or a tuple of them
    in the order of the outputs. If it raises, the case is wrong.

    Raises:
        GptOssError: the operation is unknown, or the function does not accept its arguments.
    """
    wanted = find_operation(operation)
    _check_signature(function, wanted)
    return Judgement(tuple(_try(function, case) for case in cases_of(wanted)))


def check_file(place: str, operation: str) -> Judgement:
    """:func:`check_function` for a function in a file, given as ``FILE.py:FUNCTION``.

    The file can import modules in its folder, as it can if it is run as a script.

    Raises:
        GptOssError: the operation, file or function does not exist, or the file does not run.
    """
    find_operation(operation)
    with _importing_from(Path(place.rpartition(":")[0]).resolve().parent):
        return check_function(load_function(place), operation)


@contextlib.contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Put ``folder`` first on ``sys.path``; remove it, and modules imported from it, afterwards."""
    path, modules = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = path
        for name in sys.modules.keys() - modules:
            file = getattr(sys.modules[name], "__file__", None)
            if file is not None and folder in Path(file).parents:
                del sys.modules[name]


def find_operation(name: str) -> Operation:
    """The operation with that name.

    Raises:
        GptOssError: it is unknown; the message suggests the nearest name.
    """
    if name not in OPERATIONS:
        near = difflib.get_close_matches(name, OPERATIONS, 1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(OPERATIONS)}"
        raise GptOssError(f"unknown operation {name!r}: {hint}")
    return OPERATIONS[name]


def load_function(place: str) -> Callable[..., Any]:
    """Run a file and return its function, given as ``FILE.py:FUNCTION``.

    Raises:
        GptOssError: the file or function does not exist, or the file does not run.
    """
    path, separator, name = place.rpartition(":")
    if not separator or not name.isidentifier() or not path.endswith(".py"):
        raise GptOssError(f"{place}: expected FILE.py:FUNCTION{_example(place)}")
    if not Path(path).is_file():
        raise GptOssError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location("learner", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their annotations there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise GptOssError(f"{path}: {_what_happened(error, path)}") from None
    function: Callable[..., Any] | None = getattr(module, name, None)
    if not callable(function):
        own = [
            n
            for n, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", "") == spec.name and n[0] != "_"
        ]
        near = difflib.get_close_matches(name, own, 1)
        hint = f" (nearest: {near[0]})" if near else ""
        has = f"its functions are {', '.join(own)}" if own else "it defines none"
        raise GptOssError(f"{path}: has no function {name}{hint}: {has}")
    return function


def _example(place: str) -> str:
    """``, such as FILE.py:FUNCTION`` with a function of the file; empty if it has none."""
    try:
        tree = ast.parse(read_bounded(Path(place)))
    except (OSError, SyntaxError, ValueError):  # no such file, or not Python
        return ""
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    return f", such as {place}:{names[0]}" if names else ""


def _check_signature(function: Callable[..., Any], operation: Operation) -> None:
    """Raises GptOssError if the function does not accept the operation's arguments.

    The message has its signature and the expected one.
    """
    case = cases_of(operation)[0]
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # no signature, as for some builtins: the call will fail
        return
    try:
        signature.bind(*case.inputs.values(), *case.parameters.values())
    except TypeError as error:
        name = getattr(function, "__name__", "the function")
        raise GptOssError(
            f"{name}{signature} does not take these arguments ({error}): "
            f"expected {operation.signature}"
        ) from None


def _try(function: Callable[..., Any], case: Case) -> Finding:
    given = [_handed(values) for values in case.inputs.values()]
    try:
        with np.errstate(all="ignore"):
            returned = function(*given, *case.parameters.values())
    except (Exception, SystemExit) as error:
        file = getattr(getattr(function, "__code__", None), "co_filename", "")
        return Finding(case, "wrong", note=f"raised {_what_happened(error, file)}")
    names = list(case.operation.outputs)
    answers = returned if isinstance(returned, tuple) else (returned,)
    if len(answers) != len(names):
        return Finding(
            *(case, "wrong", None),
            f"returned {len(answers)} {'value' if len(answers) == 1 else 'values'}: "
            f"expected {len(names)} ({', '.join(names)})",
        )
    outputs: dict[str, Array] = {}
    for name, answer in zip(names, answers, strict=True):
        if answer is None:
            return Finding(case, "wrong", note=f"returned None for {name}")
        # a single value may be a Python number
        as_array = np.atleast_1d if case.operation.outputs[name] == "1" else np.asarray
        try:
            outputs[name] = as_array(answer)
        except Exception as error:  # a ragged list, a tensor of some library
            note = f"did not return an array for {name}: {_what_happened(error, '')}"
            return Finding(case, "wrong", note=note)
    return judge_case(case, outputs)


def _handed(values: Array) -> Array:
    """A writable copy, so that a function may work in place."""
    kind = {"f": np.float64, "i": np.int64}.get(stored(values).dtype.kind, np.uint8)
    return np.array(values, kind)


def _what_happened(error: BaseException, file: str) -> str:
    """Type and message of an exception, and the last line of ``file`` in its traceback."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    where = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"
