"""Functions that write vector instructions as LLVM IR, and that make leaves of them.

A vector has an element type and a number of lanes. If LLVM has an operation for any vector (loads,
shuffles, shifts, fused multiply-add), the IR is the same on every CPU. Only products of integers
and the table look-up are intrinsics of one CPU family.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array
from numpy import ndindex

from gptoss_ref.kernels.runtime.jit import INLINED, by_types

i8, i16, i32, i64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
f32 = ir.FloatType()
Value = Any
Emit = Callable[..., Value | None]
"""A function that writes the instructions of a leaf. Its arguments are the IR builder and those of
the leaf: the pointer to the first element of each array, and numbers. It returns the result."""


def instructions(emit: Emit, result: Any = types.void) -> Any:
    """Return a function for kernels that consists of the instructions that ``emit`` writes.

    Integers become int64; ``result`` is the Numba type of the result.
    """

    def typed(typing_context: Any, *given: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            values = [
                make_array(type_)(context, builder, value).data
                if isinstance(type_, types.Array)
                else value
                for type_, value in zip(signature.args, args, strict=True)
            ]
            found = emit(builder, *values)
            return context.get_dummy_value() if found is None else found

        wide = (types.intp if isinstance(type_, types.Integer) else type_ for type_ in given)
        return result(*wide), generate

    typed.__signature__ = inspect.signature(emit)  # type: ignore[attr-defined]
    return intrinsic(typed)


def leaf(python: Callable[..., Any], **options: Any) -> Callable[[Emit], None]:
    """Let kernels execute, in place of ``python``, what the decorated function writes.

    ``options``: those of :func:`gptoss_ref.kernels.runtime.jit.by_types`.
    """

    def decorate(emit: Emit) -> None:
        function = instructions(emit)
        by_types(python, **options)(lambda *types_: function)

    return decorate


def vector(element: ir.Type, lanes: int) -> ir.Type:
    """Return the type of a vector of ``lanes`` elements."""
    return ir.VectorType(element, lanes)


def constant(element: ir.Type, values: Sequence[float] | float, lanes: int = 0) -> Value:
    """Return a vector of ``values``, or of one value in all ``lanes``."""
    if isinstance(values, Sequence):
        return ir.Constant(vector(element, len(values)), list(values))
    return ir.Constant(vector(element, lanes), [values] * lanes)


def index(value: int) -> Value:
    """Return an array index."""
    return ir.Constant(i64, value)


def load(builder: ir.IRBuilder, pointer: Value, offset: Value, type_: ir.Type) -> Value:
    """Load the vector (or scalar) at ``pointer`` + ``offset`` elements; it need not be aligned."""
    at = builder.bitcast(builder.gep(pointer, [offset]), type_.as_pointer())
    value = builder.load(at)
    value.align = 1
    return value


def first_lanes(builder: ir.IRBuilder, count: Value, lanes: int) -> Value:
    """Return a mask of the first ``count`` of ``lanes`` lanes."""
    numbers = constant(i32, list(range(lanes)))
    return builder.icmp_signed("<", numbers, splat(builder, builder.trunc(count, i32), lanes))


def store(builder: ir.IRBuilder, value: Value, pointer: Value, offset: Value) -> None:
    """Write a vector (or scalar) at ``pointer`` + ``offset`` elements; it need not be aligned."""
    at = builder.bitcast(builder.gep(pointer, [offset]), value.type.as_pointer())
    builder.store(value, at).align = 1


def splat(builder: ir.IRBuilder, scalar: Value, lanes: int) -> Value:
    """Return a vector with ``scalar`` in all lanes."""
    type_ = vector(scalar.type, lanes)
    one = builder.insert_element(ir.Constant(type_, ir.Undefined), scalar, ir.Constant(i32, 0))
    return builder.shuffle_vector(one, one, constant(i32, 0, lanes))


def shuffle(builder: ir.IRBuilder, a: Value, lanes: Sequence[int], b: Value = None) -> Value:
    """Return the given lanes of ``a`` (0 … n − 1) and ``b`` (n …)."""
    return builder.shuffle_vector(a, a if b is None else b, constant(i32, list(lanes)))


def call(builder: ir.IRBuilder, name: str, result: ir.Type, *arguments: Value) -> Value:
    """Call an LLVM intrinsic by its name."""
    type_ = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, type_, name), arguments)


def multiply_add(builder: ir.IRBuilder, a: Value, b: Value, c: Value) -> Value:
    """Return a · b + c for vectors of any type, as one instruction if the CPU has it."""
    product = builder.fmul(a, b, flags=("contract",))
    return builder.fadd(product, c, flags=("contract",))


def widened(builder: ir.IRBuilder, stored: Value) -> Value:
    """Return a vector of stored weights, bfloat16 bits or float32, as floats."""
    if stored.type.element == f32:
        return stored
    lanes = stored.type.count
    wide = builder.zext(stored, vector(i32, lanes))
    return builder.bitcast(builder.shl(wide, constant(i32, 16, lanes)), vector(f32, lanes))


def lane_sum(builder: ir.IRBuilder, a: Value) -> Value:
    """Return the sum of the lanes of a float vector, added in halves."""
    while a.type.count > 1:
        half = a.type.count // 2
        low, high = shuffle(builder, a, range(half)), shuffle(builder, a, range(half, 2 * half))
        a = builder.fadd(low, high)
    return builder.extract_element(a, ir.Constant(i32, 0))


NEAR = 1024
"""Distance of prefetches into L1 in bytes (``mxfp4_gemv_int8``, and the doctor's read)."""


def prefetch(
    builder: ir.IRBuilder, pointer: Value, offset: Value, ahead: int, keep: int = 3
) -> None:
    """Prefetch the cache line ``ahead`` bytes beyond ``pointer`` + ``offset`` elements.

    ``keep``: 3 loads it into L1, 1 and 2 into a later cache.

    The CPU ignores an address that is not mapped, so no bounds check is needed.
    """
    at = builder.bitcast(builder.gep(pointer, [offset]), i8.as_pointer())
    at = builder.gep(at, [index(ahead)])
    read, level, of_data = (ir.Constant(i32, v) for v in (0, keep, 1))
    type_ = ir.FunctionType(ir.VoidType(), [at.type, i32, i32, i32])
    function = builder.module.declare_intrinsic("llvm.prefetch", [at.type], type_)
    builder.call(function, [at, read, level, of_data])


def prefetch_later(array: Any, at: int) -> None:
    """Prefetch into L2 the line of element ``at``, which may lie beyond the end of the array."""


@leaf(prefetch_later, **INLINED)
def _prefetch_later(builder: Any, array: Value, at: Value) -> None:
    prefetch(builder, array, at, 0, keep=2)


def transposed(builder: ir.IRBuilder, rows: Sequence[Value]) -> list[Value]:
    """Return the transpose of a square of vectors: n vectors of n lanes, n a power of two.

    Each of log2 n rounds interleaves row i with row i + n/2, which moves one bit of the row number
    into the lane number.
    """
    n = len(rows)
    low = [lane // 2 + n * (lane % 2) for lane in range(n)]
    high = [lane + n // 2 for lane in low]
    current = list(rows)
    for _ in range(n.bit_length() - 1):
        pairs = [(current[i], current[i + n // 2]) for i in range(n // 2)]
        current = [shuffle(builder, a, order, b) for a, b in pairs for order in (low, high)]
    return current


class Accumulators:
    """A grid of vectors that a loop adds to; LLVM keeps them in registers."""

    def __init__(self, builder: ir.IRBuilder, rows: int, columns: int, type_: ir.Type) -> None:
        self._builder, zero = builder, ir.Constant(type_, None)
        self._slots = {
            at: cgutils.alloca_once_value(builder, zero) for at in ndindex(rows, columns)
        }

    def __getitem__(self, at: tuple[int, int]) -> Value:
        return self._builder.load(self._slots[at])

    def __setitem__(self, at: tuple[int, int], value: Value) -> None:
        self._builder.store(value, self._slots[at])
