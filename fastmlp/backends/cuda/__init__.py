"""The CuPy backend: CUDA GPUs."""
