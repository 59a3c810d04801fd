"""What compiles, caches, schedules and reports kernels.

==============  ==================================================================================
``jit``         Numba's options, and the cache on disk
``parts``       parts of kernels, which become machine code inside the kernels only
``isa``         which instructions are used
``threads``     how many threads
``tasks``       a kernel's tasks on those threads; calls through addresses
``llvm_ir``     a vocabulary for vector instructions
``scalar``      leaves of one value: widening, bits, the exponential
``arrays``      arguments brought to the few array types that are compiled for
``warmup``      compiling ahead of time
``doctor``      what this machine gives
==============  ==================================================================================
"""
