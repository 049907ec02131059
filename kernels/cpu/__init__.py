"""Kernels for CPUs, compiled by Numba; what Python calls is in `train`, `predict` and `operations`."""
