"""Products of stored weights with activations: y (T, N) = x (T, M) times W (N, M) transposed.

Which file computes what; the number behind it is the rate of one thread in GFLOP/s, two numbers
those of 16 and of 512 tokens: M = 2880, N = 512, on an AMD Zen 4 with that path forced, where the
NumPy layer has 36, 42, 99 for 1, 16, 512 tokens with float32 weights. ``python -m benches.paths``
wrote them into docs/performance.md. AMX was measured on another machine, as a multiple of NumPy's
product.

=============  ===================  ====================  ====================  ==================
weights,       plain                AVX2                  AVX-512               AMX
tokens
=============  ===================  ====================  ====================  ==================
bfloat16, 1    gemv, 33             gemv, 33              gemv, 33              as AVX-512
bfloat16, 2 …  gemm, 82 and 108     gemm, 82 and 110      gemm, 81 and 110      amx, 2.2 ×
float32, 1     gemv, 28             gemv, 28              gemv, 28              as AVX-512
float32, 2 …   gemm, 78 and 108     gemm, 78 and 108      gemm, 77 and 108      as AVX-512
MXFP4, 1       mxfp4_float, 9       mxfp4_gemv_int8, 39   mxfp4_gemv_int8, 52   as AVX-512
MXFP4, 2 … 4   mxfp4_float, 21      mxfp4_gemv_int8, 43   mxfp4_gemv_int8, 54   as AVX-512
MXFP4, 5 …     mxfp4_float,         mxfp4_gemm_int16,     mxfp4_gemm_int16,     mxfp4_gemm_amx,
               56 and 104           114 and 130           114 and 135           1.4 ×
=============  ===================  ====================  ====================  ==================

Bounds, as relative L2 of float64 at the released sizes: 1e-6 for all but ``mxfp4_gemm_int16``,
which rounds activations to 16 bits: 2e-5, and below 1e-4 where one is 1000 times the rest.

===================  ===========================================================================
file                 idea
===================  ===========================================================================
``gemv``             a dot product a row, memory asked for ahead
``gemm``             panels of rows, cut for the caches; ``register_tile`` multiplies them
``register_tile``    ``pack`` and ``tile``: sums of several tokens held in registers
``amx``              the same on AMX's tiles, of bfloat16 planes
``mxfp4_methods``    one interface to the four files of MXFP4 products: ``prepare`` activations,
                     ``multiply`` 64 rows; a type of prepared activations for each
``mxfp4_block``      what a block is; the float32 way of what integers cannot carry
===================  ===========================================================================

**Portable first.** A leaf is a loop over slices or whole arrays, which LLVM vectorises: an index
that is a sum, ``w[at + k]``, might be negative for all that LLVM knows, and then nothing is. To see
whether a loop was vectorised, look for types like ``<16 x float>`` in
``kernel.inspect_llvm(kernel.signatures[0])``. If registers have to be held over a loop, a leaf is
written as LLVM vectors of 16 lanes without an instruction of any one CPU (``register_tile``,
``flash/online_softmax``): LLVM splits them into what there is, NEON too. Instructions of one family
of CPUs are used for integers only, and stay only if they give 1.15 times the portable form on their
CPU; docs/performance.md has those measurements. Each leaf is also a Python function, which runs
under ``NUMBA_DISABLE_JIT=1`` on any CPU, whatever the path.
"""
