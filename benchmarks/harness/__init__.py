"""Code shared by the benchmarks: timing in pairs, our side and PyTorch's side."""
