"""Compiled kernels, installed as `fastmlp.kernels`; they import nothing from fastmlp.

Numba functions live in `kernels/cpu`, CUDA C++ in `kernels/cuda`; `kernels/README.md` is the way through them.
"""
