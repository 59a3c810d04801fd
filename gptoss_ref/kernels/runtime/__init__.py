"""Compilation, cache, threads and instruction sets of the kernels.

==============  ==================================================================================
``jit``         Numba's options, and the cache on disk
``isa``         choice of the instruction set
``threads``     number of threads
``tasks``       distribution of a kernel's tasks over the threads; calls by address
``llvm_ir``     functions that write vector instructions, and make leaves of them
``scalar``      functions of one value: conversion, bits, the exponential
``arrays``      conversion of arguments to the few array types that kernels are compiled for
``buffers``     allocation of scratch arrays in kernels, and loops over whole arrays
``warmup``      compilation ahead of time, and the message that kernels are being compiled
``doctor``      report on this machine: instructions, threads, memory bandwidth
==============  ==================================================================================
"""
