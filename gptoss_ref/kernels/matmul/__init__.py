"""Products of stored weights with activations: y (T, N) = x (T, M) times W (N, M) transposed.

The table shows which file computes which product. The numbers are the rate of one thread in
GFLOP/s; two numbers are those for 16 and for 512 tokens. M = 2880, N = 512, on an AMD Zen 4 with
the path forced. The NumPy layer reaches 36, 42, 97 for 1, 16, 512 tokens with float32 weights.
``python -m benches.paths`` wrote the numbers into docs/performance.md. AMX was measured on another
machine, as a multiple of NumPy's product.

=============  ===================  ====================  ====================  ==================
weights,       plain                AVX2                  AVX-512               AMX
tokens
=============  ===================  ====================  ====================  ==================
bfloat16, 1    gemv, 45             gemv, 45              gemv, 45              as AVX-512
bfloat16, 2 …  gemm, 77 and 108     gemm, 77 and 108      gemm, 79 and 107      amx, 2.2 ×
float32, 1     gemv, 34             gemv, 34              gemv, 34              as AVX-512
float32, 2 …   gemm, 74 and 108     gemm, 74 and 108      gemm, 73 and 107      as AVX-512
MXFP4, 1       mxfp4_float, 14      mxfp4_gemv_int8, 42   mxfp4_gemv_int8, 47   as AVX-512
MXFP4, 2 … 4   mxfp4_float, 32      mxfp4_gemv_int8, 49   mxfp4_gemv_int8, 56   as AVX-512
MXFP4, 5 …     mxfp4_float,         mxfp4_gemm_int16,     mxfp4_gemm_int16,     mxfp4_gemm_amx,
               60 and 105           117 and 130           115 and 134           1.4 ×
=============  ===================  ====================  ====================  ==================

Error bounds, as relative L2 against float64 at the released sizes: 1e-6, but 2e-5 for
``mxfp4_gemv_int8`` and ``mxfp4_gemm_int16``, which round activations to 16 bits; if one activation
is 1000 times the rest, 5e-6 and 1e-4.

===================  ===========================================================================
file                 idea
===================  ===========================================================================
``gemv``             one dot product per row, one cache line at a time
``gemm``             panels of rows, sized for the caches; ``register_tile`` multiplies them
``register_tile``    ``pack`` and ``tile``: the sums of several tokens stay in registers
``amx``              the same with the tiles of AMX, on bfloat16 planes
``mxfp4_planes``     activations of few tokens, as planes of bytes
``mxfp4_methods``    MXFP4 matrices, and one interface to the four files of their products:
                     ``prepare`` activations, ``multiply`` 64 rows; each has its own type of
                     prepared activations
``mxfp4_block``      the format of a block; float32 products for values out of integer range
===================  ===========================================================================

From ``linear.py`` to the instructions: ``gemm`` or ``mxfp4_methods`` takes the product apart, and
the file that the first table names multiplies (for ``gemm``, ``register_tile`` does).

**Portable first.** A leaf is a loop over slices or whole arrays, because LLVM vectorises these. If
an index is a sum, as in ``w[at + k]``, LLVM cannot exclude that it is negative, and does not
vectorise the loop. To see whether a loop was vectorised, look for types like ``<16 x float>`` in
``kernel.inspect_llvm(kernel.signatures[0])``. If sums must stay in registers over a loop, the leaf
is written as LLVM vectors without instructions of a particular CPU (``gemv``, ``register_tile``,
``mxfp4_block``, ``flash/online_softmax``): LLVM splits them into those of the CPU, such as NEON.
Instructions of one CPU family are used for integers only, and only if they are 1.15 times as fast
as the portable form on this family; docs/performance.md has the measurements. Each leaf also exists
as a Python function, which runs under ``NUMBA_DISABLE_JIT=1`` on any CPU, for every path.
"""
