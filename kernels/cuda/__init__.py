"""CUDA C++ source of fastmlp's GPU kernels, one operation a file; `fastmlp.backends.cuda_source` reads it."""
