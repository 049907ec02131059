"""CUDA C++ source of fastmlp's GPU kernels; `fastmlp.backends.cuda_source` reads it, `cupy_step` launches it."""
