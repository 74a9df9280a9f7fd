"""Triton kernels for CUDA. Nothing here is imported before a step needs it, as Triton may be missing."""
