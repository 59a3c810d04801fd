"""Distribution of a kernel's tasks: all on the calling thread, or one range on each thread.

The body of a kernel is compiled once for any number of threads, and called by its address. The
single ``prange`` loop is compiled once, too: it gets addresses and numbers only, and serves all
kernels. (If a ``prange`` loop contained the body, Numba would compile the body five times.)

An exception in a task is lost if there are several threads, as in any ``prange`` loop. Therefore
kernels do not raise; they set a value that Python checks afterwards. An error found by
``NUMBA_BOUNDSCHECK`` is reported on one thread only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import prange, typeof, types
from numba.core import cgutils, config
from numba.extending import intrinsic

from gptoss_ref.kernels.runtime.jit import jit_inner, jit_parallel

Team = tuple[int, int]
"""The number of threads, and the address of the function that runs tasks on them."""

ALONE: Team = (1, 0)
"""The team that is the calling thread only."""

_NUMBER = types.int64
_RANGE = (_NUMBER, _NUMBER)
_TASK = (_NUMBER, *_RANGE)
_LOOP = (_NUMBER, _NUMBER, _NUMBER, _NUMBER)


def jit_tasks(function: Callable[..., None]) -> Callable[..., None]:
    """Wrap f(…, start, stop) as g(…, tasks, team), which splits the tasks over the team's threads.

    ``g`` can be called in kernels only. Numba must have been told the number of threads.
    """
    if config.DISABLE_JIT:
        return lambda *arguments: function(*arguments[:-2], 0, arguments[-2])
    return cast(Callable[..., None], _in_ranges(jit_inner(function)))


def by_address(kernel: Any) -> Any:
    """Return a function of (address, arguments) that calls ``kernel`` from inside another kernel.

    The called kernel is compiled once, and not again inside every caller. :func:`address_of` gives
    the address.
    """
    if config.DISABLE_JIT:
        return lambda address, *arguments: kernel(*arguments)

    @intrinsic
    def call(typing_context: Any, address: Any, *arguments: Any) -> Any:
        given = tuple(types.unliteral(type_) for type_ in arguments)

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            type_ = context.call_conv.get_function_type(types.none, given)
            callee = builder.inttoptr(args[0], type_.as_pointer())
            values = _cast(context, builder, args[1], arguments, given)
            _call_checked(context, builder, callee, given, values)
            return context.get_dummy_value()

        return types.none(address, types.StarArgTuple(arguments)), generate

    return call


def address_of(kernel: Any, *arguments: Any) -> int:
    """Compile ``kernel`` for arguments of the given types, and return its address."""
    if config.DISABLE_JIT:
        return 0
    given = tuple(typeof(argument) for argument in arguments)
    kernel.compile(given)
    compiled = kernel.overloads[given]
    return int(compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name))


_task_at = by_address(None)  # called in compiled code only


@jit_parallel
def _on_threads(task: int, packed: int, tasks: int, n: int) -> None:
    for t in prange(n):
        _task_at(task, packed, np.int64(t * tasks // n), np.int64((t + 1) * tasks // n))


@cache
def _loop() -> int:
    """Return the address of :func:`_on_threads`."""
    return address_of(_on_threads, 0, 0, 0, 0)


def team_of(n: int) -> Team:
    """Return a team of ``n`` threads, which must have been started."""
    return n, _loop()


def _in_ranges(part: Any) -> Any:
    """Return the intrinsic that :func:`jit_tasks` calls for ``part``."""

    @intrinsic
    def in_ranges(typing_context: Any, *arguments: Any) -> Any:
        given = tuple(types.unliteral(type_) for type_ in arguments[:-2])
        to = (*given, _NUMBER, types.UniTuple(_NUMBER, 2))
        called = types.Dispatcher(part).get_call_type(typing_context, (*given, *_RANGE), {})
        compiled = part.overloads[called.args]

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            context.add_linking_libs((compiled.library,))
            *values, tasks, team = _cast(context, builder, args[0], arguments, to)
            values = [
                _borrowed(context, builder, *each) for each in zip(given, values, strict=True)
            ]
            n, on_threads = cgutils.unpack_tuple(builder, team)
            room = cgutils.alloca_once_value(builder, cgutils.pack_struct(builder, values))
            packed = builder.ptrtoint(room, ir.IntType(64))
            task = _task(context, builder.module, compiled.fndesc, given, room.type)
            alone = builder.icmp_unsigned("==", n, n.type(1))
            with builder.if_else(alone) as (directly, together):
                with directly:
                    _call_checked(context, builder, task, _TASK, (packed, tasks.type(0), tasks))
                with together:
                    loop = context.call_conv.get_function_type(types.none, _LOOP).as_pointer()
                    address = builder.ptrtoint(task, ir.IntType(64))
                    numbers = (address, packed, tasks, n)
                    on_threads = builder.inttoptr(on_threads, loop)
                    _call_checked(context, builder, on_threads, _LOOP, numbers)
            return context.get_dummy_value()

        return types.none(types.StarArgTuple(arguments)), generate

    return in_ranges


def _borrowed(context: Any, builder: Any, type_: Any, value: Any) -> Any:
    """Remove the reference counts from arrays, so that threads do not contend for them.

    The caller keeps the arrays alive.
    """
    if isinstance(type_, types.BaseTuple):
        for i, element in enumerate(type_):
            lent = _borrowed(context, builder, element, builder.extract_value(value, i))
            value = builder.insert_value(value, lent, i)
    elif isinstance(type_, types.Array):
        array = context.make_array(type_)(context, builder, value)
        array.meminfo = cgutils.get_null_value(array.meminfo.type)
        array.parent = cgutils.get_null_value(array.parent.type)
        value = array._getvalue()
    return value


def _task(context: Any, module: Any, part: Any, given: Any, pointer: Any) -> Any:
    """Return f(packed, start, stop), which calls ``part`` with the arguments at ``packed``."""
    name = f"task.{part.llvm_func_name}"
    if name in module.globals:
        return module.globals[name]
    convention = context.call_conv
    task = ir.Function(module, convention.get_function_type(types.none, _TASK), name)
    task.linkage = "internal"
    task.attributes.add("noinline")  # two places call it
    builder = ir.IRBuilder(task.append_basic_block("entry"))
    packed, *range_ = convention.get_arguments(task)
    values = cgutils.unpack_tuple(builder, builder.load(builder.inttoptr(packed, pointer)))
    callee = context.declare_function(module, part)
    _call_checked(context, builder, callee, (*given, *_RANGE), (*values, *range_))
    convention.return_value(builder, context.get_dummy_value())
    return task


def _cast(context: Any, builder: Any, packed: Any, from_: Any, to: Any) -> list[Any]:
    """Cast the elements of a tuple to the given types."""
    values = cgutils.unpack_tuple(builder, packed)
    return [context.cast(builder, *each) for each in zip(values, from_, to, strict=True)]


def _call_checked(context: Any, builder: Any, callee: Any, given: Any, values: Any) -> None:
    """Call a compiled function without result, and propagate its exception."""
    status, _ = context.call_conv.call_function(builder, callee, types.none, given, values)
    with cgutils.if_unlikely(builder, status.is_error):
        context.call_conv.return_status_propagate(builder, status)
