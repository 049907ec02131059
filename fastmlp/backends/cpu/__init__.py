"""The Numba backend: any CPU."""
