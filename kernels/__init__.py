"""Compiled kernels, installed as `fastmlp.kernels`; they import nothing from fastmlp.

Numba functions live in `kernels/cpu`, CUDA C++ in `kernels/cuda`.  This version has neither yet: training
runs on the NumPy backend, and the Numba and CuPy backends say so when they are asked for.
"""
