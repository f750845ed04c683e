"""Architectures only: no weights, no input or output, no normalisation inside."""
