"""Products of stored weights with activations: y (T, N) = x (T, M) times W (N, M) transposed.

The table shows which file computes which product. The numbers are the rate of one thread in
GFLOP/s; two numbers are those for 16 and for 512 tokens. M = 2880, N = 512, on an AMD Zen 4 with
the path forced. The NumPy layer reaches 36, 42, 98 for 1, 16, 512 tokens with float32 weights.
``python -m benches.paths`` wrote the numbers into docs/performance.md. AMX was measured on another
machine, as a multiple of NumPy's product. MXFP4 of 1 to 4 tokens was faster by a quarter on AVX2,
in a later measurement (docs/decisions/0059).

=============  ===================  ====================  ====================  ==================
weights,       plain                AVX2                  AVX-512               AMX
tokens
=============  ===================  ====================  ====================  ==================
bfloat16, 1    gemv, 42             gemv, 42              gemv, 42              as AVX-512
bfloat16, 2 …  gemm, 84 and 107     gemm, 84 and 107      gemm, 83 and 109      amx, 2.2 ×
float32, 1     gemv, 38             gemv, 38              gemv, 38              as AVX-512
float32, 2 …   gemm, 81 and 99      gemm, 81 and 103      gemm, 80 and 103      as AVX-512
MXFP4, 1       mxfp4_float, 10      mxfp4_gemv_int8, 39   mxfp4_gemv_int8, 51   as AVX-512
MXFP4, 2 … 4   mxfp4_float, 21      mxfp4_gemv_int8, 42   mxfp4_gemv_int8, 53   as AVX-512
MXFP4, 5 …     mxfp4_float,         mxfp4_gemm_int16,     mxfp4_gemm_int16,     mxfp4_gemm_amx,
               56 and 105           118 and 132           116 and 133           1.4 ×
=============  ===================  ====================  ====================  ==================

Error bounds, as relative L2 against float64 at the released sizes: 1e-6, but 2e-5 for
``mxfp4_gemv_int8`` and ``mxfp4_gemm_int16``, which round activations to 16 bits; if one activation
is 1000 times the rest, 5e-6 and 1e-4.

===================  ===========================================================================
file                 idea
===================  ===========================================================================
``gemv``             one dot product per row; memory is prefetched
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
is written as LLVM vectors of 16 lanes without instructions of a particular CPU (``register_tile``,
``flash/online_softmax``): LLVM splits them into the vectors of the CPU, including NEON.
Instructions of one CPU family are used for integers only, and only if they are 1.15 times as fast
as the portable form on this family; docs/performance.md has the measurements. Each leaf also exists
as a Python function, which runs under ``NUMBA_DISABLE_JIT=1`` on any CPU, for every path.
"""
