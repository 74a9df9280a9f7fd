"""The C++ backend: kernels for CPUs, compiled on the user's machine before the first step."""
