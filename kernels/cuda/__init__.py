"""CUDA C++ source of fastmlp's GPU kernels; `fastmlp.backends.cuda.sources` reads it, `step` there launches it."""
