"""What the benchmarks share: pairs, the two sides, PyTorch's programs."""
