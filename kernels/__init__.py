"""Compiled kernels, installed as `fastmlp.kernels`; they import nothing from fastmlp.

Numba functions live in `kernels/cpu`; CUDA C++ will live in `kernels/cuda`.
"""
