"""Acceptance of one GPU: measured ceilings, kernels, quantization, validation and decoding."""
